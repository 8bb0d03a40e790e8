/**
 * An envelope is one encrypted field value as text, safe in any column or JSON string:
 *
 *     fe1.<family>.<version>.<base64url, no padding, of salt[16] | commitment[32] | ciphertext[n] | tag[16]>
 *
 * n is a positive multiple of 16, at most 16,448. Exactly one text stands for an envelope: base64url with stray bits,
 * padding or other characters is refused, as are versions with leading zeros.
 *
 * The format is frozen: test/vectors/envelopes.json must open for ever.
 */
import { FieldkeepError } from '../errors.ts';

export interface Envelope {
  readonly family: string;
  readonly version: number;
  readonly salt: Buffer;
  readonly commitment: Buffer;
  readonly ciphertext: Buffer;
  readonly tag: Buffer;
}

export const versionMax = 999_999_999;

const saltBytes = 16;
const commitmentBytes = 32;
const tagBytes = 16;
const overheadBytes = saltBytes + commitmentBytes + tagBytes;
const ciphertextBytesMax = 16_448;
const bodyCharsMax = Math.ceil(((overheadBytes + ciphertextBytesMax) * 4) / 3);

const headPattern = /^fe1\.([a-z][a-z0-9]{1,15})\.([1-9][0-9]{0,8})\./;

function malformed(): FieldkeepError {
  return new FieldkeepError(
    'envelope_malformed',
    'The envelope is not of the form fe1.<family>.<version>.<base64url>.',
  );
}

/** Errors: `envelope_malformed` for anything but the one spelling of an envelope. */
export function parseEnvelope(text: string): Envelope {
  const head = headPattern.exec(text);
  if (head === null) throw malformed();
  const bodyText = text.slice(head[0].length);
  if (bodyText.length > bodyCharsMax) throw malformed();
  const body = Buffer.from(bodyText, 'base64url');
  const n = body.length - overheadBytes;
  if (n < 16 || n % 16 !== 0 || n > ciphertextBytesMax) throw malformed();
  if (body.toString('base64url') !== bodyText) throw malformed();
  const ciphertextAt = saltBytes + commitmentBytes;
  return {
    family: head[1]!,
    version: Number(head[2]),
    salt: body.subarray(0, saltBytes),
    commitment: body.subarray(saltBytes, ciphertextAt),
    ciphertext: body.subarray(ciphertextAt, ciphertextAt + n),
    tag: body.subarray(ciphertextAt + n),
  };
}

export function formatEnvelope({ family, version, salt, commitment, ciphertext, tag }: Envelope): string {
  const body = Buffer.concat([salt, commitment, ciphertext, tag], overheadBytes + ciphertext.length);
  return `fe1.${family}.${version}.${body.toString('base64url')}`;
}

/** How the audit log names an envelope: "envelope:" base64url(commitment[0..16]). */
export function envelopeDigest({ commitment }: Pick<Envelope, 'commitment'>): string {
  return `envelope:${commitment.toString('base64url', 0, 16)}`;
}
