/**
 * FE1 a second time, on @peculiar/webcrypto, written against the specification and not against aead.ts. It is not on any
 * request's path: the self-test holds the two together, byte for byte. (WebCrypto's own HKDF has an Extract step and
 * gives other bytes, so keys are derived with HMAC sign.)
 */
import type { webcrypto } from 'node:crypto';
import { Crypto } from '@peculiar/webcrypto';
import type { Envelope } from './envelope.ts';

const { subtle } = new Crypto();
const ascii = new TextEncoder();

async function hmac(key: Uint8Array, data: Uint8Array): Promise<Buffer> {
  const imported = await subtle.importKey('raw', Buffer.from(key), { name: 'HMAC', hash: 'SHA-512' }, false, ['sign']);
  return Buffer.from(await subtle.sign('HMAC', imported, Buffer.from(data)));
}

interface Derived {
  readonly commitment: Buffer;
  readonly key: webcrypto.CryptoKey;
  readonly algorithm: webcrypto.AeadParams;
}

async function derive(dataKey: Uint8Array, salt: Uint8Array, ctx: Uint8Array): Promise<Derived> {
  const info = Buffer.concat([ascii.encode('fe1/derive\0'), salt, ctx, Uint8Array.of(1)]);
  const okm = await hmac(dataKey, info);
  const key = await subtle.importKey('raw', Buffer.from(okm.subarray(0, 32)), 'AES-GCM', false, ['encrypt', 'decrypt']);
  const iv = Buffer.from(salt.subarray(4, 16));
  const algorithm = { name: 'AES-GCM', iv, additionalData: Buffer.from(ctx), tagLength: 128 };
  return { commitment: okm.subarray(32), key, algorithm };
}

/** salt = HMAC("fe1/salt" 00 | random | u32(|P'|) | P' | CTX)[0..16] */
export async function deriveSalt(
  dataKey: Uint8Array,
  random: Uint8Array,
  padded: Uint8Array,
  ctx: Uint8Array,
): Promise<Buffer> {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(padded.length);
  const mac = await hmac(dataKey, Buffer.concat([ascii.encode('fe1/salt\0'), random, length, padded, ctx]));
  return mac.subarray(0, 16);
}

/** `dataKey` is 64 bytes, `padded` the padded plaintext, `salt` 16 bytes. */
export async function seal(
  dataKey: Uint8Array,
  ctx: Uint8Array,
  padded: Uint8Array,
  salt: Uint8Array,
): Promise<Pick<Envelope, 'salt' | 'commitment' | 'ciphertext' | 'tag'>> {
  const { commitment, key, algorithm } = await derive(dataKey, salt, ctx);
  const sealed = Buffer.from(await subtle.encrypt(algorithm, key, Buffer.from(padded)));
  const ciphertext = sealed.subarray(0, padded.length);
  return { salt: Buffer.from(salt), commitment, ciphertext, tag: sealed.subarray(padded.length) };
}

/** The padded plaintext, or undefined when commitment or tag do not fit. */
export async function open(
  dataKey: Uint8Array,
  ctx: Uint8Array,
  envelope: Pick<Envelope, 'salt' | 'commitment' | 'ciphertext' | 'tag'>,
): Promise<Buffer | undefined> {
  const { commitment, key, algorithm } = await derive(dataKey, envelope.salt, ctx);
  if (!commitment.equals(envelope.commitment)) return undefined;
  try {
    return Buffer.from(await subtle.decrypt(algorithm, key, Buffer.concat([envelope.ciphertext, envelope.tag])));
  } catch {
    return undefined;
  }
}
