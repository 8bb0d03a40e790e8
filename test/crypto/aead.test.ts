/** Sealing and opening, held as properties: what was sealed opens there and nowhere else. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { checkCommitment, derive, encryptGcm, open, pad, seal, sealWithSalt, unpad } from '../../src/crypto/aead.ts';
import { encodeContext } from '../../src/crypto/context.ts';
import { DataKey } from '../../src/crypto/data-key.ts';
import { formatEnvelope, parseEnvelope, type Envelope } from '../../src/crypto/envelope.ts';
import * as second from '../../src/crypto/webcrypto.ts';
import { context, family, keyBytes, padTo, refuses, text, version } from './support.ts';

const key = DataKey.from(Buffer.alloc(64, 7));
const place = { tenant: 'acme', table: 'demo.employees', column: 'ssn', row: '17' };
const ctx = encodeContext('ssn', 4, place);

function flip(envelope: Envelope, bit: number): Envelope {
  const text = formatEnvelope(envelope);
  const head = text.lastIndexOf('.') + 1;
  const body = Buffer.from(text.slice(head), 'base64url');
  body[bit >> 3]! ^= 1 << (bit & 7);
  return parseEnvelope(text.slice(0, head) + body.toString('base64url'));
}

/** An envelope of any padded bytes, with a tag that is right. */
const forge = (padded: Buffer) => sealWithSalt(key, 'ssn', 4, ctx, padded, Buffer.alloc(16, 1));

describe('crypto/aead', () => {
  it('opens what it sealed, through the text, and so does the second implementation', async () => {
    await fc.assert(
      fc.asyncProperty(
        keyBytes,
        family,
        version,
        context,
        text(200),
        padTo,
        async (bytes, name, n, where, value, to) => {
          const sealed = encodeContext(name, n, where);
          const own = DataKey.from(Buffer.from(bytes));
          const envelope = parseEnvelope(formatEnvelope(seal(own, name, n, sealed, value, to)));
          assert.equal(envelope.ciphertext.length % to, 0);
          assert.ok(envelope.ciphertext.length - Buffer.byteLength(value) <= to);
          assert.equal(checkCommitment(own, envelope, sealed), true);
          assert.equal(open(own, envelope, sealed), value);
          const padded = await second.open(bytes, sealed, envelope);
          assert.deepEqual(padded, pad(value, to));
          const again = await second.seal(bytes, sealed, padded, envelope.salt);
          assert.equal(formatEnvelope({ family: name, version: n, ...again }), formatEnvelope(envelope));
        },
      ),
    );
  });

  it('opens what the second implementation sealed', async () => {
    await fc.assert(
      fc.asyncProperty(keyBytes, context, text(200), padTo, async (bytes, where, value, to) => {
        const sealed = encodeContext('ssn', 1, where);
        const made = await second.seal(bytes, sealed, pad(value, to), Buffer.alloc(16, 3));
        assert.equal(open(DataKey.from(Buffer.from(bytes)), { family: 'ssn', version: 1, ...made }, sealed), value);
      }),
    );
  });

  it('refuses every single flipped bit of the body', async () => {
    const envelope = seal(key, 'ssn', 4, ctx, '536-22-1234', 16);
    for (let bit = 0; bit < 80 * 8; bit += 1) {
      const damaged = flip(envelope, bit);
      refuses(() => open(key, damaged, ctx), 'decryption_failed');
      assert.equal(checkCommitment(key, damaged, ctx), bit >= 48 * 8, 'the commitment covers key and context');
    }
    for (const bit of [0, 200, 400, 600]) {
      assert.equal(await second.open(Buffer.alloc(64, 7), ctx, flip(envelope, bit)), undefined);
    }
  });

  it('refuses a flipped bit of any value', () => {
    fc.assert(
      fc.property(text(100), padTo, fc.nat(), (value, to, at) => {
        const envelope = seal(key, 'ssn', 4, ctx, value, to);
        const damaged = flip(envelope, at % ((64 + envelope.ciphertext.length) * 8));
        refuses(() => open(key, damaged, ctx), 'decryption_failed');
      }),
    );
  });

  it('refuses another context, version, family or key, whichever part changed', () => {
    const other = fc.record({ family, version, where: context, bytes: keyBytes });
    const part = fc.constantFrom('tenant', 'table', 'column', 'row', 'family', 'version', 'key');
    fc.assert(
      fc.property(other, other, part, text(40), (one, two, changed, value) => {
        const own = DataKey.from(Buffer.from(one.bytes));
        const envelope = seal(
          own,
          one.family,
          one.version,
          encodeContext(one.family, one.version, one.where),
          value,
          16,
        );
        const name = changed === 'family' ? two.family : one.family;
        const n = changed === 'version' ? two.version : one.version;
        const where = changed in one.where ? { ...one.where, [changed]: two.where[changed as 'row'] } : one.where;
        const another = DataKey.from(Buffer.from(changed === 'key' ? two.bytes : one.bytes));
        const changedCtx = encodeContext(name, n, where);
        const same =
          changedCtx.equals(encodeContext(one.family, one.version, one.where)) &&
          another.fingerprint.equals(own.fingerprint);
        fc.pre(!same);
        refuses(() => open(another, envelope, changedCtx), 'decryption_failed');
        assert.equal(checkCommitment(another, envelope, changedCtx), false);
      }),
      { numRuns: 300 },
    );
  });

  it('pads to the smallest multiple that leaves room for the mark', () => {
    const sizes = [
      [0, 16, 16],
      [15, 16, 16],
      [16, 16, 32],
      [47, 48, 48],
      [48, 48, 96],
      [16_384, 16, 16_400],
      [16_384, 32, 16_416],
      [16_384, 48, 16_416],
      [16_384, 64, 16_448],
    ] as const;
    for (const [length, to, padded] of sizes) {
      const value = 'x'.repeat(length);
      const envelope = parseEnvelope(formatEnvelope(seal(key, 'ssn', 4, ctx, value, to)));
      assert.equal(envelope.ciphertext.length, padded);
      assert.equal(open(key, envelope, ctx), value);
    }
  });

  it('refuses values that are too long, counted in bytes, or no text', () => {
    const before = seal(key, 'ssn', 4, ctx, '€'.repeat(5461) + 'x', 16);
    assert.equal(open(key, before, ctx).length, 5462);
    const values = [
      'x'.repeat(16_385),
      '€'.repeat(5462),
      '\ud800',
      'a\udc00b',
      '\udc00\ud800',
      `${'x'.repeat(9)}\udbff`,
    ];
    for (const value of values) refuses(() => seal(key, 'ssn', 4, ctx, value, 16), 'request_invalid', value);
  });

  it('keeps every text as it is: BOM, NUL, combining marks, what looks like padding', () => {
    for (const value of ['\ufeff1', '\ufeff', '1\0\0', '\0', '\u0080', '\u0080\0', 'e\u0301', '\u{10ffff}', '\uffff']) {
      assert.equal(open(key, seal(key, 'ssn', 4, ctx, value, 16), ctx), value);
    }
  });

  it('strips padding of any length and refuses any other form of it, with the same error', () => {
    assert.equal(
      open(key, forge(Buffer.concat([Buffer.from('ab\x80', 'latin1'), Buffer.alloc(1000 * 16 - 3)])), ctx),
      'ab',
    );
    const bad = ['00', '61', '81', '6180ff', 'ff80', 'c08080', 'eda08080', 'f490808080', 'e28280', 'c380'];
    for (const start of bad) {
      const padded = Buffer.alloc(16);
      padded.write(start, 'hex');
      refuses(() => open(key, forge(padded), ctx), 'decryption_failed');
      assert.equal(open(key, forge(pad('after', 16)), ctx), 'after', 'nothing stays in the decoder');
    }
    const long = Buffer.alloc(16_448, 0x61);
    long[16_384] = 0x80;
    assert.equal(unpad(long.fill(0, 16_385)).length, 16_384);
    refuses(
      () => open(key, forge(Buffer.alloc(16_448, 0x61).fill(0x80, 16_385).fill(0, 16_386)), ctx),
      'decryption_failed',
    );
  });

  it('has one error for every failure', () => {
    const envelope = seal(key, 'ssn', 4, ctx, 'secret', 16);
    const elsewhere = encodeContext('ssn', 4, { ...place, row: '18' });
    const failures = [
      refuses(() => open(key, envelope, elsewhere), 'decryption_failed'),
      refuses(() => open(DataKey.from(Buffer.alloc(64, 8)), envelope, ctx), 'decryption_failed'),
      refuses(() => open(key, flip(envelope, 630), ctx), 'decryption_failed'),
      refuses(() => open(key, forge(Buffer.alloc(16)), ctx), 'decryption_failed'),
    ];
    for (const { message, cause, extras } of failures) {
      assert.deepEqual([message, cause, extras], [failures[0]!.message, undefined, {}]);
    }
  });

  it('does not take a commitment for a tag: right commitment and tag of another key fail', () => {
    const padded = pad('secret', 16);
    const salt = Buffer.alloc(16, 9);
    const okm = derive(key, salt, ctx);
    const { ciphertext, tag } = encryptGcm(Buffer.alloc(32, 1), salt.subarray(4), ctx, padded);
    const envelope = { family: 'ssn', version: 4, salt, commitment: okm.subarray(32), ciphertext, tag };
    assert.equal(checkCommitment(key, envelope, ctx), true);
    refuses(() => open(key, envelope, ctx), 'decryption_failed');
  });

  it('never gives the same envelope twice, beyond the size of its pool of random bytes', () => {
    const texts = Array.from({ length: 1000 }, () => formatEnvelope(seal(key, 'ssn', 4, ctx, 'same', 16)));
    assert.equal(new Set(texts).size, texts.length);
    assert.equal(new Set(texts.map((each) => parseEnvelope(each).salt.toString('hex'))).size, texts.length);
  });

  it('hides the key from the salt: equal random bytes give other salts for another value, context or key', () => {
    const random = Buffer.alloc(32, 5);
    const salts = [
      [key, 'a', ctx],
      [key, 'b', ctx],
      [key, 'a', encodeContext('ssn', 5, place)],
      [DataKey.from(Buffer.alloc(64, 8)), 'a', ctx],
    ] as const;
    return Promise.all(
      salts.map(([, value, where], i) =>
        second.deriveSalt(Buffer.alloc(64, i === 3 ? 8 : 7), random, pad(value, 16), where),
      ),
    ).then((made) => assert.equal(new Set(made.map((salt) => salt.toString('hex'))).size, 4));
  });
});
