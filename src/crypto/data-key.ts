/**
 * A data key is 64 random bytes for (tenant, family, version). Unwrapped it lives only here: as a KeyObject, which does
 * not print, beside nothing but what is derived from it. The digests of the audit log (design, section 8) are made with
 * it too, so that they die with it.
 *
 *     fingerprint = HMAC-SHA-512(dataKey, "fe1/fp" 00)[0..16]       stored, compared after every unwrap
 *     indexKey    = HMAC-SHA-512(dataKey, "fe1/index-key" 00)       blind indexes
 */
import { createHmac, createSecretKey, type KeyObject } from 'node:crypto';
import { inspect } from 'node:util';
import { FieldkeepError } from '../errors.ts';
import { encodeParts, u32 } from './context.ts';

const dataKeyBytes = 64;

const label = (text: string) => Buffer.from(`${text}\0`, 'latin1');
const fingerprintLabel = label('fe1/fp');
const indexKeyLabel = label('fe1/index-key');
const rowLabel = label('fe1/row');
const valueLabel = label('fe1/value');

function hmacSha512(key: KeyObject, parts: readonly Uint8Array[]): Buffer {
  const hmac = createHmac('sha512', key);
  for (const part of parts) hmac.update(part);
  return hmac.digest();
}

export class DataKey {
  readonly #key: KeyObject;
  #indexKey: KeyObject | undefined;
  /** 16 bytes that name the key without saying anything of it. */
  readonly fingerprint: Buffer;

  private constructor(key: KeyObject) {
    this.#key = key;
    this.fingerprint = hmacSha512(key, [fingerprintLabel]).subarray(0, 16);
  }

  /** Takes the key over: `bytes` are overwritten. Errors: `internal` unless there are exactly 64. */
  static from(bytes: Uint8Array): DataKey {
    try {
      if (bytes.length !== dataKeyBytes) {
        throw new FieldkeepError('internal', `An unwrapped data key has ${bytes.length} bytes, not ${dataKeyBytes}.`);
      }
      return new DataKey(createSecretKey(bytes));
    } finally {
      bytes.fill(0);
    }
  }

  /** HMAC-SHA-512 under the data key over the parts in order; 64 bytes. */
  hmac(...parts: Uint8Array[]): Buffer {
    return hmacSha512(this.#key, parts);
  }

  /** HMAC-SHA-512 under the derived index key; 64 bytes. */
  indexHmac(...parts: Uint8Array[]): Buffer {
    if (this.#indexKey === undefined) {
      const bytes = this.hmac(indexKeyLabel);
      this.#indexKey = createSecretKey(bytes);
      bytes.fill(0);
    }
    return hmacSha512(this.#indexKey, parts);
  }

  toString(): string {
    return '[DataKey]';
  }

  toJSON(): string {
    return '[DataKey]';
  }

  [inspect.custom](): string {
    return '[DataKey]';
  }
}

/** "<version of digestKey>." base64url(HMAC("fe1/row" 00 | LP(table) | LP(column) | LP(row))[0..16]) */
export function rowDigest(digestKey: DataKey, version: number, table: string, column: string, row: string): string {
  const place = encodeParts([table, 'table'], [column, 'column'], [row, 'row']);
  return `${version}.${digestKey.hmac(rowLabel, place).toString('base64url', 0, 16)}`;
}

/** "value:" base64url(HMAC("fe1/value" 00 | LP(requestId) | u32(item) | CTX | value)[0..16]); `item` is 0 if single. */
export function valueDigest(key: DataKey, requestId: string, item: number, ctx: Buffer, value: string): string {
  const mac = key.hmac(valueLabel, encodeParts([requestId, 'requestId']), u32(item), ctx, Buffer.from(value, 'utf8'));
  return `value:${mac.toString('base64url', 0, 16)}`;
}
