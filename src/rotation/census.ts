/**
 * Counts of values per column and version over the customer's tables: what has to be done, and at the end the proof that
 * nothing is left. Each proves that the session still has `row_security = off`, with all the rest: a count that a policy
 * would filter is an error, not a zero.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Queryable } from '../db.ts';
import type { TableShape } from '../targets/catalog.ts';
import { sessionProof } from '../targets/targets.ts';
import { Parameters, staleCondition, tableName, versionSql } from './conditions.ts';
import type { Stale } from './work.ts';

/** How many values there are by version; 0 is plaintext, -1 text that begins like an envelope and is none. Nulls are not counted. */
export async function countVersions(db: Queryable, table: TableShape, column: string): Promise<Map<number, number>> {
  const version = versionSql(column);
  const { rows } = await db.query<{ version: number; n: string }>(
    `select ${version} as version, count(*) as n from ${tableName(table)} t
     where ${sessionProof} and ${version} is not null group by 1`,
  );
  return new Map(rows.map((row) => [row.version, Number(row.n)]));
}

/** How many rows there are in which one of these is so. */
export async function countStale(db: Queryable, table: TableShape, stale: readonly Stale[]): Promise<number> {
  const parameters = new Parameters();
  const { rows } = await db.query<{ n: string }>(
    `select count(*) as n from ${tableName(table)} t
     where ${sessionProof} and ${staleCondition(table, stale, parameters)}`,
    parameters.values,
  );
  return Number(rows[0]!.n);
}

export async function hasStale(db: Queryable, table: TableShape, stale: readonly Stale[]): Promise<boolean> {
  const parameters = new Parameters();
  const { rows } = await db.query<{ found: boolean }>(
    `select exists (
       select from ${tableName(table)} t where ${sessionProof} and ${staleCondition(table, stale, parameters)}
     ) as found`,
    parameters.values,
  );
  return rows[0]!.found;
}

/**
 * Whether the column holds what a guard of `version` would refuse: older envelopes, text that only begins like one, and
 * plaintext unless that is let in.
 */
export async function hasRefusable(
  db: Queryable,
  table: TableShape,
  column: string,
  { version, plaintext }: { readonly version: number; readonly plaintext: boolean },
): Promise<boolean> {
  const [rows, found] = [`${tableName(table)} t`, versionSql(column)];
  const { rows: answer } = await db.query<{ found: boolean }>(
    `select exists (select from ${rows} where ${sessionProof} and ${found} < 0)
         or exists (select from ${rows} where ${sessionProof} and ${found} >= $1 and ${found} < $2) as found`,
    [plaintext ? 1 : 0, version],
  );
  return answer[0]!.found;
}

/** Whether the function that all counts and guards rest on says what it is to say. */
export async function countsRightly(db: Queryable): Promise<boolean> {
  const known = [null, null, '', 0, 'x', 0, 'fe1.ssn.1.AA', 1, 'fe1.ssn.42.AA', 42, 'fe1.ssn.01.AA', -1, 'fe7.x', -1];
  const { rows } = await db.query<{ found: boolean }>(
    `select bool_and(fieldkeep.fe_version(k.text) is not distinct from k.version) as found
     from unnest($1::text[], $2::int[]) as k (text, version)`,
    [known.filter((_, i) => i % 2 === 0), known.filter((_, i) => i % 2 === 1)],
  );
  return rows[0]!.found;
}

/** The lowest and the highest version in a column, undefined when it holds nothing; with the version index at once. */
export async function findVersionBounds(
  db: Queryable,
  table: TableShape,
  column: string,
): Promise<{ lowest: number; highest: number } | undefined> {
  const version = versionSql(column);
  const { rows } = await db.query<{ lowest: number | null; highest: number | null }>(
    `select min(${version}) as lowest, max(${version}) as highest from ${tableName(table)} t
     where ${sessionProof}`,
  );
  const { lowest, highest } = rows[0]!;
  return lowest === null || highest === null ? undefined : { lowest, highest };
}

/** Transactions that hold a lock for writing on the table or what is part of it, partitions and heirs; a prepared one has no process. */
async function listWriters(db: Queryable, table: TableShape, among?: readonly string[]): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `with recursive part (oid) as (
       select $1::regclass::oid union select i.inhrelid from pg_inherits i join part on i.inhparent = part.oid
     )
     select distinct l.virtualtransaction as id from pg_locks l
     where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.pid is distinct from pg_backend_pid()
       and l.database = (select oid from pg_database where datname = current_database())
       and l.relation in (select oid from part)
       and ($2::text[] is null or l.virtualtransaction = any ($2))`,
    [tableName(table), among ?? null],
  );
  return rows.map((row) => row.id);
}

/**
 * Waits until every transaction that was writing to the table has ended: what it wrote is then seen by a count. False
 * when one has not ended within `maxMs`; the caller asks again later.
 */
export async function waitOutWriters(db: Queryable, table: TableShape, maxMs: number): Promise<boolean> {
  const deadline = performance.now() + maxMs;
  let writers = await listWriters(db, table);
  while (writers.length > 0) {
    if (performance.now() > deadline) return false;
    await sleep(20);
    writers = await listWriters(db, table, writers);
  }
  return true;
}
