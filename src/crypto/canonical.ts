/** RFC 8785 (JSON Canonicalization Scheme): one text for one value, so that it can be hashed and signed. */
import { createHash } from 'node:crypto';
import canonicalize from 'canonicalize';

/** Errors: TypeError for what has no JSON form (undefined, a lone surrogate, NaN): a mistake in our code, not in input. */
export function canonicalJson(value: unknown): string {
  const text = canonicalize(value);
  if (text === undefined) throw new TypeError('The value has no canonical JSON form.');
  return text;
}

/** Names a value by its content: base64url of SHA-256 over its canonical JSON. */
export function canonicalDigest(value: unknown): string {
  return createHash('sha256').update(canonicalJson(value)).digest('base64url');
}
