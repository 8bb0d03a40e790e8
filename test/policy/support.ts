/** What the tests of policy/ share: the shipped file, small policies with one thing changed, and their problems. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { parsePolicy, PolicyError, type Policy } from '../../src/policy/policy.ts';
import type { PolicyFile } from '../../src/policy/schema.ts';
import { FieldkeepError } from '../../src/errors.ts';

export const readText = (name: string) => readFileSync(new URL(`../../${name}`, import.meta.url), 'utf8');
export const shipped = parsePolicy(readText('keys-policy.json'));

/** The shipped file as a plain object that a test may change. */
export function shippedFile(): PolicyFile {
  return JSON.parse(readText('keys-policy.json')) as PolicyFile;
}

export function policyWith(change: (file: PolicyFile) => void): Policy {
  const file = shippedFile();
  change(file);
  return parsePolicy(JSON.stringify(file));
}

/** The problems of a text, as "path: message". */
export function problemsOf(text: string): string[] {
  try {
    parsePolicy(text);
  } catch (error) {
    assert.ok(error instanceof PolicyError);
    for (const { path, message } of error.problems)
      assert.ok(error.message.includes(`${path || '(file)'}: ${message}`));
    return error.problems.map(({ path, message }) => `${path}: ${message}`);
  }
  return [];
}

export const isInvalid = (error: unknown) => error instanceof FieldkeepError && error.code === 'request_invalid';
