/**
 * The context of an envelope is what it is for: tenant, table, column and row. It is authenticated, not encrypted (AAD):
 *
 *     LP(s) = u16(byte length of UTF-8 s) | UTF-8 s                 at most 512 bytes, big endian
 *     CTX   = "fe1" 00 | LP(family) | u32(version) | LP(tenant) | LP(table) | LP(column) | LP(row)
 *
 * Every part carries its length, so no two contexts have the same bytes. Strings with lone surrogates have no UTF-8 form
 * and are refused; nothing is normalised.
 */
import { FieldkeepError } from '../errors.ts';

export interface Context {
  readonly tenant: string;
  readonly table: string;
  readonly column: string;
  /** The key of the row as text; empty for a class that is bound to its column. */
  readonly row: string;
}

const partBytesMax = 512;

export function u16(n: number): Buffer {
  const bytes = Buffer.allocUnsafe(2);
  bytes.writeUInt16BE(n);
  return bytes;
}

export function u32(n: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(n);
  return bytes;
}

/** Whether `text` can be a part of a context. */
export function isContextPart(text: string): boolean {
  return text.isWellFormed() && Buffer.byteLength(text, 'utf8') <= partBytesMax;
}

/** Bytes of `text` as UTF-8. Errors: `request_invalid`, naming `name`, when it has none or more than 512. */
function measure(text: string, name: string): number {
  if (!text.isWellFormed()) throw new FieldkeepError('request_invalid', `${name} contains a lone surrogate.`);
  const length = Buffer.byteLength(text, 'utf8');
  if (length > partBytesMax) {
    throw new FieldkeepError('request_invalid', `${name} is longer than ${partBytesMax} bytes.`);
  }
  return length;
}

/** LP(text). Errors: `request_invalid`, naming `name`. */
export function lengthPrefixed(text: string, name: string): Buffer {
  const length = measure(text, name);
  const bytes = Buffer.allocUnsafe(2 + length);
  bytes.writeUInt16BE(length);
  bytes.write(text, 2, 'utf8');
  return bytes;
}

/** LP of every text in order, in one buffer; each comes with the name that an error gives it. */
export function encodeParts(...parts: readonly (readonly [text: string, name: string])[]): Buffer {
  let size = 0;
  for (const [text, name] of parts) size += 2 + measure(text, name);
  const bytes = Buffer.allocUnsafe(size);
  let at = 0;
  for (const [text] of parts) {
    const written = bytes.write(text, at + 2, 'utf8');
    bytes.writeUInt16BE(written, at);
    at += 2 + written;
  }
  return bytes;
}

const ctxLabel = Buffer.from('fe1\0', 'latin1');
const wrapLabel = Buffer.from('fe1/dek\0', 'latin1');

/** CTX. Errors: `request_invalid`, naming the part that is too long or not text. */
export function encodeContext(family: string, version: number, context: Context): Buffer {
  const { tenant, table, column, row } = context;
  const lengths = [
    measure(family, 'family'),
    measure(tenant, 'tenant'),
    measure(table, 'context.table'),
    measure(column, 'context.column'),
    measure(row, 'context.row'),
  ] as const;
  const bytes = Buffer.allocUnsafe(4 + 5 * 2 + 4 + lengths[0] + lengths[1] + lengths[2] + lengths[3] + lengths[4]);
  let at = ctxLabel.copy(bytes);
  const put = (text: string, length: number) => {
    at = bytes.writeUInt16BE(length, at);
    at += bytes.write(text, at, 'utf8');
  };
  put(family, lengths[0]);
  at = bytes.writeUInt32BE(version, at);
  put(tenant, lengths[1]);
  put(table, lengths[2]);
  put(column, lengths[3]);
  put(row, lengths[4]);
  return bytes;
}

/** The context that a data key is wrapped under: "fe1/dek" 00 | LP(tenant) | LP(family) | u32(version). */
export function encodeWrapContext(tenant: string, family: string, version: number): Buffer {
  return Buffer.concat([wrapLabel, lengthPrefixed(tenant, 'tenant'), lengthPrefixed(family, 'family'), u32(version)]);
}
