/** The written-down bytes of FE1 and of all that is derived from a data key, on both implementations. */
import assert from 'node:assert/strict';
import { checkCommitment, deriveSalt, open, pad, sealWithSalt, type PadTo } from '../../src/crypto/aead.ts';
import { indexToken, normalise, type Normalise } from '../../src/crypto/blind-index.ts';
import { encodeContext, encodeWrapContext, type Context } from '../../src/crypto/context.ts';
import { DataKey, rowDigest, valueDigest } from '../../src/crypto/data-key.ts';
import { envelopeDigest, formatEnvelope, parseEnvelope } from '../../src/crypto/envelope.ts';
import * as second from '../../src/crypto/webcrypto.ts';
import type { ErrorCode } from '../../src/errors.ts';
import { hex, readVectors, refuses, toKey } from './support.ts';

type FullContext = Context & { family: string; version: number };
const encode = (context: FullContext) => encodeContext(context.family, context.version, context);

interface EnvelopeVectors {
  valid: {
    name: string;
    dek: string;
    salt: string;
    context: FullContext;
    padBlock: PadTo;
    plaintextUtf8: string;
    ctx: string;
    commitment: string;
    iv: string;
    paddedPlaintext: string;
    ciphertext: string;
    tag: string;
    envelope: string;
    envelopeChars: number;
  }[];
  invalid: { name: string; dek: string; context: FullContext; envelope: string; expect: string }[];
}

interface DerivationVectors {
  dataKey: string;
  context: FullContext;
  ctx: string;
  salt: { random: string; plaintextUtf8: string; padTo: PadTo; salt: string; envelope: string };
  fingerprint: string;
  wrapContext: string;
  indexKey: string;
  index: { raw: string; normalise: Normalise; normalised: string; bits: number; token: string }[];
  rowDigest: { digestKey: string; version: number; digest: string };
  valueDigest: { requestId: string; item: number; valueUtf8: string; digest: string }[];
  envelopeRef: string;
  opens: { name: string; envelope: string; plaintextUtf8: string }[];
  refused: { name: string; envelope: string; code: ErrorCode }[];
}

describe('crypto: envelope vectors', () => {
  const { valid, invalid } = readVectors<EnvelopeVectors>('fe1-envelope-vectors.json');

  it('are all there', () => assert.deepEqual([valid.length, invalid.length], [10, 15]));

  for (const vector of valid) {
    it(`${vector.name}: node:crypto`, () => {
      const { family, version } = vector.context;
      const ctx = encode(vector.context);
      assert.equal(ctx.toString('hex'), vector.ctx);
      const padded = pad(vector.plaintextUtf8, vector.padBlock);
      assert.equal(padded.toString('hex'), vector.paddedPlaintext);
      const key = toKey(vector.dek);
      const envelope = sealWithSalt(key, family, version, ctx, padded, hex(vector.salt));
      assert.equal(formatEnvelope(envelope), vector.envelope);
      assert.equal(vector.envelope.length, vector.envelopeChars);
      const parsed = parseEnvelope(vector.envelope);
      assert.deepEqual(
        [parsed.salt, parsed.commitment, parsed.ciphertext, parsed.tag].map((bytes) => bytes.toString('hex')),
        [vector.salt, vector.commitment, vector.ciphertext, vector.tag],
      );
      assert.equal(checkCommitment(key, parsed, ctx), true);
      assert.equal(open(key, parsed, ctx), vector.plaintextUtf8);
    });

    it(`${vector.name}: @peculiar/webcrypto`, async () => {
      const { family, version } = vector.context;
      const ctx = encode(vector.context);
      const sealed = await second.seal(hex(vector.dek), ctx, hex(vector.paddedPlaintext), hex(vector.salt));
      assert.equal(formatEnvelope({ family, version, ...sealed }), vector.envelope);
      const opened = await second.open(hex(vector.dek), ctx, parseEnvelope(vector.envelope));
      assert.equal(opened?.toString('hex'), vector.paddedPlaintext);
    });
  }

  for (const vector of invalid) {
    const grammar = vector.expect === 'format' || vector.expect === 'noncanonical';
    it(`refused: ${vector.name}`, async () => {
      if (grammar) {
        refuses(() => parseEnvelope(vector.envelope), 'envelope_malformed', vector.envelope.slice(10, 40));
        return;
      }
      const [key, envelope, ctx] = [toKey(vector.dek), parseEnvelope(vector.envelope), encode(vector.context)];
      refuses(() => open(key, envelope, ctx), 'decryption_failed');
      assert.equal(checkCommitment(key, envelope, ctx), vector.expect === 'gcm');
      assert.equal(await second.open(hex(vector.dek), ctx, envelope), undefined);
    });
  }
});

describe('crypto: derivation vectors', () => {
  const vectors = readVectors<DerivationVectors>('fe1-derivation-vectors.json');
  const key = toKey(vectors.dataKey);
  const ctx = encode(vectors.context);
  const { family, version, tenant, table, column, row } = vectors.context;

  it('context and wrap context', () => {
    assert.equal(ctx.toString('hex'), vectors.ctx);
    assert.equal(encodeWrapContext(tenant, family, version).toString('base64'), vectors.wrapContext);
  });

  it('salt and envelope, on both implementations', async () => {
    const { salt } = vectors;
    const padded = pad(salt.plaintextUtf8, salt.padTo);
    const made = deriveSalt(key, hex(salt.random), padded, ctx);
    assert.equal(made.toString('hex'), salt.salt);
    assert.deepEqual(await second.deriveSalt(hex(vectors.dataKey), hex(salt.random), padded, ctx), made);
    assert.equal(formatEnvelope(sealWithSalt(key, family, version, ctx, padded, made)), salt.envelope);
    const sealed = await second.seal(hex(vectors.dataKey), ctx, padded, made);
    assert.equal(formatEnvelope({ family, version, ...sealed }), salt.envelope);
  });

  it('fingerprint and index key', () => {
    assert.equal(key.fingerprint.toString('hex'), vectors.fingerprint);
    const underIndexKey = DataKey.from(hex(vectors.indexKey)).hmac(Buffer.from('any'));
    assert.deepEqual(key.indexHmac(Buffer.from('an'), Buffer.from('y')), underIndexKey);
  });

  for (const { raw, normalise: how, normalised, bits, token } of vectors.index) {
    it(`index token ${token}`, () => {
      assert.equal(normalise(how, raw), normalised);
      assert.equal(indexToken(key, version, { tenant, table, column, index: 'eq', bits }, normalised), token);
    });
  }

  it('row, value and envelope digests', () => {
    const { digestKey, version: digestVersion, digest } = vectors.rowDigest;
    assert.equal(rowDigest(toKey(digestKey), digestVersion, table, column, row), digest);
    for (const { requestId, item, valueUtf8, digest: expected } of vectors.valueDigest) {
      assert.equal(valueDigest(key, requestId, item, ctx, valueUtf8), expected);
    }
    assert.equal(envelopeDigest(parseEnvelope(vectors.salt.envelope)), vectors.envelopeRef);
  });

  for (const { name, envelope, plaintextUtf8 } of vectors.opens) {
    it(`opens: ${name}`, () => assert.equal(open(key, parseEnvelope(envelope), ctx), plaintextUtf8));
  }
  for (const { name, envelope, code } of vectors.refused) {
    it(`refused: ${name}`, async () => {
      refuses(() => open(key, parseEnvelope(envelope), ctx), code);
      assert.equal(checkCommitment(key, parseEnvelope(envelope), ctx), true);
      // The tag is right: the second implementation gives the padded bytes, and it is the padding that is refused.
      assert.ok(await second.open(hex(vectors.dataKey), ctx, parseEnvelope(envelope)));
    });
  }
});

describe('crypto: blind index vectors', () => {
  const file = readVectors<{
    key: string;
    tenant: string;
    table: string;
    column: string;
    index: string;
    vectors: { raw: string; normalized: string; bits: number; msg: string; mac32: string; index: string }[];
  }>('fe1-blind-index-vectors.json');
  // The file names the index key itself; a data key's own is derived, so the key is put in its place.
  const key = toKey(file.key);
  const underKey = new Proxy(key, {
    get: (target, name) => (name === 'indexHmac' ? (...parts: Uint8Array[]) => target.hmac(...parts) : undefined),
  });

  for (const { raw, normalized, bits, msg, mac32, index } of file.vectors) {
    it(`${index} of ${bits} bits`, () => {
      assert.equal(normalise(/^[0-9 -]*$/.test(raw) ? 'digits' : 'alnum', raw), normalized);
      assert.equal(key.hmac(hex(msg)).subarray(0, 32).toString('hex'), mac32);
      const { tenant, table, column } = file;
      assert.equal(indexToken(underKey, 1, { tenant, table, column, index: file.index, bits }, normalized), index);
    });
  }
});
