/**
 * Databases for tests. One embedded Postgres serves a whole run (or the server of TEST_DATABASE_URL, a superuser's URL), all
 * of its processes; every suite gets a database of its own, cloned from a template that was migrated once.
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, chmodSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, quoteIdentifier, roleOf } from '../../src/db.ts';
import { duties, migrate, type Duty } from '../../src/migrate.ts';
import { startPostgres } from '../../src/embedded/postgres.ts';
import { migrateQueues } from '../../src/jobs/queues.ts';

/** The URLs of the logins of each duty. */
interface Logins {
  readonly ownerUrl: string;
  readonly apiUrl: string;
  readonly workerUrl: string;
  readonly rowsUrl: string;
}

export interface TestDatabase extends Logins {
  drop(): Promise<void>;
}

/** What the processes of a run have to know of the server. */
interface Cluster extends Logins {
  readonly template: string;
}

/** How the process that starts the server tells the others, which it starts afterwards. */
const variable = 'FIELDKEEP_TEST_CLUSTER';

async function admin(ownerUrl: string, statements: readonly string[]): Promise<void> {
  const url = new URL(ownerUrl);
  url.pathname = '/postgres';
  const client = await connect(url.href, { name: 'tests', statementTimeoutMs: 60_000 });
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}

interface Server extends Logins {
  stop(): Promise<void>;
}

/** The roles that the tests' services connect as, on a server that was given to us. */
async function borrow(ownerUrl: string): Promise<Server> {
  const suffix = randomBytes(4).toString('hex');
  const urls: Partial<Record<Duty, string>> = {};
  for (const duty of duties) {
    const role = `fieldkeep_test_${duty}_${suffix}`;
    await admin(ownerUrl, [`create role ${role} login password '${role}'`]);
    const url = new URL(ownerUrl);
    url.username = url.password = role;
    urls[duty] = url.href;
  }
  return { ownerUrl, apiUrl: urls.api!, workerUrl: urls.worker!, rowsUrl: urls.rows!, stop: () => Promise.resolve() };
}

/** As a process with the owner's rights does it. */
export async function migrateAll({ ownerUrl, apiUrl, workerUrl, rowsUrl }: Logins): Promise<void> {
  const roles = { api: roleOf(apiUrl), worker: roleOf(workerUrl), rows: roleOf(rowsUrl) };
  await migrate(ownerUrl, roles, () => undefined);
  await migrateQueues(ownerUrl, roles.worker);
}

/** The same logins in another database of the server. */
function inDatabase({ ownerUrl, apiUrl, workerUrl, rowsUrl }: Logins, name: string): Logins {
  const at = (url: string) => withDatabase(url, name);
  return { ownerUrl: at(ownerUrl), apiUrl: at(apiUrl), workerUrl: at(workerUrl), rowsUrl: at(rowsUrl) };
}

async function embed(): Promise<Server> {
  const home = mkdtempSync(join(tmpdir(), 'fieldkeep-test-'));
  chmodSync(home, 0o711); // as root, Postgres runs as another user below it
  const settings = { fsync: 'off', max_connections: '300', max_prepared_transactions: '10' };
  const postgres = await startPostgres({ home, settings });
  return {
    ...postgres,
    async stop() {
      await postgres.stop();
      rmSync(home, { recursive: true, force: true });
    },
  };
}

/** Starts the server and migrates the template. Answers how to stop it. */
export async function startCluster(): Promise<() => Promise<void>> {
  const url = process.env.TEST_DATABASE_URL;
  const server = url === undefined ? await embed() : await borrow(url);
  const template = `fieldkeep_template_${randomBytes(4).toString('hex')}`;
  await admin(server.ownerUrl, [`create database ${template}`]);
  await migrateAll(inDatabase(server, template));
  const { ownerUrl, apiUrl, workerUrl, rowsUrl } = server;
  process.env[variable] = JSON.stringify({ ownerUrl, apiUrl, workerUrl, rowsUrl, template } satisfies Cluster);
  return async () => {
    await admin(server.ownerUrl, [`drop database if exists ${template} with (force)`]);
    await server.stop();
  };
}

function getCluster(): Cluster {
  const told = process.env[variable];
  if (told === undefined) throw new Error('No server was started for this run: mocha needs test/support/hooks.ts.');
  return JSON.parse(told) as Cluster;
}

function withDatabase(url: string, name: string): string {
  const changed = new URL(url);
  changed.pathname = `/${name}`;
  return changed.href;
}

let cloning: Promise<void> = Promise.resolve();

/** A migrated database with nothing in it. */
export async function createDatabase(): Promise<TestDatabase> {
  const cluster = getCluster();
  const { ownerUrl, template } = cluster;
  const name = `fieldkeep_test_${randomBytes(6).toString('hex')}`;
  cloning = cloning.then(() => admin(ownerUrl, [`create database ${name} template ${template}`]));
  await cloning;
  return {
    ...inDatabase(cluster, name),
    drop: () => admin(ownerUrl, [`drop database if exists ${name} with (force)`]),
  };
}

/** A server of its own, migrated: what it writes to its log is nobody else's. */
export async function createServer(): Promise<TestDatabase> {
  const server = await embed();
  await migrateAll(server);
  return { ...server, drop: () => server.stop() };
}

/** A database of a customer's: nothing of ours in it but what its owner installs by migrations/target.sql, if `prepared`. */
export async function createTarget(prepared = true): Promise<TestDatabase> {
  const cluster = getCluster();
  const { ownerUrl, workerUrl } = cluster;
  const name = `customer_test_${randomBytes(6).toString('hex')}`;
  await admin(ownerUrl, [`create database ${name}`]);
  const sql = readFileSync(new URL('../../migrations/target.sql', import.meta.url), 'utf8');
  const target = withDatabase(ownerUrl, name);
  if (prepared) {
    const client = await connect(target, { name: 'target' });
    try {
      await client.query(sql.replaceAll(':service', quoteIdentifier(roleOf(workerUrl))));
    } finally {
      await client.end();
    }
  }
  return {
    ...inDatabase(cluster, name),
    drop: () => admin(ownerUrl, [`drop database if exists ${name} with (force)`]),
  };
}
