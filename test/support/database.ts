/**
 * Databases for tests. One embedded Postgres serves a whole run (or the server of TEST_DATABASE_URL, a superuser's URL);
 * every suite gets a database of its own, cloned from a template that was migrated once.
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, chmodSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, migrate, quoteIdentifier, roleOf } from '../../src/db.ts';
import { startPostgres } from '../../src/embedded/postgres.ts';
import { migrateQueues } from '../../src/jobs/queues.ts';

export interface TestDatabase {
  readonly ownerUrl: string;
  readonly serviceUrl: string;
  drop(): Promise<void>;
}

interface Cluster {
  readonly ownerUrl: string;
  readonly serviceUrl: string;
  stop(): Promise<void>;
}

const template = `fieldkeep_template_${randomBytes(4).toString('hex')}`;

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

/** The role that the tests' services connect as, on a server that was given to us. */
async function borrow(ownerUrl: string): Promise<Cluster> {
  const role = `fieldkeep_test_${randomBytes(4).toString('hex')}`;
  await admin(ownerUrl, [`create role ${role} login password '${role}'`]);
  const serviceUrl = new URL(ownerUrl);
  serviceUrl.username = role;
  serviceUrl.password = role;
  return { ownerUrl, serviceUrl: serviceUrl.href, stop: () => Promise.resolve() };
}

async function embed(): Promise<Cluster> {
  const home = mkdtempSync(join(tmpdir(), 'fieldkeep-test-'));
  chmodSync(home, 0o711); // as root, Postgres runs as another user below it
  const settings = { fsync: 'off', max_connections: '200' };
  const postgres = await startPostgres({ home, settings });
  return {
    ...postgres,
    async stop() {
      await postgres.stop();
      rmSync(home, { recursive: true, force: true });
    },
  };
}

async function start(): Promise<Cluster> {
  const url = process.env.TEST_DATABASE_URL;
  const cluster = url === undefined ? await embed() : await borrow(url);
  await admin(cluster.ownerUrl, [`create database ${template}`]);
  const ownerUrl = withDatabase(cluster.ownerUrl, template);
  await migrate(ownerUrl, roleOf(cluster.serviceUrl), () => undefined);
  await migrateQueues(ownerUrl, roleOf(cluster.serviceUrl));
  return cluster;
}

function withDatabase(url: string, name: string): string {
  const changed = new URL(url);
  changed.pathname = `/${name}`;
  return changed.href;
}

let cluster: Promise<Cluster> | undefined;
let cloning: Promise<void> = Promise.resolve();

/** A migrated database with nothing in it. */
export async function createDatabase(): Promise<TestDatabase> {
  const { ownerUrl, serviceUrl } = await (cluster ??= start());
  const name = `fieldkeep_test_${randomBytes(6).toString('hex')}`;
  cloning = cloning.then(() => admin(ownerUrl, [`create database ${name} template ${template}`]));
  await cloning;
  return {
    ownerUrl: withDatabase(ownerUrl, name),
    serviceUrl: withDatabase(serviceUrl, name),
    drop: () => admin(ownerUrl, [`drop database if exists ${name} with (force)`]),
  };
}

/** A database of a customer's: nothing of ours in it but what its owner installs by migrations/target.sql. */
export async function createTarget(): Promise<TestDatabase> {
  const { ownerUrl, serviceUrl } = await (cluster ??= start());
  const name = `customer_test_${randomBytes(6).toString('hex')}`;
  await admin(ownerUrl, [`create database ${name}`]);
  const sql = readFileSync(new URL('../../migrations/target.sql', import.meta.url), 'utf8');
  const target = withDatabase(ownerUrl, name);
  const client = await connect(target, { name: 'target' });
  try {
    await client.query(sql.replaceAll(':service', quoteIdentifier(roleOf(serviceUrl))));
  } finally {
    await client.end();
  }
  return {
    ownerUrl: target,
    serviceUrl: withDatabase(serviceUrl, name),
    drop: () => admin(ownerUrl, [`drop database if exists ${name} with (force)`]),
  };
}

/** The cluster itself, for tests that restart it. */
export async function stopCluster(): Promise<void> {
  if (cluster === undefined) return;
  const running = await cluster;
  cluster = undefined;
  await admin(running.ownerUrl, [`drop database if exists ${template} with (force)`]);
  await running.stop();
}
