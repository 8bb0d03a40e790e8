/**
 * POST /v1/reencrypt: opens an envelope and seals its value anew under the active version, in the same place or, with
 * `to`, in another row of the same tenant and class, which takes the scope `move` as well and stands in the entry. The
 * value itself is not answered.
 */
import { open, seal } from '../crypto/aead.ts';
import { envelopeDigest, formatEnvelope, parseEnvelope, type Envelope } from '../crypto/envelope.ts';
import { decryptionFailed } from '../errors.ts';
import { indexTokens } from './encrypt.ts';
import {
  checkColumn,
  contextBytes,
  getClass,
  performFields,
  withOpeningKey,
  withSealingKey,
  type Place,
  type Reading,
  type Verb,
} from './field.ts';
import type { Operation } from './perform.ts';

interface ReencryptItem {
  readonly envelope: string;
  readonly context: Required<Place>;
  readonly to?: Required<Place>;
}

interface ReencryptReading extends Reading {
  readonly envelope: Envelope;
}

const isSame = (one: Required<Place>, other: Required<Place>): boolean =>
  one.table === other.table && one.column === other.column && one.row === other.row;

const verb: Verb<ReencryptItem, ReencryptReading> = {
  read(item) {
    const envelope = parseEnvelope(item.envelope);
    const moves = item.to !== undefined && !isSame(item.to, item.context);
    return {
      ofClass: true,
      envelope,
      question: { action: 'reencrypt', class: envelope.family },
      place: item.context,
      ...(moves && { to: item.to }),
    };
  },
  async compute(work, _item, { envelope, place, to }, _decision, facts) {
    const fieldClass = getClass(work.policy, envelope.family);
    const target = to ?? place;
    const column = checkColumn(work.policy, target);
    facts.input = envelopeDigest(envelope);
    const value = await withOpeningKey(work, envelope, (key, version) => {
      if (key === undefined) throw decryptionFailed();
      return open(key, envelope, contextBytes(work, version, place));
    });
    return await withSealingKey(work, envelope.family, column, (key, version) => {
      const ctx = contextBytes(work, version, target);
      const sealed = seal(key, envelope.family, version.version, ctx, value, fieldClass.padTo);
      facts.keyVersion = version.version;
      facts.output = envelopeDigest(sealed);
      const indexes = indexTokens(work, key, version, target, value);
      return {
        envelope: formatEnvelope(sealed),
        version: version.version,
        ...(indexes !== undefined && { indexes }),
      };
    });
  },
};

export const reencrypt: Operation = (service, call) => performFields(service, call, 'reencrypt', verb);
