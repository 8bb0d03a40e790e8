/** Processes of the service for a benchmark, each with a state folder of its own, started as anybody starts them. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { openIssuer } from '../../src/embedded/issuer.ts';
import { openApi, type Api } from '../support.ts';
import type { BenchDatabase } from './database.ts';
import { atExit, removeFolder } from './ending.ts';
import { policyFile } from './engine.ts';
import { openBenchVault } from './vault-server.ts';

interface ServiceProcess {
  readonly child: ChildProcess;
  readonly pid: number;
  readonly home: string;
  /** Absent where ROLE=worker: it faces nobody. */
  readonly url?: string;
  readonly metricsUrl: string;
  stop(): Promise<void>;
}

export interface Service extends ServiceProcess {
  readonly url: string;
  readonly ca: string;
  /** Of payroll-agent. */
  readonly token: string;
}

const startMaxMs = 60_000;

async function readRuntime(child: ChildProcess, home: string): Promise<{ url?: string; metricsUrl: string }> {
  const file = join(home, 'runtime.json');
  for (let waited = 0; !existsSync(file); waited += 50) {
    if (child.exitCode !== null || waited >= startMaxMs) throw new Error('The service did not start.');
    await sleep(50);
  }
  return JSON.parse(readFileSync(file, 'utf8')) as { url?: string; metricsUrl: string };
}

/** On an embedded Postgres of its own unless `variables` name another. */
async function startProcess(variables: Readonly<Record<string, string>>): Promise<ServiceProcess> {
  const home = mkdtempSync(join(tmpdir(), 'fieldkeep-bench-'));
  const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
  const own = { FIELDKEEP_HOME: home, FIELDKEEP_POLICY: policyFile, PORT: '0', NODE_ENV: '', DATABASE_URL: '' };
  const env = { ...process.env, ...own, ...variables };
  const child = spawn(process.execPath, [main], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  const forget = atExit(() => {
    child.kill('SIGTERM');
    removeFolder(home);
  });
  const stop = async () => {
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
    }
    forget();
    removeFolder(home);
  };
  try {
    return { child, pid: child.pid!, home, ...(await readRuntime(child, home)), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** One that answers agents. */
export async function startService(variables: Readonly<Record<string, string>> = {}): Promise<Service> {
  const started = await startProcess(variables);
  const { url, home } = started;
  if (url === undefined) throw new Error('A worker has no API.');
  const issuer = await openIssuer(home);
  const who = { audience: 'fieldkeep', subject: 'payroll-agent', tenant: 'acme', ttlSeconds: 7200 };
  return {
    ...started,
    url,
    ca: readFileSync(join(home, 'tls', 'ca.pem'), 'utf8'),
    token: await issuer.issueToken(who),
  };
}

/** What has to be undone, newest first. */
export type Undo = () => Promise<unknown> | void;

/** Processes of the service on one database. */
export interface Processes {
  readonly service: Service;
  /** Those that rotate; the service itself where there is no Vault. */
  readonly workers: readonly ServiceProcess[];
  readonly api: Api;
  readonly hasVault: boolean;
}

/** With a Vault one that answers agents and others that rotate; embedded root keys serve one process, which does both. */
export async function startProcesses(
  { ownerUrl, apiUrl, workerUrl, rowsUrl }: BenchDatabase,
  policy: string,
  workers: number,
  undo: Undo[],
): Promise<Processes> {
  const vault = await openBenchVault();
  if (vault !== undefined) undo.push(() => vault.close());
  const variables = { FIELDKEEP_POLICY: policy, ...(vault?.environment ?? { VAULT_ADDR: '', VAULT_TOKEN: '' }) };
  const forWorker = { DATABASE_OWNER_URL: ownerUrl, DATABASE_ROWS_URL: rowsUrl };
  const started: ServiceProcess[] = [];
  for (let n = 0; vault !== undefined && n < workers; n += 1) {
    const worker = await startProcess({ ...variables, ...forWorker, DATABASE_URL: workerUrl, ROLE: 'worker' });
    undo.push(() => worker.stop());
    started.push(worker);
  }
  const both = { ...forWorker, DATABASE_WORKER_URL: workerUrl, ROLE: 'all' };
  const service = await startService({
    ...variables,
    DATABASE_URL: apiUrl,
    ...(vault === undefined ? both : { ROLE: 'api' }),
  });
  undo.push(() => service.stop());
  const api = await openApi(service);
  undo.push(() => api.close());
  return { service, workers: vault === undefined ? [service] : started, api, hasVault: vault !== undefined };
}
