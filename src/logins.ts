/**
 * The logins that a process uses at Fieldkeep's own database, one for each duty, and whether they are what they should be:
 * the one that faces agents changes no key, no run and no approval, and none owns the audit log.
 */
import type { Logger } from 'pino';
import type { Config } from './config.ts';
import { connect, findRefusal, isUnavailable, roleOf, sqlState } from './db.ts';
import { startPostgres } from './embedded/postgres.ts';
import { describeError, StartupError } from './errors.ts';
import { migrateQueues } from './jobs/queues.ts';
import { isMigrated, listApiExcess, migrate, usualRole, type Roles } from './migrate.ts';
import type { Step } from './stopping.ts';
import type { TargetName } from './targets/targets.ts';

export interface Database {
  /** Of each duty's login; the same where one login has both duties. */
  readonly apiUrl: string;
  readonly workerUrl: string;
  /** Absent where migrating is left to somebody else, unless the login may. */
  readonly ownerUrl?: string;
  /** Logins for rows alone and for reading, by the name of the database; undefined names our own. */
  readonly rows: ReadonlyMap<TargetName, string>;
  readonly readers: ReadonlyMap<TargetName, string>;
  readonly embedded: boolean;
}

/** `undo` is told how to stop a server that was started for it. */
export async function openDatabase(config: Config, undo: Step[]): Promise<Database> {
  const { databaseUrl: url, databaseOwnerUrl: ownerUrl, readers } = config;
  if (url !== undefined) {
    // One login for everything, as on a laptop, works on rows as well.
    const isAlone = !config.production && config.role === 'all' && config.databaseWorkerUrl === undefined;
    const rows = isAlone ? new Map([[undefined, url], ...config.rows]) : config.rows;
    const urls = { apiUrl: url, workerUrl: config.databaseWorkerUrl ?? url, rows, readers, embedded: false };
    return ownerUrl === undefined ? urls : { ...urls, ownerUrl };
  }
  const postgres = await startPostgres({ home: config.home });
  undo.push({ what: 'Embedded Postgres', run: () => postgres.stop(), maxMs: 6_000 });
  return {
    ...postgres,
    rows: new Map<TargetName, string>([[undefined, postgres.rowsUrl], ...config.rows]),
    readers: new Map<TargetName, string>([[undefined, postgres.readerUrl], ...readers]),
    embedded: true,
  };
}

/** The logins that this process knows of, by duty; those of others are found by their usual names. */
function rolesOf({ role }: Config, { apiUrl, workerUrl, rows }: Database): Roles {
  const rowsUrl = rows.get(undefined);
  return {
    ...(role !== 'worker' && { api: roleOf(apiUrl) }),
    ...(role !== 'api' && { worker: roleOf(workerUrl) }),
    ...(rowsUrl !== undefined && { rows: roleOf(rowsUrl) }),
  };
}

/** Whether the schema is there as this release needs it. Errors: those of the database. */
async function findMigrated(url: string): Promise<boolean> {
  const client = await connect(url, { name: 'start' });
  try {
    return await isMigrated(client);
  } catch (error) {
    if (['42P01', '3F000', '42501'].includes(sqlState(error) ?? '')) return false; // nothing there, or not for us
    throw error;
  } finally {
    await client.end();
  }
}

/** With the owner's URL the database is brought up to date; without it, it must be. */
export async function migrateAll(config: Config, database: Database, log: Logger): Promise<void> {
  const { apiUrl, workerUrl } = database;
  const ownUrl = config.role === 'worker' ? workerUrl : apiUrl;
  try {
    // Also where the owner migrates: a login that is not there, or not let in, must stop us before anything is changed.
    const migrated = await findMigrated(ownUrl);
    if (database.ownerUrl === undefined && migrated) return;
    const ownerUrl = database.ownerUrl ?? ownUrl;
    const roles = rolesOf(config, database);
    await migrate(ownerUrl, roles, (line) => log.debug(line));
    await migrateQueues(ownerUrl, roles.worker ?? usualRole('worker'));
  } catch (error) {
    if (findRefusal(error) !== undefined) throw error;
    if (isUnavailable(error))
      throw new StartupError('The database cannot be reached: check DATABASE_URL and that it runs.');
    const { code } = describeError(error);
    if (code === '28P01' || code === '28000')
      throw new StartupError('The database refuses the credentials of DATABASE_URL.');
    if (code === '42501') {
      throw new StartupError(
        'The database is not as this release needs it, and this login may not migrate it: set DATABASE_OWNER_URL.',
      );
    }
    throw error;
  }
}

/** Says, or in production refuses, that a login may do more than its duty. */
export async function checkLogins(
  config: Pick<Config, 'role' | 'production'>,
  { apiUrl, workerUrl, embedded }: Pick<Database, 'apiUrl' | 'workerUrl' | 'embedded'>,
  log: Pick<Logger, 'warn'>,
): Promise<void> {
  if (embedded) return;
  const found: string[] = [];
  if ((await ownsLog(apiUrl)) || (await ownsLog(workerUrl))) {
    found.push('A login of the service owns its audit log: DATABASE_OWNER_URL must name another role.');
  }
  if (config.role !== 'worker') found.push(...(await describeApiExcess(apiUrl)));
  if (found.length === 0) return;
  if (config.production) throw new StartupError(found.join(' '));
  for (const sentence of found) log.warn(sentence);
}

/** Whether the login has the rights of whoever owns the audit log, by itself or by way of another role. */
async function ownsLog(url: string): Promise<boolean> {
  const client = await connect(url, { name: 'start' });
  try {
    const { rows } = await client.query<{ owns: boolean }>(
      `select pg_has_role(relowner, 'usage') as owns from pg_class where oid = 'fieldkeep.audit_intake'::regclass`,
    );
    return rows[0]!.owns;
  } finally {
    await client.end();
  }
}

async function describeApiExcess(url: string): Promise<string[]> {
  const client = await connect(url, { name: 'start' });
  try {
    const excess = await listApiExcess(client);
    if (excess.length === 0) return [];
    return [
      `The login that faces agents, ${roleOf(url)}, may change ${excess.join(', ')}: give each duty a login of its own (docs/roles.md).`,
    ];
  } finally {
    await client.end();
  }
}
