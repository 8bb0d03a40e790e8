/**
 * What may be sealed as a new value, and the blind index tokens beside it. The API and the job that re-encrypts both ask
 * here. A value that stands sealed already is never refused: what is stored opens and is re-encrypted for ever. Where it has
 * no token by today's rule it gets none, and no search finds it.
 */
import { plaintextBytesMax } from '../crypto/aead.ts';
import { indexToken, isAscii, normalise, type Normalise } from '../crypto/blind-index.ts';
import { isContextPart } from '../crypto/context.ts';
import type { DataKey } from '../crypto/data-key.ts';
import { findIndexes, type KeyVersion } from '../keys/version.ts';
import { Unsealable, type Place } from './place.ts';

function notAscii(family: string, what: string): Unsealable {
  const detail =
    `${what} holds letters or digits outside ASCII, which class ${family} would lose when it compares: write them in ` +
    'ASCII, or set "nonAscii": "fold" for the class, which counts from its next key version.';
  return new Unsealable('value_not_ascii', detail);
}

/** What counts of a text that somebody asks with. Errors: Unsealable where something of it would be lost. */
export function getNormal(how: Normalise | undefined, family: string, text: string, what: string): string {
  const normal = normalise(how, text);
  if (normal === undefined) throw notAscii(family, what);
  return normal;
}

/** Why the text cannot be sealed as a new value; `indexed`: it gets tokens. */
export function findValueProblem(
  { family, normalise: how }: Pick<KeyVersion, 'family' | 'normalise'>,
  indexed: boolean,
  text: string,
): Unsealable | undefined {
  if (!text.isWellFormed()) return new Unsealable('value_invalid', 'value contains a lone surrogate.');
  if (Buffer.byteLength(text, 'utf8') > plaintextBytesMax) {
    return new Unsealable('value_invalid', `value is longer than ${plaintextBytesMax} bytes.`);
  }
  if (!indexed && isAscii(text)) return undefined; // nothing that a rule could lose, and no token to be made
  const normal = normalise(how, text);
  if (normal === undefined) return notAscii(family, 'value');
  if (!indexed || isContextPart(normal)) return undefined;
  return new Unsealable('value_not_indexable', 'value is longer than 512 bytes, and its column has a blind index.');
}

/** Errors: Unsealable, unless the text can be sealed as a new value of the column. */
export function assertValue(
  version: KeyVersion,
  { table, column }: Pick<Place, 'table' | 'column'>,
  text: string,
): void {
  const problem = findValueProblem(version, findIndexes(version, table, column).length > 0, text);
  if (problem !== undefined) throw problem;
}

/** The tokens to store beside an envelope, by index name; null where nothing of the value can be compared. */
export function makeTokens(
  key: DataKey,
  version: KeyVersion,
  { tenant, table, column }: Omit<Place, 'row'>,
  value: string,
): Map<string, string | null> {
  const indexes = findIndexes(version, table, column);
  const normal = indexes.length === 0 ? '' : (normalise(version.normalise, value) ?? '');
  const comparable = isContextPart(normal) ? normal : '';
  return new Map(
    indexes.map(({ name, bits }) => {
      const place = { tenant, table, column, index: name, bits };
      return [name, indexToken(key, version.version, place, comparable) ?? null];
    }),
  );
}
