/**
 * Envelopes that another implementation made once, from the specification alone. They must open for ever: when this test
 * fails the code is wrong, and the file stays as it is.
 */
import assert from 'node:assert/strict';
import { checkCommitment, open, pad, sealWithSalt, type PadTo } from '../../src/crypto/aead.ts';
import { encodeContext, type Context } from '../../src/crypto/context.ts';
import { formatEnvelope, parseEnvelope } from '../../src/crypto/envelope.ts';
import * as second from '../../src/crypto/webcrypto.ts';
import { hex, readVectors, refuses, toKey } from './support.ts';

interface Frozen {
  name: string;
  dataKey: string;
  context: Context;
  plaintext: string;
  padTo: PadTo;
  envelope: string;
}

describe('crypto: frozen envelopes', () => {
  const { envelopes } = readVectors<{ envelopes: Frozen[] }>('envelopes.json');

  it('cover every padTo', () => {
    assert.deepEqual([...new Set(envelopes.map((each) => each.padTo))].sort(), [16, 32, 48, 64]);
    assert.equal(envelopes.length, 16);
  });

  for (const { name, dataKey, context, plaintext, padTo, envelope: text } of envelopes) {
    it(name, async () => {
      const envelope = parseEnvelope(text);
      assert.equal(formatEnvelope(envelope), text);
      const { family, version } = envelope;
      const ctx = encodeContext(family, version, context);
      const key = toKey(dataKey);
      assert.equal(open(key, envelope, ctx), plaintext);
      assert.equal(checkCommitment(key, envelope, ctx), true);
      const padded = pad(plaintext, padTo);
      assert.deepEqual(await second.open(hex(dataKey), ctx, envelope), padded);
      assert.equal(formatEnvelope(sealWithSalt(key, family, version, ctx, padded, envelope.salt)), text);
      const elsewhere = encodeContext(family, version, { ...context, row: `${context.row.slice(0, 500)}0` });
      refuses(() => open(key, envelope, elsewhere), 'decryption_failed');
    });
  }
});
