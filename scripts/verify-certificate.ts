/**
 * node scripts/verify-certificate.ts FILE [PUBLICKEY]
 *
 * Verifies the certificate of a destroyed key version, offline and with nothing but Node: this file can be taken along. FILE is
 * what `npm run keys -- certificate` or GET …/certificate answers; PUBLICKEY is the Ed25519 key that signs checkpoints, 32 bytes
 * in base64, from somebody you trust. It then prints what was signed. Without PUBLICKEY the file's own key is used, which proves only that the file is whole.
 */
import { createHash, createPublicKey, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';

type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json };

/** RFC 8785: members in the order of their UTF-16 code units; numbers and texts are as ECMAScript writes them. */
function canonical(value: Json): string {
  if (Array.isArray(value)) return `[${value.map((each: Json) => canonical(each)).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1));
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`).join(',')}}`;
}

const digest = (section: Json) => createHash('sha256').update(canonical(section)).digest('base64url');

function fail(sentence: string): never {
  process.stderr.write(`NOT VALID: ${sentence}\n`);
  process.exit(1);
}

function parse(text: string, what: string): Record<string, Json> {
  try {
    const value = JSON.parse(text) as Json;
    canonical(value); // what is nested too deeply for that is no certificate either
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, Json>;
  } catch {
    // told below
  }
  return fail(`${what} is not a JSON object.`);
}

function readFile(file: string): Record<string, Json> {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    return fail(`${file} cannot be read.`);
  }
  return parse(text, file);
}

const head = ['format', 'family', 'version', 'destroyedAt', 'carriedOutBy'];

/** Sections that are not what the certificate itself says of them: changed, added or taken away. */
function listChanged(body: Record<string, Json>): string[] {
  const { digests, ...rest } = body;
  const told = (digests ?? {}) as Record<string, Json>;
  const sections: Record<string, Json> = { head: Object.fromEntries(head.map((name) => [name, body[name] ?? null])) };
  for (const [name, section] of Object.entries(rest)) if (!head.includes(name)) sections[name] = section;
  const names = new Set([...Object.keys(told), ...Object.keys(sections)]);
  return [...names].filter((name) => sections[name] === undefined || told[name] !== digest(sections[name])).sort();
}

/** Base64 as it is written, and not only as it can be read. */
function decode(text: string, length: number, what: string): Buffer {
  const bytes = Buffer.from(text, 'base64');
  return bytes.length === length && bytes.toString('base64') === text
    ? bytes
    : fail(`${what} is not ${length} bytes in base64.`);
}

function isSigned(text: string, publicKey: string, signature: string): boolean {
  const bytes = decode(publicKey, 32, 'the public key');
  const der = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), bytes]);
  const key = createPublicKey({ key: der, format: 'der', type: 'spki' });
  return verify(null, Buffer.from(text), key, decode(signature, 64, 'the signature'));
}

const [file, given] = process.argv.slice(2);
if (file === undefined) {
  process.stderr.write('Usage: node scripts/verify-certificate.ts FILE [PUBLICKEY]\n');
  process.exit(2);
}
const { certificate: text, signature, publicKey: own } = readFile(file);
if (typeof text !== 'string') fail('the file has no certificate.');
const body = parse(text, 'the certificate');
if (body.format !== 'fieldkeep-certificate/1') fail('its format is not fieldkeep-certificate/1.');
if (typeof signature !== 'string' || typeof own !== 'string') fail('the certificate is not signed yet.');
if (given !== undefined && !Buffer.from(given, 'base64').equals(Buffer.from(own, 'base64'))) {
  fail('it is signed by another key than the one you gave.');
}
const changed = listChanged(body);
if (!isSigned(text, own, signature)) {
  const respelled = 'Its text was put in another order, spaced otherwise, or says something twice';
  const rest = 'its sections agree with their digests: both were changed, or another key signed it';
  const where =
    changed.length > 0 ? `Changed: ${changed.join(', ')}` : canonical(body) === text ? `But ${rest}` : respelled;
  fail(`the signature does not fit. ${where}.`);
}
if (changed.length > 0) fail(`what was signed contradicts itself: ${changed.join(', ')}.`);
const { family, version, destroyedAt } = body;
process.stdout.write(
  `VALID: version ${JSON.stringify(version)} of family ${canonical(family!)} was destroyed at ${canonical(destroyedAt!)}.\n` +
    `Signed by ${own}${given === undefined ? ': make sure that this is the key of your audit log' : ''}.\n` +
    'What it says, section by section:\n' +
    Object.entries(body)
      .filter(([name]) => name !== 'digests' && !head.includes(name))
      .map(([name, section]) => `  ${name}: ${canonical(section)}\n`)
      .join(''),
);
