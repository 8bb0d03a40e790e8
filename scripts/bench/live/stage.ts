/**
 * The living system: a Postgres of its own with a table that is encrypted already, and processes of the service on it. With
 * a Vault there is one that answers agents and others that rotate; embedded root keys serve one process, which does both.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openApi, type Api } from '../../support.ts';
import { openDatabase, type BenchDatabase } from '../database.ts';
import { isAdopted, policyFile } from '../engine.ts';
import { fill } from '../people.ts';
import { startProcess, startService, type Service, type ServiceProcess } from '../service.ts';
import { openBenchVault, type BenchVault } from '../vault-server.ts';

export interface Stage {
  readonly database: BenchDatabase;
  readonly service: Service;
  /** Those that rotate; the service itself where there is no Vault. */
  readonly workers: readonly ServiceProcess[];
  readonly api: Api;
  readonly hasVault: boolean;
  /** Puts a policy in force in which every class says so of its rotations. */
  limit(rotation: object): Promise<void>;
  close(): Promise<void>;
}

/** What has to be undone, newest first. */
type Undo = () => Promise<unknown> | void;

const policyOf = (home: string) => join(home, 'keys-policy.json');
/** Every process looks at its policy file every two seconds. */
const policySeconds = 4;

async function limitRotations(home: string, rotation: object): Promise<void> {
  const file = JSON.parse(await readFile(policyFile, 'utf8')) as { classes: Record<string, object> };
  for (const [name, each] of Object.entries(file.classes)) file.classes[name] = { ...each, rotation };
  await writeFile(policyOf(home), JSON.stringify(file));
}

async function startAll(
  { home, ownerUrl, serviceUrl }: BenchDatabase,
  vault: BenchVault | undefined,
  workers: number,
  undo: Undo[],
): Promise<{ service: Service; workers: ServiceProcess[] }> {
  const database = { DATABASE_URL: serviceUrl, DATABASE_OWNER_URL: ownerUrl, FIELDKEEP_POLICY: policyOf(home) };
  if (vault === undefined) {
    const service = await startService({ ...database, VAULT_ADDR: '', VAULT_TOKEN: '', ROLE: 'all' });
    undo.push(() => service.stop());
    return { service, workers: [service] };
  }
  const variables = { ...database, ...vault.environment };
  const started: ServiceProcess[] = [];
  for (let n = 0; n < workers; n += 1) {
    const worker = await startProcess({ ...variables, ROLE: 'worker' });
    undo.push(() => worker.stop());
    started.push(worker);
  }
  const service = await startService({ ...variables, ROLE: 'api' });
  undo.push(() => service.stop());
  return { service, workers: started };
}

/** Everything stands, and every value of the table is an envelope. */
export async function openStage({ rows, workers }: { rows: number; workers: number }): Promise<Stage> {
  const undo: Undo[] = [];
  const close = async () => {
    for (const each of undo.splice(0).reverse()) await each();
  };
  try {
    const database = await openDatabase();
    undo.push(() => database.close());
    const vault = await openBenchVault();
    if (vault !== undefined) undo.push(() => vault.close());
    await fill(database.owner, rows);
    await limitRotations(database.home, {});
    const started = await startAll(database, vault, workers, undo);
    const { service } = started;
    const api = await openApi({ ...service, pid: service.pid });
    undo.push(() => api.close());
    const deadline = performance.now() + 60_000 + rows;
    while (!(await isAdopted(database.owner))) {
      if (performance.now() > deadline) throw new Error('The table was not adopted in time.');
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
    await database.owner.query('vacuum analyze demo.employees');
    const limit = async (rotation: object) => {
      await limitRotations(database.home, rotation);
      await new Promise((resolve) => setTimeout(resolve, policySeconds * 1000));
    };
    return { database, ...started, api, hasVault: vault !== undefined, limit, close };
  } catch (error) {
    await close();
    throw error;
  }
}
