/** POST /v1/match: whether an envelope holds the candidate, both normalised; nothing else is said. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { open } from '../crypto/aead.ts';
import { normalise } from '../crypto/blind-index.ts';
import { envelopeDigest, parseEnvelope, type Envelope } from '../crypto/envelope.ts';
import { decryptionFailed } from '../errors.ts';
import { contextBytes, getClass, performFields, withOpeningKey, type Place, type Reading, type Verb } from './field.ts';
import type { Operation } from './perform.ts';

interface MatchItem {
  readonly envelope: string;
  readonly context: Required<Place>;
  readonly candidate: string;
  readonly purpose?: string;
}

interface MatchReading extends Reading {
  readonly envelope: Envelope;
}

/** Equal digests in constant time: how long it takes says nothing of where two values differ, or of their lengths. */
function equal(a: string, b: string): boolean {
  const [left, right] = [a, b].map((text) => createHash('sha256').update(text, 'utf8').digest());
  return timingSafeEqual(left!, right!);
}

const verb: Verb<MatchItem, MatchReading> = {
  read(item) {
    const envelope = parseEnvelope(item.envelope);
    return {
      envelope,
      question: {
        action: 'match',
        class: envelope.family,
        ...(item.purpose !== undefined && { purpose: item.purpose }),
      },
      place: item.context,
    };
  },
  compute(work, item, { envelope, place }, _decision, facts) {
    const { normalise: how } = getClass(work.policy, envelope.family);
    facts.input = envelopeDigest(envelope);
    facts.keyVersion = envelope.version;
    return withOpeningKey(work, envelope, (key, version) => {
      if (key === undefined) throw decryptionFailed();
      const value = open(key, envelope, contextBytes(work, version, place));
      return { match: equal(normalise(how, value), normalise(how, item.candidate)) };
    });
  },
};

export const match: Operation = (service, call) => performFields(service, call, 'match', verb);
