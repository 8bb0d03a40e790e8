/** A whole service in this process, behind real HTTPS, on a database of its own, and a client for it. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { Agent, request } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { pino } from 'pino';
import { openPool, type Pool } from '../../src/db.ts';
import { openIssuer, type Issuer } from '../../src/embedded/issuer.ts';
import { ensureTls } from '../../src/embedded/tls.ts';
import { examine } from '../../src/health.ts';
import { createApp } from '../../src/http/app.ts';
import { createAuthenticator } from '../../src/http/authenticate.ts';
import { createMetrics } from '../../src/http/metrics.ts';
import { openRefusals } from '../../src/http/refusals.ts';
import { createHttpsServer } from '../../src/http/server.ts';
import { openBoss } from '../../src/jobs/queues.ts';
import { startWorkers } from '../../src/jobs/workers.ts';
import { describeError } from '../../src/errors.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import type { RootKeys } from '../../src/keys/root-keys.ts';
import { bindOperations, operate } from '../../src/operations/all.ts';
import { storeEntries } from '../../src/operations/refuse.ts';
import { parsePolicy, type Policy } from '../../src/policy/policy.ts';
import { openService, type Service, type ServiceOptions } from '../../src/service.ts';
import { createDatabase, type TestDatabase } from './database.ts';

export const shippedPolicy: Policy = parsePolicy(
  readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8'),
);

export interface Reply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly text: string;
  readonly body: Record<string, unknown> & { items?: Record<string, unknown>[] };
}

export interface CallOptions {
  readonly tenant?: string;
  readonly token?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface TestService {
  readonly service: Service;
  readonly owner: Pool;
  readonly database: TestDatabase;
  readonly issuer: Issuer;
  /** Its state: the issuer's key and the local authority, as commands look for them. */
  readonly home: string;
  readonly url: string;
  /** All that was logged. */
  readonly logged: () => string;
  readonly metrics: () => Promise<string>;
  call(agent: string, method: string, path: string, body?: unknown, options?: CallOptions): Promise<Reply>;
  close(): Promise<void>;
}

const systemPrincipals = new Set(['operator', 'security-auditor', 'security-lead']);

export interface TestServiceOptions extends Pick<
  Partial<ServiceOptions>,
  'policy' | 'role' | 'families' | 'now' | 'targets' | 'rows'
> {
  /** A file of this service's own where absent. */
  readonly rootKeys?: RootKeys;
  /** Shared with another service, and dropped by whoever made it. */
  readonly database?: TestDatabase;
  readonly requestDeadlineMs?: number;
  /** False: runs go on when the test has them go on. */
  readonly workers?: false;
}

export async function openTestService(options: TestServiceOptions = {}): Promise<TestService> {
  const { policy = shippedPolicy, role = 'all', families, now, targets, requestDeadlineMs = 10_000 } = options;
  const database = options.database ?? (await createDatabase());
  const home = mkdtempSync(join(tmpdir(), 'fieldkeep-service-'));
  const rootKeys = options.rootKeys ?? (await openEmbeddedRootKeys(join(home, 'root-keys.json')));
  let logged = '';
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      logged += chunk.toString();
      done();
    },
  });
  const log = pino({ level: 'info', base: null }, sink);
  const service = await openService({
    ...{ databaseUrl: role === 'api' ? database.apiUrl : database.workerUrl, rootKeys, policy, log, role, operate },
    rows: new Map<string | undefined, string>([[undefined, database.rowsUrl], ...(options.rows ?? [])]),
    ...(families !== undefined && { families }),
    ...(now !== undefined && { now }),
    ...(targets !== undefined && { targets }),
  });
  const issuer = await openIssuer(home);
  const tls = await ensureTls(home);
  const metrics = createMetrics();
  const edge = { log, metrics, requestDeadlineMs, draining: false };
  const refusals = openRefusals({ store: (entries) => storeEntries(service, entries) });
  const app = createApp(edge, {
    operations: bindOperations(service),
    authenticate: createAuthenticator({ policy: () => service.policy, localKeys: issuer.jwks, log }),
    refuse: (refusal) => refusals.refuse(refusal),
    health: () => examine(service),
  });
  const { server } = createHttpsServer(tls, app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const onError = (error: unknown) => log.warn({ error: describeError(error) }, 'A background job failed.');
  const startJobs = async () =>
    startWorkers(await openBoss(database.workerUrl, () => undefined), () => service, onError);
  const workers = role === 'api' || options.workers === false ? undefined : await startJobs();
  service.wake = () => workers?.wake();
  const owner = openPool(database.ownerUrl, { max: 4, name: 'owner', statementTimeoutMs: 60_000 });
  const agent = new Agent({ keepAlive: true, maxSockets: 64, ca: tls.ca });
  const tokens = new Map<string, Promise<string>>();

  function tokenFor(name: string, tenant: string): Promise<string> {
    const id = `${name} ${tenant}`;
    let token = tokens.get(id);
    if (token === undefined) {
      const own = systemPrincipals.has(name) ? {} : { tenant };
      token = issuer.issueToken({ audience: 'fieldkeep', subject: name, ttlSeconds: 3600, ...own });
      tokens.set(id, token);
    }
    return token;
  }

  return {
    service,
    owner,
    database,
    issuer,
    home,
    url: `https://127.0.0.1:${port}`,
    logged: () => logged,
    metrics: () => metrics.registry.metrics(),
    async call(name, method, path, body, { tenant = 'acme', token, headers = {} } = {}) {
      const bearer = token ?? (await tokenFor(name, tenant));
      const text = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body);
      const sent = {
        ...(bearer !== '' && { authorization: `Bearer ${bearer}` }),
        ...(text !== undefined && {
          'content-type': 'application/json',
          'content-length': String(Buffer.byteLength(text)),
        }),
        ...headers,
      };
      return await new Promise((resolve, reject) => {
        const outgoing = request({ host: '127.0.0.1', port, method, path, agent, headers: sent }, (incoming) => {
          const chunks: Buffer[] = [];
          incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
          incoming.on('end', () => {
            const answer = Buffer.concat(chunks).toString('utf8');
            const parsed = JSON.parse(answer) as Reply['body'];
            resolve({ status: incoming.statusCode ?? 0, headers: incoming.headers, text: answer, body: parsed });
          });
        });
        outgoing.on('error', reject);
        outgoing.end(text);
      });
    },
    async close() {
      agent.destroy();
      await new Promise((resolve) => server.close(resolve));
      await refusals.close();
      await workers?.stop();
      await service.close();
      await owner.end();
      if (options.database === undefined) await database.drop();
      rmSync(home, { recursive: true, force: true });
    },
  };
}

/** The entry of an answer, by its X-Request-Id: exactly one must exist. */
export async function entriesOf(owner: Pool, requestId: string): Promise<Record<string, unknown>[]> {
  const { rows } = await owner.query<{ line: string }>(
    'select line from fieldkeep.audit_entries where request_id = $1',
    [requestId],
  );
  return rows.map((row) => JSON.parse(row.line) as Record<string, unknown>);
}
