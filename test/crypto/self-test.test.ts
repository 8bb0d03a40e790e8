/** The self-test passes on sound libraries and stops the start for every way in which one may be broken. */
import assert from 'node:assert/strict';
import * as engine from '../../src/crypto/webcrypto.ts';
import { selfTest, type SecondEngine } from '../../src/crypto/self-test.ts';
import { StartupError } from '../../src/errors.ts';

async function stops(broken: Partial<SecondEngine>, words: RegExp): Promise<void> {
  await assert.rejects(selfTest({ ...engine, ...broken }), (error) => {
    assert.ok(error instanceof StartupError);
    assert.match(error.message, words);
    assert.doesNotMatch(error.message, /536-22-1234|b011e8|fe1\./);
    return true;
  });
}

function flipped(bytes: Buffer): Buffer {
  const other = Buffer.from(bytes);
  other[0]! ^= 1;
  return other;
}

describe('crypto/self-test', () => {
  it('passes', () => selfTest());

  it('fails when the second implementation derives another salt', () =>
    stops({ deriveSalt: async (...args) => flipped(await engine.deriveSalt(...args)) }, /webcrypto does not make/));

  for (const part of ['salt', 'commitment', 'ciphertext', 'tag'] as const) {
    it(`fails when the second implementation seals with another ${part}`, () =>
      stops(
        {
          seal: async (...args) => {
            const sealed = await engine.seal(...args);
            return { ...sealed, [part]: flipped(sealed[part]) };
          },
        },
        /webcrypto does not make/,
      ));
  }

  it('fails when the second implementation does not open, or opens to something else', async () => {
    await stops({ open: () => Promise.resolve(undefined) }, /webcrypto does not open/);
    await stops({ open: async (...args) => flipped((await engine.open(...args))!) }, /webcrypto does not open/);
    await stops({ open: () => Promise.resolve(Buffer.alloc(0)) }, /webcrypto does not open/);
  });
});
