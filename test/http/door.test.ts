import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { welcome, Door } from '../../src/http/door.ts';
import { chooseMaxConnections, drain } from '../../src/http/server.ts';
import { fresh, goodToken, startTestServer, type TestServer } from './server.ts';

/** The first bytes of a ClientHello: a record header that promises more than what follows. */
const halfHello = Buffer.from('16030100c8010000c40303', 'hex');
const handshakeMaxMs = 400;

function dial(port: number, more: object = {}): Socket {
  const socket = connect({ port, host: '127.0.0.1', ...more });
  socket.on('error', () => undefined);
  return socket;
}

async function dialTls(port: number): Promise<TLSSocket> {
  const socket = connectTls({ port, host: '127.0.0.1', rejectUnauthorized: false });
  socket.on('error', () => undefined);
  await once(socket, 'secureConnect');
  return socket;
}

/** Whether the peer ended or reset the connection within `ms`. */
async function isCut(socket: Socket, ms: number): Promise<boolean> {
  socket.resume();
  const cut = new Promise<true>((resolve) =>
    socket.once('end', () => resolve(true)).once('close', () => resolve(true)),
  );
  return socket.closed || (await Promise.race([cut, sleep(ms, false)]));
}

async function until(holds: () => boolean, ms: number): Promise<void> {
  const deadline = performance.now() + ms;
  while (!holds()) {
    assert.ok(performance.now() < deadline, 'did not come in time');
    await sleep(10);
  }
}

const ask = (token: string) => `GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\n\r\n`;

async function answer(socket: Socket): Promise<string> {
  const [chunk] = (await once(socket, 'data')) as [Buffer];
  return chunk.toString();
}

describe('http/door', function () {
  this.timeout(20_000);
  let test: TestServer;

  beforeEach(async () => {
    test = await startTestServer({ maxConnections: 20, handshakeMaxMs });
  });
  afterEach(() => test.close());

  it('cuts a connection that says nothing', async () => {
    const socket = dial(test.port);
    assert.ok(await isCut(socket, 5 * handshakeMaxMs));
    await until(() => test.https.door.open === 0, 1_000);
    assert.equal(test.https.door.counters.handshakeTimeouts, 1);
  });

  it('cuts a connection that sends half a ClientHello, at once or a byte at a time', async () => {
    const whole = dial(test.port);
    whole.write(halfHello);
    const slow = dial(test.port);
    let n = 0;
    const timer = setInterval(() => slow.write(halfHello.subarray(n, ++n)), 50);
    assert.deepEqual(await Promise.all([isCut(whole, 5 * handshakeMaxMs), isCut(slow, 5 * handshakeMaxMs)]), [
      true,
      true,
    ]);
    clearInterval(timer);
    await until(() => test.https.door.open === 0, 1_000);
  });

  it('holds no socket of a client that hung up or half-closed before its handshake', async () => {
    const sockets = Array.from({ length: 10 }, () => dial(test.port, { allowHalfOpen: true }));
    await Promise.all(sockets.map((socket) => once(socket, 'connect')));
    sockets.forEach((socket, i) => {
      if (i % 3 === 0) socket.write(halfHello);
      if (i % 2 === 0) socket.end();
      else socket.destroy();
    });
    await until(() => test.https.door.open === 0, 5 * handshakeMaxMs);
    assert.equal(await new Promise((resolve) => test.server.getConnections((_, count) => resolve(count))), 0);
  });

  it('cuts whoever sent no HTTP and does not hang up', async () => {
    const socket = connectTls({
      port: test.port,
      host: '127.0.0.1',
      rejectUnauthorized: false,
      allowHalfOpen: true,
    } as object);
    socket.on('error', () => undefined);
    await once(socket, 'secureConnect');
    socket.write('nonsense\r\n\r\n');
    assert.match(await answer(socket), /^HTTP\/1\.1 400 /);
    await until(() => test.https.door.open === 0, 3_000);
    socket.destroy();
  });

  it('leaves a connection alone once its handshake is finished', async () => {
    const socket = await dialTls(test.port);
    await sleep(2 * handshakeMaxMs);
    socket.write(ask(goodToken));
    assert.match(await answer(socket), /^HTTP\/1\.1 200 /);
    socket.destroy();
  });

  it('closes the oldest stranger for the next connection, never one that was let in', async () => {
    test.operate = () => fresh({ ok: true });
    const friend = await dialTls(test.port);
    friend.write(ask(goodToken));
    assert.match(await answer(friend), /^HTTP\/1\.1 200 /);
    const stranger = await dialTls(test.port);
    stranger.write(ask('bad'));
    assert.match(await answer(stranger), /^HTTP\/1\.1 401 /);
    const silent = Array.from({ length: 40 }, () => dial(test.port));
    assert.ok(await isCut(stranger, 2_000));
    const late = await dialTls(test.port); // gets in although the strangers are more than there is room for
    late.write(ask(goodToken));
    assert.match(await answer(late), /^HTTP\/1\.1 200 /);
    friend.write(ask(goodToken));
    assert.match(await answer(friend), /^HTTP\/1\.1 200 /);
    assert.ok(test.https.door.open <= 20);
    assert.ok(test.https.door.counters.evicted > 0);
    for (const socket of [...silent, friend, late]) socket.destroy();
  });

  it('refuses the next connection when everybody inside was let in', async () => {
    const inside = await Promise.all(Array.from({ length: 20 }, () => dialTls(test.port)));
    for (const socket of inside) {
      socket.write(ask(goodToken));
      await answer(socket);
    }
    assert.ok(await isCut(dial(test.port), 2_000));
    assert.equal(test.https.door.counters.refused, 1);
    inside[0]!.destroy();
    await until(() => test.https.door.open === 19, 2_000);
    const next = await dialTls(test.port);
    next.write(ask(goodToken));
    assert.match(await answer(next), /^HTTP\/1\.1 200 /);
    for (const socket of [...inside, next]) socket.destroy();
  });

  it('drains in its time with silent, half-spoken and idle connections open', async () => {
    test.operate = () => fresh({ ok: true });
    const idle = await dialTls(test.port);
    idle.write(ask(goodToken));
    await answer(idle);
    const halfHeader = await dialTls(test.port);
    halfHeader.write('GET / HTTP/1.1\r\nHo');
    const known = await dialTls(test.port);
    known.write(ask(goodToken));
    await answer(known);
    known.write('GET /v1/whoami HTTP/1.1\r\nHo');
    const others = [dial(test.port), dial(test.port), await dialTls(test.port)];
    others[1]!.write(halfHello);
    const startedAt = performance.now();
    await drain(test.https, test.edge, { deadlineMs: 2_000 });
    assert.ok(performance.now() - startedAt < 3_000);
    for (const socket of [idle, halfHeader, known, ...others]) assert.ok(await isCut(socket, 500));
  });

  it('answers during the lame-duck time, and ends each connection with its answer', async () => {
    test.operate = () => fresh({ ok: true });
    const kept = await dialTls(test.port);
    kept.write(ask(goodToken));
    assert.doesNotMatch(await answer(kept), /Connection: close/i);
    const drained = drain(test.https, test.edge, { lameDuckMs: 500, deadlineMs: 3_000 });
    await sleep(100);
    kept.write(ask(goodToken));
    assert.match(await answer(kept), /^HTTP\/1\.1 200 .*Connection: close/is);
    assert.ok(await isCut(kept, 1_000));
    const asked = await test.ask({ path: '/v1/whoami' }); // the port is open still
    assert.equal(asked.status, 200);
    assert.equal(asked.headers.connection, 'close');
    await drained;
    await assert.rejects(test.ask({ path: '/v1/whoami' }));
  });

  it('guards a server without TLS', async () => {
    const server = createServer((socket) => socket.on('error', () => undefined));
    const door = new Door(server, { max: 2 });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as { port: number };
    const sockets = [dial(port), dial(port)];
    await until(() => door.open === 2, 1_000);
    const third = dial(port);
    assert.ok(await isCut(sockets[0]!, 1_000));
    assert.equal(door.counters.evicted, 1);
    door.cutAll();
    for (const socket of [sockets[1]!, third]) assert.ok(await isCut(socket, 1_000));
    welcome(third); // a socket that no door knows
    server.close();
  });

  it('leaves descriptors for the database, Vault and the policy', () => {
    assert.equal(chooseMaxConnections(undefined, 256), 128);
    assert.equal(chooseMaxConnections(undefined, 1_048_576), 10_000);
    assert.equal(chooseMaxConnections(500, 1_024), 500);
    assert.throws(() => chooseMaxConnections(1_000, 1_024), /1000 connections need 1128 file descriptors/);
    assert.throws(() => chooseMaxConnections(undefined, 130), /raise it \(ulimit -n\)/);
    assert.ok(chooseMaxConnections(undefined) > 16);
  });
});
