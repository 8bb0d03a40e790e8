/** Looks at a database as a plan wants it looked at, and brings single steps about. Knows no policy file and no environment. */
import { setTimeout as sleep } from 'node:timers/promises';
import { sqlState, type Client, type Queryable } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { inspectTable, listComparing } from './catalog-store.ts';
import { listFixed, quotePlace, setLockTimeout, type TargetPlanOptions } from './plan.ts';
import type { PlaceName, RoleState, Step, TableState, TargetState } from './state.ts';
import {
  describeSchema,
  findPowerlessGuard,
  findRights,
  findRole,
  findTable,
  isFiltered,
  listElsewhere,
  listGuarded,
  listIndexes,
  listIntruders,
  listInvalid,
  listPartitions,
  listReaderGaps,
  mayUseSchema,
  putAside,
} from './store.ts';

const noRights = { owner: false, usage: false, table: [], columns: new Map<string, readonly string[]>() };

/** The leaves of the partitioned tables among these columns', by address. */
export async function findPartitions(
  db: Queryable,
  columns: readonly RegisteredColumn[],
): Promise<Map<string, readonly PlaceName[]>> {
  const found = new Map<string, readonly PlaceName[]>();
  for (const column of columns) {
    const table = found.has(column.address) ? undefined : await findTable(db, column);
    if (table?.partitioned === true) found.set(column.address, await listPartitions(db, table.oid));
  }
  return found;
}

async function lookAtTable(
  db: Queryable,
  columns: readonly RegisteredColumn[],
  rows: TargetState['rows'],
): Promise<TableState | undefined> {
  const { schema, name, key } = columns[0]!;
  const table = await findTable(db, columns[0]!);
  if (table === undefined) return undefined;
  const seen = await inspectTable(db, schema, name, key);
  const tokens = columns.flatMap(({ index }) => index.map(({ column }) => column));
  const unguardedBy = await findPowerlessGuard(db, table.oid);
  return {
    types: new Map(Array.from(seen.attributes, ([column, { type }]) => [column, type])),
    unique: seen.unique,
    versionIndexed: seen.versionIndexed,
    indexes: await listIndexes(db, table.oid),
    comparing: await listComparing(db, schema, name, tokens),
    filtered: await isFiltered(db, table.oid, rows.name),
    rights: rows.exists ? await findRights(db, table.oid, rows.name) : noRights,
    ownerName: table.ownerName,
    ...(unguardedBy !== undefined && { unguardedBy }),
  };
}

/**
 * What of the schema fieldkeep is not as migrations/target.sql makes it, as the owner: it is made anew beside the one that
 * stands there, and rolled back.
 */
async function compareFixed(db: Client, statements: readonly string[], worker: string): Promise<string[]> {
  const before = await describeSchema(db, worker);
  await db.query('begin');
  try {
    await db.query(setLockTimeout);
    await putAside(db);
    for (const statement of statements) await db.query(statement);
    const after = await describeSchema(db, worker);
    const differing = Array.from(after).flatMap(([what, text]) => {
      const found = before.get(what);
      if (found === undefined) return [`${what} is missing`];
      return found === text ? [] : [`${what} is not as migrations/target.sql makes it`];
    });
    const nameOf = (what: string) => what.replace(/\(.*/s, '('); // of functions alone: another one of the name may be called
    const names = new Set(Array.from(after.keys(), nameOf));
    const twice = Array.from(before.keys()).filter(
      (what) => what.includes('(') && names.has(nameOf(what)) && !after.has(what),
    );
    return [...differing, ...twice.map((what) => `${what} stands beside that of migrations/target.sql: drop it`)];
  } catch (error) {
    const state = sqlState(error);
    if (state === undefined) throw error;
    return [`migrations/target.sql fails there (${state}): ${(error as Error).message}`];
  } finally {
    await db.query('rollback');
  }
}

/** What migrations/target.sql makes and the database lacks, by name alone. */
async function listMissing(db: Queryable, sql: string, worker: string): Promise<string[]> {
  const there = [...(await describeSchema(db, worker)).keys()].map((what) => what.replace(/\(.*/s, ''));
  const wanted = Array.from(
    sql.matchAll(/^create (?:or replace )?(function|table|view)(?: if not exists)? (fieldkeep\.\w+)/gm),
    ([, kind, name]) => `${kind === 'function' ? 'function' : 'table'} ${name}`,
  );
  return wanted.filter((what) => !there.includes(what)).map((what) => `${what} is missing`);
}

async function lookAtFixed(
  db: Client,
  { fixed, worker }: TargetPlanOptions,
  exists: boolean,
  asOwner: boolean,
): Promise<string[]> {
  if (fixed === undefined) return [];
  if (!asOwner) return await listMissing(db, fixed, worker);
  if (!exists) return [`role ${worker} is missing, who is given rights there`];
  return await compareFixed(db, listFixed(fixed, worker), worker);
}

/** Whether `db` is the owner's decides what can be seen: others see all but how our own functions and tables differ. */
export async function lookAtTarget(db: Client, options: TargetPlanOptions, asOwner: boolean): Promise<TargetState> {
  const { columns, worker: workerName, reader: readerName, application } = options;
  const worker = await findRole(db, workerName);
  const isApart = options.rows !== undefined && options.rows !== workerName;
  const rows = isApart ? await findRole(db, options.rows) : worker;
  const reader = readerName === undefined ? undefined : await findRole(db, readerName);
  const tables = new Map<string, TableState>();
  for (const [address, each] of Map.groupBy(columns, (column) => column.address)) {
    const found = await lookAtTable(db, each, rows);
    if (found !== undefined) tables.set(address, found);
  }
  const registered = columns.map(({ table }) => table);
  const listOf = async (role: RoleState, known: readonly string[]) =>
    !role.exists || role.superuser ? [] : await listElsewhere(db, role.name, known); // both are told as that
  const none = { unreadable: [], filtered: [], writable: [] };
  const guarded = await listGuarded(db);
  return {
    worker,
    rows,
    rowsMayUse: await mayUseSchema(db, rows.name),
    ...(reader !== undefined && { reader }),
    tables,
    elsewhere: await listOf(rows, registered),
    workerElsewhere: isApart ? await listOf(worker, []) : [],
    ...(reader?.exists === true ? await listReaderGaps(db, reader.name) : none),
    fixed: await lookAtFixed(db, options, worker.exists, asOwner),
    intruders: options.fixed === undefined ? [] : await listIntruders(db, workerName),
    ...(guarded !== undefined && { guarded }),
    ...(application !== undefined && { applicationMayUse: await mayUseSchema(db, application) }),
  };
}

/** How often a step asks for a table that others keep locked, and how long it lets them go on in between. */
const lockTries = 5;
const lockRestMs = 1_000;

async function runAtOnce(db: Client, statements: readonly string[]): Promise<void> {
  await db.query('begin');
  try {
    await db.query(setLockTimeout);
    for (const statement of statements) await db.query(statement);
    await db.query('commit');
  } catch (error) {
    await db.query('rollback');
    throw error;
  }
}

/** Brings a step about, as the owner. Errors: those of the database; an atomic step is then undone. */
export async function applyStep(db: Client, { statements, atomic, indexes = [] }: Step): Promise<void> {
  const invalid = await listInvalid(db, indexes);
  if (!atomic) await db.query('set lock_timeout = 0'); // it waits for every transaction that is older, and in nobody's way
  for (const index of invalid) {
    await db.query(`drop index concurrently if exists ${quotePlace(index)}`);
  }
  if (!atomic) {
    for (const statement of statements) await db.query(statement);
    return;
  }
  for (let tries = 1; ; tries += 1) {
    try {
      return await runAtOnce(db, statements);
    } catch (error) {
      if (sqlState(error) !== '55P03' || tries === lockTries) throw error;
      await sleep(lockRestMs);
    }
  }
}
