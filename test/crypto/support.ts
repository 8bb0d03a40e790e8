/** What the tests of crypto/ share: vectors, keys, and what is said of a refusal. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { DataKey } from '../../src/crypto/data-key.ts';
import { FieldkeepError, type ErrorCode } from '../../src/errors.ts';

const root = new URL('../../', import.meta.url);

export function readVectors<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`test/vectors/${name}`, root), 'utf8')) as T;
}

/** Vectors of others, which a checkout may not have beside it. */
export function findSharedVectors<T>(name: string): T | undefined {
  const path = fileURLToPath(new URL(`../shared/vectors/${name}`, root));
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as T) : undefined;
}

export const hex = (text: string) => Buffer.from(text, 'hex');
export const toKey = (text: string) => DataKey.from(hex(text));

/** Expects our error with this code, and that its message repeats nothing of `secrets`. */
export function refuses(run: () => unknown, code: ErrorCode, ...secrets: string[]): FieldkeepError {
  let thrown: unknown;
  try {
    run();
  } catch (error) {
    thrown = error;
  }
  assert.ok(thrown instanceof FieldkeepError, `expected ${code}, got ${thrown === undefined ? 'nothing' : 'another'}`);
  assert.equal(thrown.code, code);
  for (const secret of secrets)
    assert.ok(secret === '' || !thrown.message.includes(secret), 'the message repeats input');
  return thrown;
}

/** Strings that are text: any code points, no lone surrogates. */
export const text = (max: number) => fc.string({ unit: 'binary', maxLength: max });
export const part = text(40);
export const keyBytes = fc.uint8Array({ minLength: 64, maxLength: 64 }).map((bytes) => Buffer.from(bytes));
export const family = fc.stringMatching(/^[a-z][a-z0-9]{1,15}$/);
export const version = fc.integer({ min: 1, max: 999_999_999 });
export const padTo = fc.constantFrom(16, 32, 48, 64);
export const context = fc.record({ tenant: part, table: part, column: part, row: part });
