/**
 * Starts the service and stops it. The order is the whole content: each step needs the ones before it, and stopping
 * goes the other way round: no new requests, answers in flight, jobs, audit, database.
 */
import { readFileSync, rmSync } from 'node:fs';
import type { Server } from 'node:http';
import type { Server as TlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { setPriority } from 'node:os';
import { join } from 'node:path';
import { destination, pino, type Logger } from 'pino';
import { readConfig, type Config } from './config.ts';
import { selfTest } from './crypto/self-test.ts';
import { findRefusal, isUnavailable, migrate, roleOf } from './db.ts';
import { greet, writeExamples } from './embedded/greeting.ts';
import { openHome, writePrivate, type Home } from './embedded/home.ts';
import { openIssuer } from './embedded/issuer.ts';
import { startPostgres } from './embedded/postgres.ts';
import { ensureTls } from './embedded/tls.ts';
import { describeError, StartupError } from './errors.ts';
import { createApp } from './http/app.ts';
import { createAuthenticator } from './http/authenticate.ts';
import type { Edge } from './http/exchange.ts';
import { createMetrics, exposeFigures, exposeSamples, listenInside, type Metrics } from './http/metrics.ts';
import { newRequestId } from './http/request-id.ts';
import { createHttpsServer, drain } from './http/server.ts';
import { migrateQueues, openBoss } from './jobs/queues.ts';
import { startWorkers, type Workers } from './jobs/workers.ts';
import { openEmbeddedRootKeys } from './keys/embedded.ts';
import type { RootKeys } from './keys/root-keys.ts';
import { openVaultRootKeys, type VaultRootKeys } from './keys/vault-open.ts';
import { listExcessRights } from './keys/vault-rights.ts';
import { auditFamily } from './keys/version.ts';
import { bindOperations } from './operations/all.ts';
import { refuse } from './operations/perform.ts';
import { readPolicy, watchPolicy } from './policy-watch.ts';
import { readRetirementFigures, retirementFigures } from './retirement/figures.ts';
import { readFigures, rotationFigures } from './rotation/figures.ts';
import { openSources } from './rotation/sources.ts';
import { adoptPolicy, examine, openService, type Service } from './service.ts';

const requestDeadlineMs = 10_000;
const drainMaxMs = 15_000;
const tlsLookEveryMs = 5_000;
const rightsEveryMs = 5_000;
/** Of a worker beside others on its machine; 0 is usual, 19 is the least. */
const workerNiceness = 10;

/** What has to be undone, newest first. */
type Undo = () => Promise<void> | void;

interface Database {
  readonly url: string;
  readonly ownerUrl: string;
  /** Of the embedded server only; others have DATABASE_READER_URL. */
  readonly readerUrl?: string;
  readonly embedded: boolean;
}

async function openDatabase(config: Config, undo: Undo[]): Promise<Database> {
  if (config.databaseUrl !== undefined) {
    return { url: config.databaseUrl, ownerUrl: config.databaseOwnerUrl ?? config.databaseUrl, embedded: false };
  }
  const postgres = await startPostgres({ home: config.home });
  undo.push(() => postgres.stop());
  const { serviceUrl: url, ownerUrl, readerUrl } = postgres;
  return { url, ownerUrl, readerUrl, embedded: true };
}

async function migrateAll({ url, ownerUrl }: Database, log: Logger): Promise<void> {
  try {
    await migrate(ownerUrl, roleOf(url), (line) => log.debug(line));
    await migrateQueues(ownerUrl, roleOf(url));
  } catch (error) {
    if (findRefusal(error) !== undefined) throw error;
    if (isUnavailable(error))
      throw new StartupError('The database cannot be reached: check DATABASE_URL and that it runs.');
    const { code } = describeError(error);
    if (code === '28P01' || code === '28000')
      throw new StartupError('The database refuses the credentials of DATABASE_URL.');
    if (code === '42501') throw new StartupError('The role may not migrate the database: set DATABASE_OWNER_URL.');
    throw error;
  }
}

function listen(server: Server, port: number, host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const why = error.code === 'EADDRINUSE' ? 'is taken by another program' : `cannot be used (${error.code})`;
      reject(new StartupError(`Port ${port} on ${host} ${why}. Set PORT to another one.`));
    });
    server.listen(port, host, () => resolve((server.address() as AddressInfo).port));
  });
}

async function readTls(config: Config): Promise<{ cert: string; key: string }> {
  if (config.tls === undefined) return await ensureTls(config.home);
  try {
    return { cert: readFileSync(config.tls.certFile, 'utf8'), key: readFileSync(config.tls.keyFile, 'utf8') };
  } catch {
    throw new StartupError('The files of TLS_CERT_FILE and TLS_KEY_FILE cannot be read.');
  }
}

/** Takes in a renewed certificate without a restart; files that do not fit leave the old one in use. */
function watchTls(config: Config, server: TlsServer, log: Logger): NodeJS.Timeout | undefined {
  if (config.tls === undefined) return undefined;
  let current: string | undefined;
  const look = async () => {
    try {
      const files = await readTls(config);
      const text = files.cert + files.key;
      if (current !== undefined && text !== current) {
        server.setSecureContext({ ...files, minVersion: 'TLSv1.3' });
        log.warn('A new TLS certificate is in use.');
      }
      current = text;
    } catch (error) {
      log.error({ error: describeError(error) }, 'The TLS files are not right; the last certificate stays in use.');
    }
  };
  void look();
  return setInterval(() => void look(), tlsLookEveryMs);
}

async function startJobs(service: Service, databaseUrl: string, undo: Undo[]): Promise<Workers> {
  const onError = (error: unknown) =>
    service.log.warn({ error: describeError(error) }, 'A background job failed; it is tried again.');
  const boss = await openBoss(databaseUrl, onError);
  const workers = await startWorkers(boss, () => service, onError);
  service.wake = () => workers.wake();
  undo.push(() => workers.stop());
  return workers;
}

/** Root keys in the Vault that the environment names, else in a file. */
async function openRootKeys(
  config: Config,
  home: Home,
  log: Logger,
): Promise<Partial<VaultRootKeys> & { rootKeys: RootKeys }> {
  if (config.vault !== undefined) return openVaultRootKeys(config.vault, log);
  return { rootKeys: await openEmbeddedRootKeys(join(home.path, 'root-keys.json')) };
}

/** Says so when this process's token may do more at Vault than its duty asks for; waits until Vault can be asked. */
function watchRights(config: Config, { vault, session }: Partial<VaultRootKeys>, service: Service): Undo {
  const { role, families } = config;
  if (vault === undefined || session === undefined || role === 'all') return () => undefined;
  const { mount } = config.vault!;
  const all = [...service.policy.classes.keys()];
  const served = [...(families ?? all), auditFamily];
  const question = { mount, duty: role, families: served, otherFamilies: all.filter((each) => !served.includes(each)) };
  const ask = async () => {
    const excess = await listExcessRights(vault, await session.getToken(), question);
    clearInterval(timer);
    if (excess.length === 0) return;
    service.log.warn(
      { role, excess },
      `The Vault token of this ${role} process may do more than it should. npm run vault:setup makes a policy for each duty.`,
    );
  };
  const timer = setInterval(() => void ask().catch(() => undefined), rightsEveryMs); // outages are told elsewhere
  void ask().catch(() => undefined);
  return () => clearInterval(timer);
}

interface Listening {
  /** Absent in a worker, which faces nobody. */
  readonly url?: string;
  readonly metricsUrl: string;
}

async function startInside(service: Service, metrics: Metrics, config: Config, undo: Undo[]): Promise<Listening> {
  const { rootKeys, keeper, keyring } = service;
  const isVault = rootKeys.kind === 'vault';
  exposeFigures(metrics, () => ({
    ...rootKeys.figures(),
    ...(isVault && { vault_up: keeper.state().problem === undefined ? 1 : 0 }),
    key_unwraps_total: keyring.unwraps,
  }));
  exposeSamples(metrics, 'rotations', rotationFigures, () => readFigures(service.pool, keyring.state));
  exposeSamples(metrics, 'retirement', retirementFigures, () => readRetirementFigures(service));
  const { metricsPort: port, metricsHost: host } = config;
  const server = await listenInside({ registry: metrics.registry, health: () => examine(service), port, host });
  undo.push(() => void server.close());
  const near = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
  return { metricsUrl: `http://${near}:${(server.address() as AddressInfo).port}/metrics` };
}

async function startHttp(service: Service, metrics: Metrics, config: Config, undo: Undo[]): Promise<string> {
  const edge: Edge = { log: service.log, metrics, requestDeadlineMs, draining: false };
  const issuer = await openIssuer(config.home);
  const app = createApp(edge, {
    operations: bindOperations(service),
    authenticate: createAuthenticator({ policy: () => service.policy, localKeys: issuer.jwks }),
    refuse: (refusal) => refuse(service, refusal),
    health: () => examine(service),
  });
  const server = createHttpsServer(await readTls(config), app);
  const port = await listen(server, config.port, config.host);
  const tlsTimer = watchTls(config, server, service.log);
  undo.push(async () => {
    service.draining = true;
    clearInterval(tlsTimer);
    await drain(server, edge, drainMaxMs);
  });
  return `https://${config.host}:${port}`;
}

function writeRuntime(home: Home, listening: Listening, database: Database, undo: Undo[]): void {
  const file = join(home.path, 'runtime.json');
  const runtime = {
    pid: process.pid,
    ...listening,
    ...(database.embedded && { databaseUrl: database.ownerUrl }),
    startedAt: new Date().toISOString(),
  };
  writePrivate(file, JSON.stringify(runtime, null, 2));
  undo.push(() => rmSync(file, { force: true }));
}

/** An encrypt call as an agent of the demo's tenant, decided and audited like one from outside. */
function encryptAs(service: Service): (agent: string, body: object) => Promise<unknown> {
  return async (agent, body) => {
    const deadline = performance.now() + requestDeadlineMs;
    const call = {
      requestId: newRequestId(),
      principal: { agent, tenant: 'acme', system: false },
      body,
      params: {},
      query: {},
      deadline,
    };
    return (await bindOperations(service).encrypt(call)).body;
  };
}

async function start(undo: Undo[]): Promise<void> {
  const config = readConfig(process.env);
  const policy = readPolicy(config.policyFile);
  const stream = destination({ fd: 1, sync: true, minLength: 0 });
  const log = pino({ level: config.logLevel, base: null }, stream);
  await selfTest();
  const home = openHome(config.home);
  undo.push(() => home.release());
  const database = await openDatabase(config, undo);
  await migrateAll(database, log);
  if (!database.embedded && roleOf(database.url) === roleOf(database.ownerUrl)) {
    if (config.production)
      throw new StartupError(
        'In production DATABASE_OWNER_URL must name another role: the service must not own its audit log.',
      );
    log.warn('The service connects as the owner of its audit log. Set DATABASE_OWNER_URL to another role.');
  }
  const { role, families } = config;
  const keeper = await openRootKeys(config, home, log);
  const { rootKeys } = keeper;
  const { vault, session } = keeper;
  const secrets = config.sources;
  const atVault = vault !== undefined && session !== undefined && { vault: { vault, session } };
  const sources = openSources({ secrets, ...atVault });
  const own = database.readerUrl === undefined ? [] : [[undefined, database.readerUrl] as const];
  const readers = new Map<string | undefined, string>([...own, ...config.readers]);
  const parts = { databaseUrl: database.url, targets: config.targets, readers, sources, rootKeys, policy, log, role };
  const service = await openService({ ...parts, ...(families !== undefined && { families }) });
  undo.push(() => service.close());
  undo.push(watchRights(config, keeper, service));
  const metrics = createMetrics();
  const inside = await startInside(service, metrics, config, undo);
  const url = role === 'worker' ? undefined : await startHttp(service, metrics, config, undo);
  const listening = { ...inside, ...(url !== undefined && { url }) };
  if (role === 'worker') setPriority(workerNiceness); // nobody waits for it as an agent waits for an answer
  if (role !== 'api') await startJobs(service, database.url, undo);
  const watch = watchPolicy(config.policyFile, policy.version, (next) => adoptPolicy(service, next), log);
  undo.push(() => watch.stop());
  writeRuntime(home, listening, database, undo);
  const ready = url !== undefined && (await examine(service)).reasons.length === 0;
  const examples = ready && (await writeExamples(encryptAs(service), home.path));
  process.stdout.write(greet({ ...listening, config, embedded: database.embedded, examples }));
}

async function stop(undo: Undo[]): Promise<void> {
  for (const each of undo.splice(0).reverse()) await each();
}

function fail(error: unknown): void {
  process.exitCode = 1;
  const refused = findRefusal(error);
  const sentence =
    error instanceof StartupError
      ? error.message
      : refused !== undefined
        ? `The database of Fieldkeep answers in ${refused.phrase}`
        : `The service failed: ${JSON.stringify(describeError(error))}`;
  process.stderr.write(`${sentence}\n`);
}

const undo: Undo[] = [];
let stopping: Promise<void> | undefined;
const end = (signal: string) => {
  process.stderr.write(`${signal}: answering what is in flight, then stopping.\n`);
  stopping ??= stop(undo)
    .catch(fail)
    .finally(() => process.exit());
};
process.on('SIGTERM', end).on('SIGINT', end);
// Whoever read our output may leave (`npm start | head`): that is no reason to end in the middle of a request.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
try {
  await start(undo);
} catch (error) {
  fail(error);
  if (stopping === undefined) await stop(undo).catch(fail);
  process.exit();
}
