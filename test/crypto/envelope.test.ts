/** One text stands for one envelope: everything else is malformed, and refused quickly. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { formatEnvelope, parseEnvelope } from '../../src/crypto/envelope.ts';
import { family, readVectors, refuses, version } from './support.ts';

const body = (bytes: number) => Buffer.alloc(bytes, 0xa5).toString('base64url');
const smallest = body(80);
const malformed = (text: string) => refuses(() => parseEnvelope(text), 'envelope_malformed', text);

describe('crypto/envelope', () => {
  it('formats what it parses and parses what it formats', () => {
    const bytes = (length: number) =>
      fc.uint8Array({ minLength: length, maxLength: length }).map((b) => Buffer.from(b));
    const envelope = fc.record(
      {
        family,
        version,
        salt: bytes(16),
        commitment: bytes(32),
        ciphertext: fc.integer({ min: 1, max: 12 }).chain((blocks) => bytes(16 * blocks)),
        tag: bytes(16),
      },
      { noNullPrototype: true },
    );
    fc.assert(
      fc.property(envelope, (made) => {
        const text = formatEnvelope(made);
        assert.deepEqual(parseEnvelope(text), made);
        assert.equal(formatEnvelope(parseEnvelope(text)), text);
      }),
    );
  });

  it('takes the edges of its grammar', () => {
    for (const head of ['fe1.ab.1', 'fe1.a0.9', 'fe1.abcdefghijklmnop.1', 'fe1.ssn.999999999']) {
      assert.equal(formatEnvelope(parseEnvelope(`${head}.${smallest}`)), `${head}.${smallest}`);
    }
    assert.equal(parseEnvelope(`fe1.ssn.1.${body(64 + 16_448)}`).ciphertext.length, 16_448);
  });

  it('refuses another head', () => {
    const heads = [
      '',
      'fe1',
      'fe1.ssn',
      'FE1.ssn.1',
      'fe2.ssn.1',
      'fe1.SSN.1',
      'fe1.Ssn.1',
      'fe1.s.1',
      'fe1.1ab.1',
      'fe1.s_n.1',
      'fe1.ßn.1',
      'fe1.abcdefghijklmnopq.1',
      'fe1..1',
      'fe1.ssn.',
      'fe1.ssn.0',
      'fe1.ssn.01',
      'fe1.ssn.+1',
      'fe1.ssn.-1',
      'fe1.ssn.1.0',
      'fe1.ssn.1e3',
      'fe1.ssn.0x1',
      'fe1.ssn.١',
      'fe1.ssn.1000000000',
      ' fe1.ssn.1',
      '\ufefffe1.ssn.1',
      'x.fe1.ssn.1',
      'fe1.ssn. 1',
      'fe1.ssn\n.1',
    ];
    for (const head of heads) malformed(`${head}.${smallest}`);
    malformed('fe1.ssn.1');
    malformed('fe1.ssn.1.');
    malformed(`fe1.ssn.1${smallest}`);
  });

  it('refuses lengths that no sealed value has', () => {
    for (const bytes of [0, 1, 63, 64, 65, 79, 81, 95, 64 + 16_447, 64 + 16_449, 64 + 16_464]) {
      malformed(`fe1.ssn.1.${body(bytes)}`);
    }
  });

  it('refuses every other spelling of the same bytes', () => {
    const text = body(96); // 96 bytes are 128 characters, none of them with unused bits
    const tight = `fe1.ssn.1.${text}`;
    parseEnvelope(tight);
    const noise = ['=', '==', '.', ' ', '\n', '\0', '\t', 'é', '*', 'A', 'AA', 'AAA', '.AAAA'];
    for (const each of noise) {
      malformed(`${tight}${each}`);
      malformed(`fe1.ssn.1.${each}${text}`);
      malformed(`fe1.ssn.1.${text.slice(0, 40)}${each}${text.slice(40)}`);
    }
    const mixed = Buffer.alloc(96, 0xfb).toString('base64url');
    assert.match(mixed, /[-_]/);
    parseEnvelope(`fe1.ssn.1.${mixed}`);
    malformed(`fe1.ssn.1.${mixed.replaceAll('-', '+').replaceAll('_', '/')}`);
  });

  it('refuses stray bits in the last character', () => {
    const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
    for (const bytes of [80, 112]) {
      const text = body(bytes); // 80 mod 3 = 2: two unused bits; 112 mod 3 = 1: four
      const unused = bytes % 3 === 2 ? 4 : 16;
      const taken = [...letters].filter((letter) => {
        const spelled = `fe1.ssn.1.${text.slice(0, -1)}${letter}`;
        try {
          parseEnvelope(spelled);
          return true;
        } catch {
          malformed(spelled);
          return false;
        }
      });
      assert.equal(taken.length, 64 / unused);
    }
  });

  it('refuses any text of a vector with one character changed, or parses it to other bytes', () => {
    const { valid } = readVectors<{ valid: { envelope: string }[] }>('fe1-envelope-vectors.json');
    const texts = valid.map(({ envelope }) => envelope);
    fc.assert(
      fc.property(
        fc.constantFrom(...texts),
        fc.nat(),
        fc.string({ minLength: 1, maxLength: 1 }),
        (text, at, letter) => {
          const place = at % text.length;
          const other = text.slice(0, place) + letter + text.slice(place + 1);
          try {
            assert.equal(formatEnvelope(parseEnvelope(other)), other);
          } catch {
            malformed(other);
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  it('refuses a huge text without decoding it', () => {
    const started = performance.now();
    malformed(`fe1.ssn.1.${'A'.repeat(50_000_000)}`);
    malformed('fe1.'.repeat(5_000_000));
    malformed(`fe1.${'a'.repeat(20_000_000)}`);
    malformed(`fe1.ssn.${'1'.repeat(20_000_000)}`);
    const milliseconds = performance.now() - started;
    assert.ok(milliseconds < 2_000, `${milliseconds} ms`);
  });
});
