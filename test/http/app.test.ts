import assert from 'node:assert/strict';
import { connect } from 'node:tls';
import { setTimeout as sleep } from 'node:timers/promises';
import { errorCodes, FieldkeepError } from '../../src/errors.ts';
import { statuses } from '../../src/http/problem.ts';
import { routes } from '../../src/http/routes.ts';
import { drain } from '../../src/http/server.ts';
import { fresh, principal, startTestServer, type TestServer } from './server.ts';

const secret = '078-05-1120';
const context = { table: 'demo.employees', column: 'ssn', row: '1' };
const encrypt = { class: 'ssn', value: secret, context };
const decrypt = { envelope: 'fe1.ssn.1.AAAA', context };

describe('http/app', () => {
  let test: TestServer;
  before(async () => {
    test = await startTestServer();
  });
  beforeEach(() => {
    test.operate = () => fresh({ ok: true });
    test.refuse = () => Promise.resolve();
    for (const list of [test.logged, test.refused, test.calls, test.obstacles]) list.length = 0;
  });
  afterEach(() => {
    assert.ok(!test.logged.join('').includes(secret), 'a value in the log');
  });
  after(() => test.close());

  it('hands a request to its operation and its result to the caller', async () => {
    test.operate = () => fresh({ envelope: 'fe1.x' }, { status: 202, location: '/v1/rotations/7' });
    const headers = { 'idempotency-key': 'k1', 'x-request-id': 'mine-1' };
    const answer = await test.ask({ path: '/v1/keys/ssn/rotate', body: { reason: 'quarter' }, headers });
    assert.equal(answer.status, 202);
    assert.equal(answer.headers.location, '/v1/rotations/7');
    assert.deepEqual(answer.body, { envelope: 'fe1.x' });
    const { operation, call } = test.calls[0]!;
    assert.equal(operation, 'rotate');
    assert.deepEqual({ ...call.params }, { family: 'ssn' });
    assert.deepEqual(call.body, { reason: 'quarter' });
    assert.deepEqual(call.principal, principal);
    assert.equal(call.idempotencyKey, 'k1');
    assert.match(call.requestId, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    assert.equal(answer.headers['x-request-id'], call.requestId);
    assert.ok(call.deadline > performance.now());
    assert.equal(test.refused.length, 0);
  });

  it('hands on the approval that a call is to run under', async () => {
    const path = '/v1/rotations/7/failures/waive';
    await test.ask({ path, body: { reason: 'lost' }, headers: { 'approval-id': 'a1' } });
    await test.ask({ path, body: { reason: 'lost' } });
    assert.deepEqual(
      test.calls.map(({ call }) => call.approvalId),
      ['a1', undefined],
    );
    const answer = await test.ask({ path, body: { reason: 'lost' }, headers: { 'approval-id': 'a 1' } });
    assert.equal(answer.body['code'], 'request_invalid');
  });

  it('takes no body for an empty object where a call says so, and nowhere else', async () => {
    const post = (path: string, more: object = {}) => test.ask({ method: 'POST', path, ...more });
    assert.equal((await post('/v1/rotations/7/pause')).status, 200);
    assert.equal((await post('/v1/rotations/7/pause', { body: { reason: 'x' } })).status, 200);
    assert.deepEqual(
      test.calls.map(({ call }) => call.body),
      [{}, { reason: 'x' }],
    );
    const text = { body: 'reason', headers: { 'content-type': 'text/plain' } };
    assert.equal((await post('/v1/rotations/7/pause', text)).status, 415);
    assert.equal((await post('/v1/rotations/7/pause', { body: '[]' })).status, 400);
    assert.equal((await post('/v1/rotations/7/failures/waive')).status, 415);
  });

  it('logs an allow-list: no URL, no query, no body, no header but the bounded id of the client', async () => {
    await test.ask({ path: `/v1/audit/entries?tenant=acme&limit=7`, headers: { 'x-request-id': 'mine-1' } });
    await test.ask({ path: '/livez', headers: { 'x-request-id': `${secret} ${'x'.repeat(80)}` } });
    const [line, other] = test.logged.map((text) => JSON.parse(text) as Record<string, unknown>);
    assert.deepEqual(Object.keys(line!).toSorted(), [
      ...['agent', 'clientRequestId', 'method', 'ms', 'requestId', 'route', 'status', 'tenant'],
    ]);
    assert.equal(line!['clientRequestId'], 'mine-1');
    assert.equal(line!['route'], '/v1/audit/entries');
    assert.equal(other!['clientRequestId'], undefined);
  });

  it('answers every problem code with its status, as a problem and nothing else', async () => {
    for (const code of errorCodes) {
      test.operate = () => {
        throw new FieldkeepError(code, 'Detail.', { missingScope: 'decrypt:ssn', rotationId: 'r1' });
      };
      const answer = await test.ask({ path: '/v1/decrypt', body: decrypt });
      assert.equal(answer.status, statuses[code], code);
      assert.equal(answer.headers['content-type'], 'application/problem+json');
      const { type, title, ...members } = answer.body;
      assert.equal(type, `urn:fieldkeep:problem:${code}`);
      assert.equal(typeof title, 'string');
      assert.deepEqual(members, {
        ...{ status: statuses[code], detail: 'Detail.', code, requestId: answer.headers['x-request-id'] },
        ...{ missingScope: 'decrypt:ssn', rotationId: 'r1' },
      });
      assert.equal('www-authenticate' in answer.headers, statuses[code] === 401, code);
      assert.equal('retry-after' in answer.headers, [429, 503].includes(statuses[code]), code);
    }
  });

  it('keeps the words of unknown errors to itself and logs where they came from', async () => {
    test.operate = () => {
      throw new TypeError(`cannot read ${secret}\n    at ${secret}.ts:1:1`);
    };
    const answer = await test.ask({ path: '/v1/decrypt', body: decrypt });
    assert.equal(answer.status, 500);
    assert.equal(answer.body['code'], 'internal');
    assert.ok(!answer.text.includes(secret));
    assert.match(test.logged[0]!, /TypeError.*app\.test\.ts:\d+/);
  });

  it('drops an answer that is not fresh any more', async () => {
    test.operate = () => fresh({ value: secret }, { isFresh: () => false });
    const answer = await test.ask({ path: '/v1/decrypt', body: decrypt });
    assert.equal(answer.status, 503);
    assert.equal(answer.body['code'], 'audit_unavailable');
    assert.ok(!answer.text.includes(secret));
  });

  it('authenticates before it reads a body, and leaves an entry', async () => {
    const answer = await test.ask({ path: '/v1/encrypt', body: '{', headers: { authorization: 'Bearer bad' } });
    assert.equal(answer.status, 401);
    assert.match(answer.headers['www-authenticate']!, /^Bearer/);
    const [refusal] = test.refused;
    assert.equal(refusal!.action, 'encrypt');
    assert.equal(refusal!.error.code, 'unauthenticated');
    assert.equal(refusal!.principal, undefined);
    assert.equal(refusal!.requestId, answer.headers['x-request-id']);
  });

  it('says 403 to a principal that the policy does not know, after 400', async () => {
    const headers = { authorization: 'Bearer stranger' };
    const wrong = await test.ask({ path: '/v1/encrypt', body: {}, headers });
    const right = await test.ask({ path: '/v1/encrypt', body: encrypt, headers });
    assert.deepEqual([wrong.status, right.status], [400, 403]);
    assert.equal(test.refused[1]!.principal!.agent, 'x');
    assert.equal(test.calls.length, 0);
  });

  it('answers 503 when the entry of a refusal cannot be made durable', async () => {
    test.refuse = () => Promise.reject(new FieldkeepError('audit_unavailable', 'No.'));
    const answer = await test.ask({ path: '/v1/encrypt', body: {} });
    assert.equal(answer.status, 503);
    assert.equal(answer.body['code'], 'audit_unavailable');
  });

  it('knows its paths and their methods', async () => {
    const wrong = await test.ask({ path: '/v1/encrypt', method: 'GET' });
    assert.equal(wrong.status, 405);
    assert.equal(wrong.headers.allow, 'POST');
    assert.equal(wrong.body['code'], 'method_not_allowed');
    assert.equal((await test.ask({ path: '/v1/keys', method: 'DELETE' })).headers.allow, 'GET, HEAD');
    assert.equal((await test.ask({ path: '/v1/keys', method: 'OPTIONS' })).status, 405);
    for (const path of ['/', '/v1', '/v1/encrypt/', '/V1/encrypt', '/v1/secrets', '/../etc/passwd', '/v1/keys/a/b']) {
      const answer = await test.ask({ path });
      assert.equal(answer.status, 404, path);
      assert.equal(answer.body['code'], 'not_found');
    }
    const bad = await test.ask({ path: '/v1/keys/%ff' });
    assert.equal(bad.status, 400);
    assert.equal(bad.body['code'], 'request_invalid');
    assert.equal(test.refused.length, 0);
  });

  it('reports life and readiness without credentials', async () => {
    const headers = { authorization: '' };
    assert.equal((await test.ask({ path: '/livez', headers })).status, 200);
    assert.deepEqual((await test.ask({ path: '/readyz', headers })).body, { ready: true, reasons: [], warnings: [] });
    test.obstacles.push('no active key for ssn');
    const answer = await test.ask({ path: '/readyz', headers });
    assert.equal(answer.status, 503);
    assert.deepEqual(answer.body, { ready: false, reasons: ['no active key for ssn'], warnings: [] });
  });

  it('sends helmet and no-store with every answer', async () => {
    for (const path of ['/livez', '/nowhere', '/v1/whoami', '/openapi.json']) {
      const { headers } = await test.ask({ path });
      assert.equal(headers['cache-control'], 'no-store', path);
      assert.equal(headers['x-content-type-options'], 'nosniff');
      assert.match(headers['strict-transport-security']!, /max-age=\d+/);
      assert.match(headers['content-security-policy'] as string, /default-src 'self'/);
      assert.ok(headers['x-request-id']);
      assert.ok(!('x-powered-by' in headers) && !('etag' in headers));
    }
  });

  it('answers 504 at the deadline and drops the late result', async () => {
    const slow = await startTestServer({ requestDeadlineMs: 100 });
    const late = Promise.withResolvers<void>();
    slow.operate = async () => {
      await late.promise;
      return fresh({ value: secret });
    };
    const answer = await slow.ask({ path: '/v1/decrypt', body: decrypt });
    late.resolve();
    await sleep(20);
    assert.equal(answer.status, 504);
    assert.equal(answer.body['code'], 'deadline_exceeded');
    assert.equal(slow.logged.length, 1);
    await slow.close();
  });

  it('stops waiting for a body that does not come, with an entry', async () => {
    const slow = await startTestServer({ requestDeadlineMs: 100 });
    const socket = connect({ port: slow.port, rejectUnauthorized: false });
    socket.on('error', () => undefined);
    socket.write(
      'POST /v1/encrypt HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good-token\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{',
    );
    const [chunk] = await new Promise<Buffer[]>((resolve) => socket.once('data', (data: Buffer) => resolve([data])));
    assert.match(chunk!.toString(), /^HTTP\/1\.1 504 /);
    assert.equal(slow.refused[0]!.error.code, 'deadline_exceeded');
    socket.destroy();
    await slow.close();
  });

  it('writes no answer and no entry for a client that left', async () => {
    const socket = connect({ port: test.port, rejectUnauthorized: false });
    socket.on('error', () => undefined);
    socket.write(
      'POST /v1/encrypt HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good-token\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{',
    );
    await sleep(50);
    socket.destroy();
    await sleep(50);
    assert.equal(test.refused.length, 0);
    assert.match(test.logged[0]!, /aborted/);
  });

  it('answers what is not HTTP with a problem', async () => {
    const long = `GET / HTTP/1.1\r\nHost: x\r\nX-Long: ${'x'.repeat(20_000)}\r\n\r\n`;
    for (const [text, status] of [
      ['nonsense\r\n\r\n', 400],
      [long, 413],
    ] as const) {
      const socket = connect({ port: test.port, rejectUnauthorized: false });
      socket.on('error', () => undefined);
      socket.write(text);
      const answer = await new Promise<string>((resolve) => socket.once('data', (data) => resolve(String(data))));
      assert.match(answer, new RegExp(`^HTTP/1.1 ${status} `));
      assert.match(answer, /application\/problem\+json/);
      socket.destroy();
    }
  });

  it('speaks TLS 1.3 only', async () => {
    const refused = await new Promise((resolve) => {
      const socket = connect({ port: test.port, rejectUnauthorized: false, maxVersion: 'TLSv1.2' });
      socket.on('error', resolve).on('secureConnect', () => resolve(undefined));
    });
    assert.ok(refused instanceof Error);
  });

  it('drains: answers what is in flight, then nothing is open', async () => {
    const other = await startTestServer();
    const started = Promise.withResolvers<void>();
    other.operate = async () => {
      started.resolve();
      await sleep(150);
      return fresh({ ok: true });
    };
    const pending = other.ask({ path: '/v1/decrypt', body: decrypt });
    await started.promise;
    const drained = drain(other.https, other.edge, { deadlineMs: 5_000 });
    const answer = await pending;
    assert.equal(answer.status, 200);
    assert.equal(answer.headers.connection, 'close');
    await drained;
    await assert.rejects(other.ask({ path: '/livez' }));
  });

  it('cuts what outlives the deadline of a drain', async () => {
    const other = await startTestServer();
    const started = Promise.withResolvers<void>();
    other.operate = () => {
      started.resolve();
      return new Promise(() => undefined);
    };
    const pending = assert.rejects(other.ask({ path: '/v1/decrypt', body: decrypt }));
    await started.promise;
    await drain(other.https, other.edge, { deadlineMs: 100 });
    await pending;
  });

  it('has one action and one operation a route', () => {
    assert.equal(new Set(routes.map(({ operation }) => operation)).size, routes.length);
    for (const route of routes) assert.equal(route.method === 'post', route.body !== undefined);
  });
});
