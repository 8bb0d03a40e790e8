/**
 * Blind index tokens, for searching equal values without opening them (design, section 7):
 *
 *     T     = HMAC-SHA-512(indexKey, "fe1/bidx" 00 | LP(tenant) | LP(table) | LP(column) | LP(index) | LP(value))[0..32]
 *     token = "b<version>." base64url(first `bits` bits of T, unused low bits 0)
 */
import { encodeParts } from './context.ts';
import type { DataKey } from './data-key.ts';

export type Normalise = 'digits' | 'alnum';

export interface IndexPlace {
  readonly tenant: string;
  readonly table: string;
  readonly column: string;
  readonly index: string;
  /** 1 … 256 */
  readonly bits: number;
}

const indexLabel = Buffer.from('fe1/bidx\0', 'latin1');

/** `digits` keeps ASCII 0-9; `alnum` keeps ASCII letters and digits, in upper case; otherwise unchanged. */
export function normalise(how: Normalise | undefined, value: string): string {
  if (how === 'digits') return value.replace(/[^0-9]/g, '');
  if (how === 'alnum') return value.replace(/[^0-9A-Za-z]/g, '').toUpperCase();
  return value;
}

function truncate(mac: Buffer, bits: number): Buffer {
  const bytes = mac.subarray(0, Math.ceil(bits / 8));
  const unused = bytes.length * 8 - bits;
  bytes[bytes.length - 1]! &= 0xff << unused;
  return bytes;
}

/** The token of a normalised value, or undefined when nothing is left of it. Errors: `request_invalid` over 512 bytes. */
export function indexToken(key: DataKey, version: number, place: IndexPlace, normalised: string): string | undefined {
  if (normalised === '') return undefined;
  const what = encodeParts(
    [place.tenant, 'tenant'],
    [place.table, 'context.table'],
    [place.column, 'context.column'],
    [place.index, 'index'],
    [normalised, 'value'],
  );
  const mac = key.indexHmac(indexLabel, what);
  return `b${version}.${truncate(mac.subarray(0, 32), place.bits).toString('base64url')}`;
}
