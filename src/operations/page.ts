/** Lists are answered in pages: what a call asks for of one, and what it is answered. */
import { FieldkeepError } from '../errors.ts';
import type { Call } from './perform.ts';

const limitDefault = 100;
/** Ids of runs and approvals, as paths and cursors have them. */
export const uuidPattern = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export function limitOf({ query }: Call): number {
  return Number(query['limit'] ?? limitDefault);
}

export function badCursor(): FieldkeepError {
  return new FieldkeepError('request_invalid', 'The cursor is not one that a page ended with.');
}

/** What to look for: one more than the page has, after the id that the page before ended with. Errors: `request_invalid`. */
export function readPage(call: Call): { readonly limit: number; readonly before?: string } {
  const { cursor } = call.query;
  if (cursor !== undefined && !uuidPattern.test(cursor)) throw badCursor();
  return { limit: limitOf(call) + 1, ...(cursor !== undefined && { before: cursor }) };
}

/** The page, and its cursor where something was found beyond it. */
export function cutPage<T>(
  call: Call,
  found: readonly T[],
  cursorOf: (last: T) => string,
): { page: readonly T[]; next: { nextCursor?: string } } {
  const page = found.slice(0, limitOf(call));
  return { page, next: found.length > page.length ? { nextCursor: cursorOf(page.at(-1)!) } : {} };
}
