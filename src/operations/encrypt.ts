/** POST /v1/encrypt: seals a value under the active version of its class, for one place. */
import { seal } from '../crypto/aead.ts';
import { valueDigest, type DataKey } from '../crypto/data-key.ts';
import { envelopeDigest, formatEnvelope } from '../crypto/envelope.ts';
import type { KeyVersion } from '../keys/version.ts';
import { assertValue, makeTokens } from '../values/value.ts';
import {
  checkColumn,
  contextBytes,
  getClass,
  performFields,
  withSealingKey,
  type Place,
  type Reading,
  type Verb,
  type Work,
} from './field.ts';
import type { Operation } from './perform.ts';

interface EncryptItem {
  readonly class: string;
  readonly value: string;
  readonly context: Required<Place>;
  readonly purpose?: string;
}

/** The tokens to store beside an envelope, by index name; undefined where the column has no index. */
export function indexTokens(
  work: Pick<Work, 'tenant'>,
  key: DataKey,
  version: KeyVersion,
  place: Place,
  value: string,
): Record<string, string | null> | undefined {
  const tokens = makeTokens(key, version, { ...place, tenant: work.tenant }, value);
  return tokens.size === 0 ? undefined : Object.fromEntries(tokens);
}

const verb: Verb<EncryptItem, Reading> = {
  read(item) {
    return {
      ofClass: true,
      question: { action: 'encrypt', class: item.class, ...(item.purpose !== undefined && { purpose: item.purpose }) },
      place: item.context,
    };
  },
  compute(work, item, { place }, _decision, facts) {
    const fieldClass = getClass(work.policy, item.class);
    const column = checkColumn(work.policy, place);
    return withSealingKey(work, item.class, column, (key, version) => {
      const ctx = contextBytes(work, version, place);
      assertValue(version, place, item.value);
      const envelope = seal(key, item.class, version.version, ctx, item.value, fieldClass.padTo);
      facts.keyVersion = version.version;
      facts.input = valueDigest(key, work.requestId, work.item, ctx, item.value);
      facts.output = envelopeDigest(envelope);
      const indexes = indexTokens(work, key, version, place, item.value);
      return {
        envelope: formatEnvelope(envelope),
        version: version.version,
        masked: fieldClass.mask,
        ...(indexes !== undefined && { indexes }),
      };
    });
  },
};

export const encrypt: Operation = (service, call) => performFields(service, call, 'encrypt', verb);
