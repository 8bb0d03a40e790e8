import assert from 'node:assert/strict';
import { startTestServer, type AskOptions, type TestServer } from './server.ts';

const secret = '078-05-1120';
const context = { table: 'demo.employees', column: 'ssn', row: '1' };
const encrypt = { class: 'ssn', value: secret, context };
const decrypt = { envelope: `fe1.ssn.1.${secret}`, context };
const reencrypt = { envelope: `fe1.ssn.1.${secret}`, context };
const match = { envelope: 'fe1.ssn.1.AAAA', context, candidate: secret };
const search = { class: 'ssn', value: secret, context: { table: 'demo.employees', column: 'ssn' } };

describe('http/body and http/schemas', () => {
  let test: TestServer;
  before(async () => {
    test = await startTestServer();
  });
  beforeEach(() => {
    for (const list of [test.logged, test.refused, test.calls]) list.length = 0;
  });
  after(() => test.close());

  /** Asks, expects the refusal and its entry, and that nothing of the value comes back or is logged. */
  async function refused(options: AskOptions, status: number, code: string, detail?: RegExp) {
    const answer = await test.ask(options);
    assert.equal(answer.status, status, answer.text);
    assert.equal(answer.body['code'], code);
    if (detail !== undefined) assert.match(String(answer.body['detail']), detail);
    assert.ok(!answer.text.includes(secret), 'a value in the answer');
    assert.ok(!test.logged.join('').includes(secret), 'a value in the log');
    assert.equal(test.calls.length, 0);
    assert.equal(test.refused.at(-1)!.error.code, code);
    assert.deepEqual(test.refused.at(-1)!.principal, { agent: 'hr-agent', tenant: 'acme', system: false });
  }
  const invalid = (path: string, body: unknown, detail?: RegExp) =>
    refused({ path, body }, 400, 'request_invalid', detail);

  it('takes every call in its single and its batch form', async () => {
    const forms: [string, object][] = [
      ['/v1/encrypt', { ...encrypt, purpose: 'onboarding' }],
      ['/v1/encrypt', { ...encrypt, value: '', context: { ...context, row: '' } }],
      ['/v1/encrypt', { ...encrypt, value: '\ufeff😀 é\t\n' }],
      ['/v1/encrypt', { items: [{ ...encrypt, ref: 'a' }, encrypt], purpose: 'onboarding' }],
      ['/v1/decrypt', { ...decrypt, view: 'last4', purpose: 'onboarding' }],
      ['/v1/decrypt', { items: [{ ...decrypt, view: 'full' }], view: 'last4', purpose: 'x' }],
      ['/v1/reencrypt', { ...reencrypt, to: { ...context, row: '2' } }],
      ['/v1/reencrypt', { items: [reencrypt] }],
      ['/v1/match', match],
      ['/v1/match', { items: Array.from({ length: 1000 }, () => match) }],
      ['/v1/search-tokens', { ...search, index: 'eq' }],
      ['/v1/keys/ssn/rotate', {}],
      ['/v1/keys/ssn/rotate', { reason: 'quarter', compromised: true, dryRun: false }],
    ];
    for (const [path, body] of forms) {
      const answer = await test.ask({ path, body });
      assert.equal(answer.status, 200, `${path} ${answer.text}`);
      assert.deepEqual(test.calls.at(-1)!.call.body, body);
    }
  });

  it('refuses unknown fields at every level, naming them', async () => {
    await invalid('/v1/encrypt', { ...encrypt, tenant: 'other' }, /unknown field tenant/);
    await invalid('/v1/encrypt', { ...encrypt, context: { ...context, app: 'x' } }, /context: unknown field app/);
    await invalid('/v1/encrypt', { items: [{ ...encrypt, view: 'full' }] }, /items\[0\]: unknown field view/);
    await invalid('/v1/decrypt', { items: [decrypt], tenant: 'x' }, /unknown field tenant/);
    await invalid('/v1/decrypt', { ...decrypt, [secret]: 1 }, /unknown field \(unnamed\)/);
    await invalid('/v1/search-tokens', { ...search, context }, /context: unknown field row/);
    await invalid('/v1/search-tokens', { items: [search] }, /expected/);
    await invalid('/v1/decrypt', { ...decrypt, ref: 'r' }, /unknown field ref/);
  });

  it('refuses wrong types and lengths, naming the path and what is expected', async () => {
    await invalid('/v1/encrypt', { ...encrypt, value: 78051120 }, /value: expected string/);
    await invalid('/v1/encrypt', { ...encrypt, context: secret }, /context: expected object/);
    await invalid('/v1/encrypt', { ...encrypt, context: { ...context, row: 1 } }, /context\.row: expected string/);
    await invalid('/v1/encrypt', { ...encrypt, value: secret.repeat(1500) }, /value: at most 16384 characters/);
    await invalid('/v1/encrypt', { ...encrypt, class: '' }, /class: at least 1/);
    await invalid('/v1/encrypt', { class: 'ssn', context }, /value: expected string/);
    await invalid('/v1/decrypt', { ...decrypt, view: secret }, /view: expected one of full, last4/);
    await invalid(
      '/v1/decrypt',
      { items: [decrypt, { ...decrypt, envelope: null }] },
      /items\[1\]\.envelope: expected/,
    );
    await invalid('/v1/decrypt', { items: [] }, /items: at least 1/);
    await invalid('/v1/decrypt', { items: {} }, /items: expected array/);
    await invalid('/v1/match', { items: Array.from({ length: 1001 }, () => match) }, /items: at most 1000 items/);
    await invalid('/v1/decrypt', { items: [{ ...decrypt, ref: 'r'.repeat(200) }] }, /items\[0\]\.ref/);
    for (const body of ['[]', '"x"', 'null', '1', 'true', '[[]]'])
      await invalid('/v1/decrypt', body, /expected object/);
  });

  it('refuses what is not JSON without quoting it', async () => {
    for (const body of [
      `{"value":"${secret}"`,
      `${secret}`,
      '{"a":1}}',
      "{'a':1}",
      '\ufeff{}',
      'NaN',
      '{"a":\u00a01}',
    ]) {
      await invalid('/v1/encrypt', body, /not JSON/);
    }
    await invalid('/v1/encrypt', '', /empty/);
    await invalid('/v1/encrypt', Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), /not UTF-8/);
    const utf16 = Buffer.from(JSON.stringify(encrypt), 'utf16le');
    await invalid('/v1/encrypt', utf16, /not JSON/);
  });

  it('refuses NUL and lone surrogates, escaped or raw, wherever they stand', async () => {
    const raw = JSON.stringify(encrypt);
    await invalid('/v1/encrypt', raw.replace(secret, `${secret}\\u0000`), /value: NUL/);
    await invalid('/v1/encrypt', raw.replace(secret, `${secret}\\ud800`), /value: .*surrogate/);
    await invalid('/v1/encrypt', raw.replace('"1"', '"\\udc00"'), /context\.row: .*surrogate/);
    await invalid('/v1/encrypt', raw.replace('demo.employees', 'demo\\u0000'), /context\.table: NUL/);
    await invalid(
      '/v1/encrypt',
      Buffer.from(raw.replace(secret, '@')).fill(0, raw.indexOf(secret), raw.indexOf(secret) + 1),
      /not JSON/,
    );
    const cesu = Buffer.concat([Buffer.from('{"value":"'), Buffer.from([0xed, 0xa0, 0x80]), Buffer.from('"}')]);
    await invalid('/v1/encrypt', cesu, /not UTF-8/);
    await invalid(
      '/v1/decrypt',
      { items: [decrypt, { ...decrypt, context: { ...context, row: '\ud800' } }] },
      /items\[1\]\.context\.row/,
    );
  });

  it('refuses keys that reach for the prototype', async () => {
    await invalid('/v1/encrypt', JSON.stringify(encrypt).replace('{', '{"__proto__":{"admin":true},'), /__proto__/);
    await invalid('/v1/encrypt', JSON.stringify(encrypt).replace('{', '{"\\u005f_proto__":1,'), /__proto__/);
    await invalid('/v1/encrypt', { ...encrypt, constructor: {} }, /unknown field constructor/);
  });

  it('bounds depth and size', async () => {
    const deep = (n: number) => `${'{"a":'.repeat(n)}1${'}'.repeat(n)}`;
    await invalid('/v1/encrypt', deep(9), /nested/);
    await invalid('/v1/encrypt', deep(100_000), /nested/);
    await invalid('/v1/encrypt', '['.repeat(500_000), /not JSON/);
    await invalid('/v1/encrypt', `${'['.repeat(500_000)}${']'.repeat(500_000)}`, /nested/);
    await refused({ path: '/v1/encrypt', body: Buffer.alloc(10 * 1_048_576, 0x20) }, 413, 'payload_too_large');
    await refused({ path: '/v1/encrypt', body: Buffer.alloc(1_048_577, 0x20) }, 413, 'payload_too_large');
    const headers = { 'transfer-encoding': 'chunked', 'content-length': [] };
    await refused({ path: '/v1/encrypt', body: Buffer.alloc(10 * 1_048_576, 0x20), headers }, 413, 'payload_too_large');
    const most = JSON.stringify(encrypt).padEnd(1_048_576);
    assert.equal((await test.ask({ path: '/v1/encrypt', body: most })).status, 200);
  });

  it('takes application/json in UTF-8 and nothing else', async () => {
    const type = (value: string) => ({ path: '/v1/encrypt', body: encrypt, headers: { 'content-type': value } });
    for (const good of ['application/json', 'Application/JSON; charset=utf-8', 'application/json;charset="UTF-8"']) {
      assert.equal((await test.ask(type(good))).status, 200, good);
    }
    test.calls.length = 0;
    const bad = [
      'text/plain',
      'application/json; charset=latin1',
      'application/jsonx',
      'application/x-www-form-urlencoded',
      '',
    ];
    for (const value of bad) await refused(type(value), 415, 'unsupported_media_type');
    const gzip = { path: '/v1/encrypt', body: encrypt, headers: { 'content-encoding': 'gzip' } };
    await refused(gzip, 415, 'unsupported_media_type');
    await refused({ path: '/v1/encrypt', method: 'POST' }, 415, 'unsupported_media_type');
  });

  it('checks parameters as strictly as bodies', async () => {
    const at = (path: string) => refused({ path }, 400, 'request_invalid');
    await at('/v1/audit/entries?ssn=1');
    await at('/v1/audit/entries?limit=0');
    await at('/v1/audit/entries?limit=1001');
    await at('/v1/audit/entries?limit=1&limit=2');
    await at('/v1/audit/entries?from=yesterday');
    await at('/v1/audit/entries?agent=%00');
    await at('/v1/audit/entries?__proto__=1');
    await at(`/v1/audit/entries?${secret}=1`);
    await at(`/v1/audit/entries?view=${secret}`);
    await at('/v1/whoami?x=1');
    await at(`/v1/keys/${'x'.repeat(257)}`);
    await at('/v1/keys/%00');
    await refused({ path: '/v1/decrypt?envelope=x', body: decrypt }, 400, 'request_invalid');
    await refused({ path: '/v1/whoami', method: 'GET', body: {} }, 400, 'request_invalid');
    await refused(
      { path: '/v1/keys/ssn/rotate', body: {}, headers: { 'idempotency-key': 'a b' } },
      400,
      'request_invalid',
    );
    const query =
      '?tenant=acme&agent=a%20b&class=ssn&view=full&action=decrypt&outcome=ok&limit=1000&from=2026-01-01T00:00:00Z';
    assert.equal((await test.ask({ path: `/v1/audit/entries${query}` })).status, 200);
    assert.equal(test.calls[0]!.call.query['agent'], 'a b');
  });
});
