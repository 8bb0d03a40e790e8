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

/** What parsePolicy says of a text; nothing when it is right. */
export function refusalOf(text: string): PolicyError | undefined {
  try {
    parsePolicy(text);
    return undefined;
  } catch (error) {
    assert.ok(error instanceof PolicyError);
    return error;
  }
}

/** The problems of a text, as "path: message". */
export function problemsOf(text: string): string[] {
  const refusal = refusalOf(text);
  return (refusal?.problems ?? []).map(({ path, message, line }) => {
    const place = line === undefined ? path : `${path || '(file)'} (line ${line})`;
    assert.ok(refusal!.message.includes(`  ${place}: ${message}`));
    return `${path}: ${message}`;
  });
}

export const isInvalid = (error: unknown) => error instanceof FieldkeepError && error.code === 'request_invalid';
