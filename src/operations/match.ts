/**
 * POST /v1/match: whether an envelope holds the candidate, both normalised; nothing else is said. Where nothing is left of
 * one of them there is nothing to compare, and the answer is false; two empty texts are equal only where the class does not
 * normalise, for then they are what is stored and what was asked.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { open } from '../crypto/aead.ts';
import { normalise } from '../crypto/blind-index.ts';
import { envelopeDigest, parseEnvelope, type Envelope } from '../crypto/envelope.ts';
import { decryptionFailed } from '../errors.ts';
import { getNormal } from '../values/value.ts';
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
    const candidate = getNormal(how, envelope.family, item.candidate, 'candidate');
    facts.input = envelopeDigest(envelope);
    facts.keyVersion = envelope.version;
    return withOpeningKey(work, envelope, (key, version) => {
      if (key === undefined) throw decryptionFailed();
      // A stored value of which something would be lost equals nothing that a candidate can be.
      const value = normalise(how, open(key, envelope, contextBytes(work, version, place)));
      const comparable = value !== undefined && (how === undefined || (value !== '' && candidate !== ''));
      return { match: comparable && equal(value, candidate) };
    });
  },
};

export const match: Operation = (service, call) => performFields(service, call, 'match', verb);
