/** Forces every kind of failure at Vault and looks for secrets in whatever we say, write down or store. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import { createServer as createTcpServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import { ensureTls } from '../../src/embedded/tls.ts';
import type { RootKeys } from '../../src/keys/root-keys.ts';
import { openTestService, type TestService } from '../support/service.ts';
import {
  describeVault,
  mountTransit,
  openAt,
  openVaultServer,
  type Opened,
  type VaultServer,
} from '../support/vault.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const context = { table: 'demo.employees', column: 'bank', row: '1' };
const value = 'CANARY-plaintext-91c2';

describeVault('secrets while Vault fails', function () {
  this.timeout(60_000);
  let server: VaultServer;
  let mount: string;
  let folder: string;
  let it_: TestService;
  let real: Opened;
  let token: string;
  /** What the service talks to; each failure puts another in its place. */
  const target: { rootKeys?: RootKeys } = {};
  const fakes: Server[] = [];
  /** Everything that must show up nowhere: by name, so that a failure says which. */
  const secrets = new Map<string, string>();

  before(async () => {
    server = await openVaultServer();
    mount = await mountTransit(server);
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-leak-'));
    token = (await server.call('POST', 'auth/token/create', { ttl: '1h' })).auth!['client_token'] as string;
    real = openAt(server, { mount, auth: { method: 'token', token } });
    target.rootKeys = real.rootKeys;
    const current = () => target.rootKeys!;
    const rootKeys: RootKeys = {
      kind: 'vault',
      ensureFamily: (family) => current().ensureFamily(family),
      rotate: (family) => current().rotate(family),
      makeDataKey: (family, version, ctx) => current().makeDataKey(family, version, ctx),
      unwrap: (family, wrapped, ctx) => current().unwrap(family, wrapped, ctx),
      findOldest: (family) => current().findOldest(family),
      destroyBelow: (family, version, mayGoOn) => current().destroyBelow(family, version, mayGoOn),
      keepFrom: (family, version) => current().keepFrom(family, version),
      getSigningKey: () => current().getSigningKey(),
      sign: (message) => current().sign(message),
      findProblem: () => current().findProblem(),
      figures: () => current().figures(),
      close: () => real.rootKeys.close(),
    };
    it_ = await openTestService({ rootKeys });
    const reply = await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value, context });
    assert.equal(reply.status, 200, reply.text);
    secrets.set('the envelope', reply.body['envelope'] as string);
    secrets.set('the plaintext', value);
    secrets.set('the token', token);
    const { rows } = await it_.owner.query<{ wrapped: string }>(
      `select wrapped from fieldkeep.data_keys where tenant = 'acme' and family = 'bank'`,
    );
    secrets.set('the wrapped key', rows[0]!.wrapped);
    secrets.set('a part of the wrapped key', rows[0]!.wrapped.slice(9, 60));
    const { plaintext } = await unwrapByHand(rows[0]!.wrapped);
    secrets.set('the data key', plaintext);
    secrets.set('the data key in hex', Buffer.from(plaintext, 'base64').toString('hex'));
  });
  after(async () => {
    await it_.close();
    for (const fake of fakes) {
      fake.closeAllConnections();
      fake.close();
    }
    rmSync(folder, { recursive: true, force: true });
    await server.close();
  });

  async function unwrapByHand(wrapped: string): Promise<{ plaintext: string }> {
    const { encodeWrapContext } = await import('../../src/crypto/context.ts');
    const body = { ciphertext: wrapped, context: encodeWrapContext('acme', 'bank', 1).toString('base64') };
    return (await server.call('POST', `${mount}/decrypt/fk-bank`, body)).data as { plaintext: string };
  }

  /** A Vault that answers every call in one way, quoting the request's token and body wherever it can. */
  async function fake(answer: (echo: string, res: ServerResponse) => void): Promise<string> {
    const tls = await ensureTls(folder);
    const front = createServer({ cert: tls.cert, key: tls.key }, (req, res) => {
      let text = '';
      req.on('data', (chunk: Buffer) => (text += chunk.toString()));
      req.on('end', () => answer(`${String(req.headers['x-vault-token'])} ${text}`, res));
    });
    fakes.push(front);
    await new Promise<void>((resolve) => front.listen(0, '127.0.0.1', resolve));
    return `https://127.0.0.1:${(front.address() as AddressInfo).port}`;
  }

  const failures: Record<string, () => Promise<{ address: string; ca?: string }>> = {
    'a refused connection': () => Promise.resolve({ address: 'https://127.0.0.1:9' }),
    'a certificate nobody trusts': async () => ({
      address: await fake((_, res) => res.end('{}')),
      ca: (await ensureTls(mkdtempSync(join(folder, 'other-')))).ca,
    }),
    'a server without TLS': async () => {
      // Whoever wanted TLS hangs up on such an answer, often with a reset.
      const plain = createTcpServer((socket) =>
        socket.on('error', () => socket.destroy()).end('HTTP/1.1 400 Bad Request\r\n\r\n'),
      ).listen(0, '127.0.0.1');
      await once(plain, 'listening');
      plain.unref();
      return { address: `https://127.0.0.1:${(plain.address() as AddressInfo).port}` };
    },
    ...Object.fromEntries(
      [400, 403, 404, 412, 429, 500, 502, 503].map((status) => [
        `a ${status}`,
        async () => ({
          address: await fake((echo, res) =>
            res.writeHead(status).end(JSON.stringify({ errors: [echo], data: { echo } })),
          ),
        }),
      ]),
    ),
    'a batch with an error an item': async () => ({
      address: await fake((echo, res) =>
        res.writeHead(400).end(JSON.stringify({ data: { batch_results: [{ error: echo }, { error: echo }] } })),
      ),
    }),
    silence: async () => ({ address: await fake(() => undefined) }),
    'an answer broken off': async () => ({
      address: await fake((echo, res) => {
        res.writeHead(200, { 'content-length': 10_000 }).write(`{"data":"${echo}`);
        setTimeout(() => res.destroy(), 20);
      }),
    }),
    'bad JSON': async () => ({ address: await fake((echo, res) => res.end(`{"data": ${echo}`)) }),
    'JSON of another shape': async () => ({ address: await fake((echo, res) => res.end(JSON.stringify([echo]))) }),
    'a redirect away from TLS': async () => ({
      address: await fake((_, res) => res.writeHead(307, { location: 'http://127.0.0.1:9/v1/x' }).end()),
    }),
    'a proxy’s page': async () => ({ address: await fake((echo, res) => res.writeHead(502).end(`<p>${echo}</p>`)) }),
  };

  function mustBeClean(what: string, text: string): void {
    for (const [name, secret] of secrets) assert.ok(!text.includes(secret), `${what} has ${name}`);
  }

  for (const [name, open] of Object.entries(failures)) {
    it(`stay secret after ${name}`, async () => {
      const { address, ca = (await ensureTls(folder)).ca } = await open();
      const broken = openAt(
        { ...server, ca },
        {
          mount,
          address,
          timeoutMs: 300,
          auth: { method: 'token', token },
          onError: (error) => it_.service.log.warn({ error }),
        },
      );
      // The session has its token already, as after an outage: the failure is the call's, not the login's.
      Object.assign(broken.session, { getToken: () => Promise.resolve(token), recover: () => Promise.resolve(false) });
      target.rootKeys = broken.rootKeys;
      const errors: unknown[] = [];
      const keep = (error: unknown) => errors.push(error);
      const wrapped = secrets.get('the wrapped key')!;
      await broken.rootKeys.unwrap('bank', wrapped, Buffer.from('x')).catch(keep);
      await broken.rootKeys.makeDataKey('bank', 1, Buffer.from('x')).catch(keep);
      await broken.rootKeys.rotate('bank').catch(keep);
      await broken.vault.call('POST', 'auth/approle/login', '', { secret_id: token }).catch(keep);
      assert.ok(errors.length >= 3, `${errors.length} failed`);
      for (const error of errors) {
        mustBeClean('the error', inspect(error, { depth: 10, showHidden: false }));
        mustBeClean('the stack', String((error as Error).stack));
        assert.equal((error as Error).cause, undefined);
        it_.service.log.warn({ error: { ...(error as object) } }, 'printed whole');
      }
      const tenant = `tenant ${name}`;
      const reply = await it_.call(
        'payroll-agent',
        'POST',
        '/v1/encrypt',
        { class: 'bank', value, context },
        { tenant },
      );
      assert.equal(reply.status, 503, reply.text);
      mustBeClean('the problem', reply.text);
      const rotation = await it_.call('operator', 'POST', '/v1/keys/salary/rotate', {});
      mustBeClean('the answer', rotation.text);
      it_.service.wake();
      await broken.rootKeys.findProblem();
      target.rootKeys = real.rootKeys;
      broken.rootKeys.close();
    });
  }

  it('and were in no log line, table, job or metric', async () => {
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    mustBeClean('the log', it_.logged());
    mustBeClean('a metric', await it_.metrics());
    const { rows: tables } = await it_.owner.query<{ name: string }>(
      `select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname in ('fieldkeep', 'fieldkeep_jobs')`,
    );
    let texts = 0;
    for (const { name } of tables.filter(({ name }) => name !== 'fieldkeep.data_keys')) {
      const { rows } = await it_.owner.query<{ row: string }>(`select t::text as row from ${name} t`);
      texts += rows.length;
      for (const { row } of rows) mustBeClean(name, row);
    }
    assert.ok(texts > 30);
  });

  it('nor in what a whole process prints, with DEBUG for everything', async () => {
    const ca = join(folder, 'ca-file.pem');
    writeFileSync(ca, (await ensureTls(folder)).ca);
    const address = await fake((echo, res) => res.writeHead(500).end(JSON.stringify({ errors: [echo] })));
    const child = spawn(process.execPath, ['src/main.ts'], {
      cwd: root,
      env: {
        ...process.env,
        ...{ FIELDKEEP_HOME: join(folder, 'home'), PORT: '0', DATABASE_URL: '', NODE_ENV: '', LOG_LEVEL: 'debug' },
        ...{ VAULT_ADDR: address, VAULT_TOKEN: token, VAULT_CACERT: ca, DEBUG: '*', NODE_DEBUG: '' },
      },
    });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    while (!output.includes('Stop: Ctrl-C')) {
      assert.equal(child.exitCode, null, output);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    child.kill('SIGTERM');
    await once(child, 'close');
    assert.match(output, /Vault answers 500/);
    mustBeClean('the output', output);
  });

  it('TLS to Vault with a private authority keeps its connections', async () => {
    const kept = openAt(server, { mount });
    await kept.rootKeys.ensureFamily('ssn');
    const wrapped = await kept.rootKeys.makeDataKey('ssn', 1, Buffer.from('x'));
    for (let i = 0; i < 50; i += 1) await kept.rootKeys.unwrap('ssn', wrapped, Buffer.from('x'));
    const { calls, connections } = kept.vault.counters();
    assert.ok(calls > 50 && connections <= 2, `${connections} connections for ${calls} calls`);
    kept.rootKeys.close();
  });
});
