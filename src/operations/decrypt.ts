/** POST /v1/decrypt: opens an envelope in its place and reveals as much as the decision allows. */
import { checkCommitment, open } from '../crypto/aead.ts';
import { valueDigest } from '../crypto/data-key.ts';
import { envelopeDigest, parseEnvelope, type Envelope } from '../crypto/envelope.ts';
import { decryptionFailed } from '../errors.ts';
import type { View } from '../policy/policy.ts';
import { reveal } from '../policy/views.ts';
import { contextBytes, getClass, performFields, withOpeningKey, type Place, type Reading, type Verb } from './field.ts';
import type { Operation } from './perform.ts';

interface DecryptItem {
  readonly envelope: string;
  readonly context: Required<Place>;
  readonly view?: View;
  readonly purpose?: string;
}

interface DecryptReading extends Reading {
  readonly envelope: Envelope;
}

const verb: Verb<DecryptItem, DecryptReading> = {
  read(item) {
    const envelope = parseEnvelope(item.envelope);
    return {
      envelope,
      question: {
        action: 'decrypt',
        class: envelope.family,
        ...(item.view !== undefined && { view: item.view }),
        ...(item.purpose !== undefined && { purpose: item.purpose }),
      },
      place: item.context,
    };
  },
  compute(work, _item, { envelope, place }, decision, facts) {
    const fieldClass = getClass(work.policy, envelope.family);
    facts.input = envelopeDigest(envelope);
    facts.keyVersion = envelope.version;
    return withOpeningKey(work, envelope, (key, version) => {
      if (key === undefined) throw decryptionFailed();
      const ctx = contextBytes(work, version, place);
      const answer = { class: envelope.family, version: envelope.version };
      // `exists` checks the commitment and decrypts nothing, so it says nothing of the ciphertext.
      if (decision.view === 'exists') {
        if (!checkCommitment(key, envelope, ctx)) throw decryptionFailed();
        return { ...answer, view: 'exists', value: true };
      }
      const { view, value } = reveal(fieldClass, decision.view!, open(key, envelope, ctx));
      facts.view = view;
      if (typeof value === 'string') facts.output = valueDigest(key, work.requestId, work.item, ctx, value);
      return { ...answer, view, value };
    });
  },
};

export const decrypt: Operation = (service, call) => performFields(service, call, 'decrypt', verb);
