/**
 * Brings the schema up to date as its owner, and gives each role the rights of its duty and no others (migrations/grants.sql).
 * The only importer of the migration runner.
 */
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { readdirSync } from 'node:fs';
import { runner } from 'node-pg-migrate';
import { connect, quoteIdentifier, roleOf, sqlState, type Client, type Queryable } from './db.ts';

/**
 * What a login is for. `api` faces agents, `worker` faces nobody, `rows` reads and writes the registered columns and runs
 * nothing else, because the customer's own code runs in its sessions.
 */
export const duties = ['api', 'worker', 'rows'] as const;
export type Duty = (typeof duties)[number];

/** The logins by duty. One that is not named is looked for under its usual name. */
export type Roles = Readonly<Partial<Record<Duty, string>>>;

export const usualRole = (duty: Duty): string => `fieldkeep_${duty}`;

const migrationsFolder = fileURLToPath(new URL('../migrations', import.meta.url));
const ourSchemas = ['fieldkeep', 'fieldkeep_jobs', 'demo'] as const;
/** Somebody else makes the same thing at the same moment: unique violation, duplicate schema, duplicate table. */
const madeMeanwhile: ReadonlySet<string | undefined> = new Set(['23505', '42P06', '42P07']);

/**
 * Lets one process migrate at a time: holds a table of ours for itself until the connection ends. Not an advisory lock,
 * because any login of the database can take one and keep us waiting.
 */
async function lockMigrations(client: Client): Promise<void> {
  for (let tries = 1; ; tries += 1) {
    try {
      await client.query('create schema if not exists fieldkeep');
      await client.query('create table if not exists fieldkeep.migrating ()');
      break;
    } catch (error) {
      if (tries === 5 || !madeMeanwhile.has(sqlState(error))) throw error;
    }
  }
  await client.query('begin');
  await client.query('lock table fieldkeep.migrating in exclusive mode');
}

/** Runs `work` while no other process migrates this database. */
async function whileMigrating<T>(ownerUrl: string, work: () => Promise<T>): Promise<T> {
  const client = await connect(ownerUrl, { name: 'migrate', statementTimeoutMs: 0 });
  try {
    await lockMigrations(client);
    return await work();
  } finally {
    await client.end();
  }
}

/** Running it again changes nothing; two at once wait for each other. An owner that serves itself is given nothing. */
export async function migrate(ownerUrl: string, roles: Roles, log: (line: string) => void): Promise<void> {
  const client = await connect(ownerUrl, { name: 'migrate', statementTimeoutMs: 0 });
  try {
    await whileMigrating(ownerUrl, async () => {
      await runner({
        dbClient: client,
        dir: migrationsFolder,
        ignorePattern: '(\\..*|grants\\.sql|target\\.sql)',
        direction: 'up',
        schema: 'public',
        migrationsSchema: 'fieldkeep',
        createMigrationsSchema: true,
        migrationsTable: 'migrations',
        noLock: true,
        log,
        logger: { debug: () => undefined, info: log, warn: log, error: log },
      });
      await grantAll(client, roles, roleOf(ownerUrl));
    });
  } finally {
    await client.end();
  }
}

/** The role of every duty that has one in this server. */
async function listRoles(db: Queryable, roles: Roles): Promise<{ role: string; duty: Duty }[]> {
  const named = duties.map((duty) => ({ duty, role: roles[duty] ?? usualRole(duty) }));
  const { rows } = await db.query<{ name: string }>('select rolname as name from pg_roles where rolname = any ($1)', [
    named.map(({ role }) => role),
  ]);
  return named.filter(({ role }) => rows.some(({ name }) => name === role));
}

/** A role with several duties, as on a laptop, gets the rights of each. */
async function grantAll(client: Client, roles: Roles, owner: string): Promise<void> {
  const text = await readFile(`${migrationsFolder}/grants.sql`, 'utf8');
  const sections = new Map(text.split(/^-- duty: /m).map((each) => [each.split('\n', 1)[0]!, each.replace(/^.*/, '')]));
  const found = (await listRoles(client, roles)).filter(({ role }) => role !== owner);
  await client.query('begin');
  try {
    for (const role of new Set(found.map((each) => each.role))) await revokeAll(client, role);
    for (const { role, duty } of found) {
      await client.query(sections.get(duty)!.replaceAll(':role', quoteIdentifier(role)));
    }
    await client.query('commit');
  } catch (error) {
    await client.query('rollback');
    throw error;
  }
}

/** What an earlier release, or somebody else, gave the role in our schemas. */
async function revokeAll(client: Client, role: string): Promise<void> {
  const { rows } = await client.query<{ name: string }>(
    'select nspname as name from pg_namespace where nspname = any ($1)',
    [ourSchemas],
  );
  const to = quoteIdentifier(role);
  for (const { name } of rows) {
    await client.query(`revoke all on all tables in schema ${name} from ${to}`);
    await client.query(`revoke all on all sequences in schema ${name} from ${to}`);
    await client.query(`revoke all on all routines in schema ${name} from ${to}`);
    await client.query(`revoke all on schema ${name} from ${to}`);
  }
}

/** The newest migration of this release. */
function newestMigration(): string {
  const names = readdirSync(migrationsFolder).filter((name) => /^\d{4}_.*\.sql$/.test(name));
  return names
    .sort()
    .at(-1)!
    .replace(/\.sql$/, '');
}

/** Whether the schema is as this release needs it, or newer; asked by a process that may not migrate. */
export async function isMigrated(db: Queryable): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    'select exists (select from fieldkeep.migrations where name = $1) as found',
    [newestMigration()],
  );
  return rows[0]!.found;
}

/** What a login that faces agents may write: its groups and streams, what it asks, and that it lives. */
const apiWrites = ['audit_streams', 'audit_intake', 'audit_lost', 'asked_calls', 'instances', 'instance_ready'];

/** Tables that this session may change although it faces agents, ours and anybody's; `all tables` of a superuser. */
export async function listApiExcess(db: Queryable): Promise<string[]> {
  const { rows: own } = await db.query<{ superuser: boolean }>(
    'select rolsuper as superuser from pg_roles where rolname = current_user',
  );
  if (own[0]?.superuser === true) return ['all tables'];
  const { rows } = await db.query<{ name: string }>(
    `select n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
       and not (n.nspname = 'fieldkeep' and c.relname = any ($1))
       and (has_any_column_privilege(c.oid, 'insert, update') or has_table_privilege(c.oid, 'delete, truncate'))
     order by 1`,
    [apiWrites],
  );
  return rows.map(({ name }) => name);
}
