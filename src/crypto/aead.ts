/**
 * Sealing and opening one value (FE1), on node:crypto because small values want the synchronous path:
 *
 *     P'   = P | 80 | 00…                                 to the smallest multiple of padTo that is ≥ |P| + 1
 *     salt = HMAC-SHA-512(dataKey, "fe1/salt" 00 | random[32] | u32(|P'|) | P' | CTX)[0..16]
 *     OKM  = HMAC-SHA-512(dataKey, "fe1/derive" 00 | salt | CTX | 01)
 *     key  = OKM[0..32]   commitment = OKM[32..64]   iv = salt[4..16]
 *     (ciphertext, tag) = AES-256-GCM(key, iv, aad = CTX, P')
 *
 * Every message has a key of its own, and the envelope commits to key and context (NIST SP 800-38D for GCM, RFC 2104
 * for HMAC). The salt is hedged: equal random bytes repeat it only for equal plaintext and context. Whatever is wrong with
 * an envelope, opening has one error.
 */
import { createCipheriv, createDecipheriv, randomFillSync, timingSafeEqual } from 'node:crypto';
import { decryptionFailed, FieldkeepError } from '../errors.ts';
import { u32 } from './context.ts';
import type { DataKey } from './data-key.ts';
import type { Envelope } from './envelope.ts';

export type PadTo = 16 | 32 | 48 | 64;
export const plaintextBytesMax = 16_384;

const saltLabel = Buffer.from('fe1/salt\0', 'latin1');
const deriveLabel = Buffer.from('fe1/derive\0', 'latin1');
const one = Buffer.from([1]);
const randomBytes = 32;

// One call for many messages' random bytes. The salt's hedge makes a pool safe: even a repeat would not repeat a salt
// unless plaintext and context were the same too. Used bytes are overwritten.
const pool = Buffer.alloc(randomBytes * 256);
let poolAt = pool.length;

function takeRandom(): Buffer {
  if (poolAt === pool.length) {
    randomFillSync(pool);
    poolAt = 0;
  }
  const bytes = pool.subarray(poolAt, poolAt + randomBytes);
  poolAt += randomBytes;
  return bytes;
}

/** P'. Errors: `request_invalid` when the value has lone surrogates or more than 16,384 bytes. */
export function pad(plaintext: string, padTo: PadTo): Buffer {
  if (!plaintext.isWellFormed()) throw new FieldkeepError('request_invalid', 'value contains a lone surrogate.');
  const length = Buffer.byteLength(plaintext, 'utf8');
  if (length > plaintextBytesMax) {
    throw new FieldkeepError('request_invalid', `value is longer than ${plaintextBytesMax} bytes.`);
  }
  const padded = Buffer.alloc(Math.ceil((length + 1) / padTo) * padTo);
  padded.write(plaintext, 'utf8');
  padded[length] = 0x80;
  return padded;
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** P as text. Errors: `decryption_failed`. The amount of padding is not checked; its form is, and the text's own limit. */
export function unpad(padded: Buffer): string {
  let end = padded.length - 1;
  while (end >= 0 && padded[end] === 0) end -= 1;
  if (end < 0 || end > plaintextBytesMax || padded[end] !== 0x80) throw decryptionFailed();
  try {
    return utf8.decode(padded.subarray(0, end));
  } catch {
    throw decryptionFailed();
  }
}

export function deriveSalt(key: DataKey, random: Uint8Array, padded: Buffer, ctx: Buffer): Buffer {
  return key.hmac(saltLabel, random, u32(padded.length), padded, ctx).subarray(0, 16);
}

/** OKM: message key in [0..32], commitment in [32..64]. */
export function derive(key: DataKey, salt: Buffer, ctx: Buffer): Buffer {
  return key.hmac(deriveLabel, salt, ctx, one);
}

/** AES-256-GCM with a 96-bit iv and a 128-bit tag. */
export function encryptGcm(
  key: Buffer,
  iv: Buffer,
  aad: Buffer,
  plaintext: Buffer,
): { ciphertext: Buffer; tag: Buffer } {
  const cipher = createCipheriv('aes-256-gcm', key, iv);
  cipher.setAAD(aad);
  const ciphertext = cipher.update(plaintext); // GCM is a stream mode: final() adds nothing
  cipher.final();
  return { ciphertext, tag: cipher.getAuthTag() };
}

/** Errors: `decryption_failed`. */
export function decryptGcm(key: Buffer, iv: Buffer, aad: Buffer, ciphertext: Buffer, tag: Buffer): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', key, iv, { authTagLength: 16 });
  decipher.setAAD(aad);
  decipher.setAuthTag(tag);
  const plaintext = decipher.update(ciphertext);
  try {
    decipher.final();
  } catch {
    plaintext.fill(0);
    throw decryptionFailed();
  }
  return plaintext;
}

/** Seals under a given salt; apart from tests and the self-test only `seal` calls this. */
export function sealWithSalt(
  key: DataKey,
  family: string,
  version: number,
  ctx: Buffer,
  padded: Buffer,
  salt: Buffer,
): Envelope {
  const okm = derive(key, salt, ctx);
  const messageKey = okm.subarray(0, 32);
  const { ciphertext, tag } = encryptGcm(messageKey, salt.subarray(4, 16), ctx, padded);
  messageKey.fill(0);
  return { family, version, salt, commitment: okm.subarray(32, 64), ciphertext, tag };
}

/**
 * Seals `plaintext` for the context whose encoding is `ctx`. Errors: `request_invalid` for a value that is not text or
 * longer than 16,384 bytes.
 */
export function seal(
  key: DataKey,
  family: string,
  version: number,
  ctx: Buffer,
  plaintext: string,
  padTo: PadTo,
): Envelope {
  const padded = pad(plaintext, padTo);
  const random = takeRandom();
  const salt = deriveSalt(key, random, padded, ctx);
  random.fill(0);
  const envelope = sealWithSalt(key, family, version, ctx, padded, salt);
  padded.fill(0);
  return envelope;
}

/** Opens `envelope`, whose family and version `ctx` repeats. Errors: `decryption_failed`. */
export function open(key: DataKey, envelope: Envelope, ctx: Buffer): string {
  const okm = derive(key, envelope.salt, ctx);
  const messageKey = okm.subarray(0, 32);
  try {
    if (!timingSafeEqual(okm.subarray(32, 64), envelope.commitment)) throw decryptionFailed();
    const padded = decryptGcm(messageKey, envelope.salt.subarray(4, 16), ctx, envelope.ciphertext, envelope.tag);
    try {
      return unpad(padded);
    } finally {
      padded.fill(0);
    }
  } finally {
    messageKey.fill(0);
  }
}

/** Whether the envelope was made with this key for this context; says nothing of its ciphertext. */
export function checkCommitment(key: DataKey, envelope: Envelope, ctx: Buffer): boolean {
  const okm = derive(key, envelope.salt, ctx);
  const equal = timingSafeEqual(okm.subarray(32, 64), envelope.commitment);
  okm.fill(0);
  return equal;
}
