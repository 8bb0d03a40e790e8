/**
 * Blind index tokens, for searching equal values without opening them (design, section 7):
 *
 *     T     = HMAC-SHA-512(indexKey, "fe1/bidx" 00 | LP(tenant) | LP(table) | LP(column) | LP(index) | LP(value))[0..32]
 *     token = "b<version>." base64url(first `bits` bits of T, unused low bits 0)
 */
import { encodeParts } from './context.ts';
import type { DataKey } from './data-key.ts';

export type Normalise = 'digits' | 'alnum' | 'digits/fold' | 'alnum/fold';

export interface IndexPlace {
  readonly tenant: string;
  readonly table: string;
  readonly column: string;
  readonly index: string;
  /** 1 … 256 */
  readonly bits: number;
}

const indexLabel = Buffer.from('fe1/bidx\0', 'latin1');

const ascii = /^[\0-\x7f]*$/;

/** Whether no letter and no digit of it is outside of what every rule knows. */
export const isAscii = (text: string): boolean => ascii.test(text);

const number = /\p{N}/u;
const decimalDigit = /\p{Nd}/u;
/** Letters by their category, digits to who reads them. */
const hanNumeral = /[〇零一二三四五六七八九十百千万萬亿億兆两兩壹壱弌贰貳贰弐叁參叄参肆伍陆陸柒捌玖拾佰仟廿卅]/u;
/** Nobody knows what it stands for: not assigned, private, half a pair. */
const unclear = /[\p{Cn}\p{Co}\p{Cs}]/u;

/** The value of a decimal digit of any script: they stand in blocks of ten, each from zero on. */
function valueOf(digit: string): string {
  const code = digit.codePointAt(0)!;
  let first = code;
  while (decimalDigit.test(String.fromCodePoint(first - 1))) first -= 1;
  return String((code - first) % 10);
}

/** ASCII alone, all else dropped, whatever it says: two values that differ may come out alike. */
export function stripToAscii(how: Normalise | undefined, value: string): string {
  if (how === undefined) return value;
  return how.startsWith('digits') ? value.replace(/[^0-9]/g, '') : value.replace(/[^0-9A-Za-z]/g, '').toUpperCase();
}

/** Whether a character outside ASCII would be dropped though it counts to whoever reads the value. */
function isLost(how: Normalise, character: string): boolean {
  if (unclear.test(character)) return true;
  const plain = character.normalize('NFKC');
  const folds = how.endsWith('/fold');
  if (number.test(character) || number.test(plain)) return !(folds && decimalDigit.test(character));
  if (how.startsWith('digits')) return hanNumeral.test(plain);
  return !folds && (/[\p{L}\p{M}]/u.test(character) || /\p{L}/u.test(plain));
}

/**
 * What of a value counts when it is compared or indexed; undefined where something of it would be lost that does:
 *
 *     digits        0-9. Lost: other numbers
 *     alnum         ASCII letters in upper case, 0-9. Lost: other letters, marks and numbers
 *     digits/fold   the same, and decimal digits of every script as 0-9. Lost: numbers that are none (½, Ⅷ, 三)
 *     alnum/fold    the same, and letters and marks of every script (NFKC, in upper case). Lost: as digits/fold
 *     absent        all of it
 *
 * Punctuation, symbols and spaces are dropped, and letters of whatever script where digits alone count. Without that rule
 * "12" and "12三" would be equal. Values in ASCII come out of digits and digits/fold alike, and of alnum and alnum/fold.
 */
export function normalise(how: Normalise | undefined, value: string): string | undefined {
  if (how === undefined || isAscii(value)) return stripToAscii(how, value);
  const characters = [...value];
  if (characters.some((each) => each > '\x7f' && isLost(how, each))) return undefined;
  if (!how.endsWith('/fold')) return stripToAscii(how, value);
  const folded = characters.map((each) => (decimalDigit.test(each) ? valueOf(each) : each)).join('');
  if (how === 'digits/fold') return stripToAscii(how, folded);
  const upper = folded.normalize('NFKC').toUpperCase().normalize('NFKC');
  return upper.replace(/[^\p{L}\p{M}0-9]/gu, '');
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
