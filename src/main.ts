/**
 * Starts the service and stops it. The order is the whole content: each step needs the ones before it, and stopping
 * goes the other way round: no new requests, answers in flight, jobs, audit, database. Stopping has its time, whatever hangs.
 */
import { rmSync } from 'node:fs';
import { setPriority } from 'node:os';
import { join } from 'node:path';
import { destination, pino, type Logger } from 'pino';
import { readConfig, type Config } from './config.ts';
import { selfTest } from './crypto/self-test.ts';
import { findRefusal } from './db.ts';
import { watchDisk } from './disk.ts';
import { greet, writeExamples } from './embedded/greeting.ts';
import { openHome, writePrivate, type Home } from './embedded/home.ts';
import { describeError, StartupError } from './errors.ts';
import { openFront, requestDeadlineMs, type Front } from './front.ts';
import { newRequestId } from './http/request-id.ts';
import { openBoss } from './jobs/queues.ts';
import { startWorkers, type Workers } from './jobs/workers.ts';
import { openEmbeddedRootKeys } from './keys/embedded.ts';
import type { RootKeys } from './keys/root-keys.ts';
import { openVaultRootKeys, type VaultRootKeys } from './keys/vault-open.ts';
import { listExcessRights } from './keys/vault-rights.ts';
import { auditFamily } from './keys/version.ts';
import { checkLogins, migrateAll, openDatabase, type Database } from './logins.ts';
import { bindOperations, operate } from './operations/all.ts';
import { readPolicy, watchPolicy } from './policy-watch.ts';
import { openSources } from './rotation/sources.ts';
import type { Policy } from './policy/policy.ts';
import { adoptPolicy, openService, type Service, type ServiceOptions, type ServiceRole } from './service.ts';
import type { Services } from './services.ts';
import { undoAll, type Step } from './stopping.ts';

/** From the signal to the end of the process, whatever hangs. */
const stopMaxMs = 15_000;
/** Of that, for the end itself, when a step did not end in its time. */
const endingMs = 500;
const rightsEveryMs = 5_000;
/** Of a worker beside others on its machine; 0 is usual, 19 is the least. */
const workerNiceness = 10;

async function startJobs(service: Service, databaseUrl: string, undo: Step[]): Promise<Workers> {
  const onError = (error: unknown) =>
    service.log.warn({ error: describeError(error) }, 'A background job failed; it is tried again.');
  const boss = await openBoss(databaseUrl, onError);
  const workers = await startWorkers(boss, () => service, onError);
  service.wake = () => workers.wake();
  undo.push({ what: 'The jobs', run: () => workers.stop(), maxMs: 5_000 });
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
function watchRights(config: Config, { vault, session }: Partial<VaultRootKeys>, service: Service): () => void {
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

function writeRuntime(home: Home, { url, metricsUrl }: Front, database: Database, undo: Step[]): void {
  const file = join(home.path, 'runtime.json');
  const runtime = {
    pid: process.pid,
    ...(url !== undefined && { url }),
    metricsUrl,
    ...(database.embedded && { databaseUrl: database.ownerUrl }),
    startedAt: new Date().toISOString(),
  };
  writePrivate(file, JSON.stringify(runtime, null, 2));
  undo.push({ what: 'runtime.json', run: () => rmSync(file, { force: true }) });
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

type Parts = Omit<ServiceOptions, 'databaseUrl' | 'role' | 'ownsRootKeys'>;

/** The worker first: it makes the keys that the api needs. */
async function openServices(config: Config, database: Database, parts: Parts, undo: Step[]): Promise<Services> {
  const open = async (role: ServiceRole, databaseUrl: string) => {
    const service = await openService({ ...parts, databaseUrl, role, operate, ownsRootKeys: false });
    undo.push({ what: `The service (${role})`, run: () => service.close(), maxMs: 5_000 });
    return service;
  };
  const { apiUrl, workerUrl } = database;
  undo.push({ what: 'The root keys', run: () => parts.rootKeys.close() });
  if (config.role === 'all' && apiUrl === workerUrl) {
    const both = await open('all', apiUrl);
    return { api: both, worker: both, all: [both] };
  }
  const worker = config.role === 'api' ? undefined : await open('worker', workerUrl);
  const api = config.role === 'worker' ? undefined : await open('api', apiUrl);
  const all = [api, worker].filter((each) => each !== undefined) as [Service, ...Service[]];
  return { all, ...(api !== undefined && { api }), ...(worker !== undefined && { worker }) };
}

async function start(undo: Step[]): Promise<void> {
  const config = readConfig(process.env);
  const policy = readPolicy(config.policyFile);
  const stream = destination({ fd: 1, sync: true, minLength: 0 });
  const log = pino({ level: config.logLevel, base: null }, stream);
  await selfTest();
  const home = openHome(config.home);
  undo.push({ what: 'The state folder', run: () => home.release() });
  const database = await openDatabase(config, undo);
  const disk = database.embedded ? await watchDisk(config.home) : undefined;
  undo.push({ what: 'The look at the disk', run: () => disk?.stop() });
  await migrateAll(config, database, log);
  await checkLogins(config, database, log);
  const { role, families, targets } = config;
  const keeper = await openRootKeys(config, home, log);
  const { rootKeys, vault, session } = keeper;
  const atVault = vault !== undefined && session !== undefined && { vault: { vault, session } };
  const sources = openSources({ secrets: config.sources, ...atVault });
  const { rows, readers } = database;
  const parts = { targets, rows, readers, sources, rootKeys, policy, log, ...(families !== undefined && { families }) };
  const services = await openServices(config, database, parts, undo);
  undo.push({ what: 'The look at rights', run: watchRights(config, keeper, services.all[0]) });
  const adopt = async (next: Policy) => {
    await Promise.all(services.all.map((each) => adoptPolicy(each, next)));
  };
  const watch = watchPolicy(config.policyFile, policy.version, adopt, log);
  for (const each of services.all) each.policyWatch = watch;
  undo.push({ what: 'The look at the policy', run: () => watch.stop() });
  if (role === 'worker') setPriority(workerNiceness); // nobody waits for it as an agent waits for an answer
  if (services.worker !== undefined) await startJobs(services.worker, database.workerUrl, undo);
  const front = await openFront(services, config, disk, undo);
  writeRuntime(home, front, database, undo);
  const { api } = services;
  const examples =
    api !== undefined &&
    (await front.health()).reasons.length === 0 &&
    (await writeExamples(encryptAs(api), home.path));
  process.stdout.write(greet({ ...front, config, embedded: database.embedded, examples }));
}

const say = (sentence: string) => void process.stderr.write(`${sentence}\n`);

/** Ends the process in its time, also when what has to be undone does not. */
async function stop(undo: Step[], signal: string): Promise<void> {
  setTimeout(() => process.exit(1), stopMaxMs);
  const wrong = await undoAll(undo, signal, stopMaxMs - endingMs, say);
  if (wrong.length > 0) process.exitCode = 1;
  process.exit();
}

function fail(error: unknown): void {
  process.exitCode = 1;
  const refused = findRefusal(error);
  if (error instanceof StartupError) say(error.message);
  else if (refused !== undefined) say(`The database of Fieldkeep answers in ${refused.phrase}`);
  else say(`The service failed: ${JSON.stringify(describeError(error))}`);
}

const undo: Step[] = [];
let stopping: Promise<void> | undefined;
const end = (signal: string) => {
  say(`${signal}: answering what is in flight, then stopping.`);
  stopping ??= stop(undo, signal);
};
process.on('SIGTERM', end).on('SIGINT', end);
// Whoever read our output may leave (`npm start | head`): that is no reason to end in the middle of a request.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
try {
  await start(undo);
} catch (error) {
  if (stopping === undefined) {
    fail(error);
    await (stopping = stop(undo, ''));
  }
}
