/** A data key is 64 bytes, takes its input over, and does not print. */
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { format, inspect } from 'node:util';
import { DataKey, rowDigest, valueDigest } from '../../src/crypto/data-key.ts';
import { refuses } from './support.ts';

const raw = Buffer.from(Array.from({ length: 64 }, (_, i) => 65 + (i % 26)));
const make = () => DataKey.from(Buffer.from(raw));

describe('crypto/data-key', () => {
  it('takes exactly 64 bytes, and overwrites them whatever happens', () => {
    for (const length of [0, 1, 32, 63, 65, 128]) {
      const bytes = Buffer.alloc(length, 0x41);
      refuses(() => DataKey.from(bytes), 'internal', 'AAAA');
      assert.ok(bytes.every((byte) => byte === 0));
    }
    const bytes = new Uint8Array(raw);
    const key = DataKey.from(bytes);
    assert.ok(bytes.every((byte) => byte === 0));
    assert.deepEqual(key.hmac(Buffer.from('x')), createHmac('sha512', raw).update('x').digest());
  });

  it('does not print, whoever asks', () => {
    const key = make();
    key.indexHmac(Buffer.from('so that the index key exists'));
    const prints = [
      inspect(key),
      inspect({ key }, { depth: 9, showHidden: true }),
      inspect(key, { customInspect: false, showHidden: true, depth: 9 }),
      format('%s %o %O %j', key, key, key, key),
      JSON.stringify({ key }),
      JSON.stringify([key]),
      `${key}`, // eslint-disable-line @typescript-eslint/restrict-template-expressions
      String(key),
      Object.values({ ...key }).join(),
      new Error('x', { cause: key }).stack ?? '',
      inspect(new Error('x', { cause: key })),
    ];
    const indexKey = make().hmac(Buffer.from('fe1/index-key\0'));
    for (const printed of prints) {
      for (const secret of [raw, indexKey]) {
        for (const spelling of ['hex', 'base64', 'base64url', 'latin1'] as const) {
          assert.ok(!printed.includes(secret.toString(spelling).slice(2, 12)), 'the key was printed');
        }
        assert.ok(!printed.includes([...secret.subarray(0, 4)].join(', ')), 'the key was printed');
      }
    }
    assert.deepEqual([`${prints[0]}`, prints[4], prints[6]], ['[DataKey]', '{"key":"[DataKey]"}', '[DataKey]']);
  });

  it('gives MACs over the parts in order, as one message', () => {
    const key = make();
    assert.deepEqual(key.hmac(Buffer.from('ab'), Buffer.from(''), Buffer.from('c')), key.hmac(Buffer.from('abc')));
    assert.equal(key.hmac().length, 64);
    assert.equal(key.fingerprint.length, 16);
    assert.notDeepEqual(key.indexHmac(Buffer.from('abc')), key.hmac(Buffer.from('abc')));
    assert.deepEqual(key.indexHmac(Buffer.from('abc')), make().indexHmac(Buffer.from('abc')));
  });

  it('makes digests that depend on every part', () => {
    const key = make();
    const row = (...parts: [string, string, string]) => rowDigest(key, 1, ...parts);
    const rows = [row('t', 'c', 'r'), row('tc', '', 'r'), row('t', 'cr', ''), row('u', 'c', 'r'), row('t', 'c', 's')];
    assert.equal(new Set(rows).size, rows.length);
    assert.match(rows[0]!, /^1\.[\w-]{22}$/);
    const ctx = Buffer.from('ctx');
    const value = (request: string, item: number, context: Buffer, text: string) =>
      valueDigest(key, request, item, context, text);
    const values = [
      value('a', 0, ctx, 'v'),
      value('b', 0, ctx, 'v'),
      value('a', 1, ctx, 'v'),
      value('a', 0, Buffer.from('cty'), 'v'),
      value('a', 0, ctx, 'w'),
    ];
    assert.equal(new Set(values).size, values.length);
    assert.match(values[0]!, /^value:[\w-]{22}$/);
    refuses(() => row('t', 'c', '\ud800'), 'request_invalid');
  });
});
