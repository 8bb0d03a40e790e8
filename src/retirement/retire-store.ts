/** SQL of retiring versions, in Fieldkeep's own database: when a family was looked at, and what is known of it. */
import type { Queryable } from '../db.ts';
import type { UndeclaredSearch } from './undeclared.ts';

/** What keeps a column from being guarded, in a sentence. */
export interface ColumnProblem {
  readonly table: string;
  readonly column: string;
  readonly problem: string;
}

/** Takes the look at a family that is due; false when somebody looked less than `everyMs` ago. */
export async function claimWatch(db: Queryable, family: string, everyMs: number): Promise<boolean> {
  const { rowCount } = await db.query(
    `insert into fieldkeep.watches as w (family, looked_at) values ($1, clock_timestamp())
     on conflict (family) do update set looked_at = excluded.looked_at
     where w.looked_at <= excluded.looked_at - make_interval(secs => $2::float8 / 1000)
        or w.looked_at > excluded.looked_at`,
    [family, everyMs],
  );
  return rowCount === 1;
}

export async function setProblems(db: Queryable, family: string, problems: readonly ColumnProblem[]): Promise<void> {
  await db.query(
    'update fieldkeep.watches set problems = $2::text::json where family = $1 and problems::text <> $2::text',
    [family, JSON.stringify(problems)],
  );
}

export async function listProblems(db: Queryable, family: string): Promise<ColumnProblem[]> {
  const { rows } = await db.query<{ problems: ColumnProblem[] }>(
    'select problems from fieldkeep.watches where family = $1',
    [family],
  );
  return rows[0]?.problems ?? [];
}

/** What a search of a family's envelopes in columns that nobody registered came to, and when. */
export interface StoredSearch extends UndeclaredSearch {
  /** By the database's clock; negative where that was set back since. */
  readonly ageMs: number;
  readonly upToVersion: number;
}

export async function setUndeclared(
  db: Queryable,
  family: string,
  upToVersion: number,
  search: UndeclaredSearch,
): Promise<void> {
  await db.query(
    `insert into fieldkeep.watches (family, looked_at, searched_at, searched_up_to, undeclared)
     values ($1, '-infinity', clock_timestamp(), $2, $3)
     on conflict (family) do update set searched_at = excluded.searched_at, searched_up_to = excluded.searched_up_to,
       undeclared = excluded.undeclared`,
    [family, upToVersion, JSON.stringify(search)],
  );
}

export async function findUndeclaredSearch(db: Queryable, family: string): Promise<StoredSearch | undefined> {
  const { rows } = await db.query<{ age: number; searched_up_to: number; undeclared: UndeclaredSearch }>(
    `select extract(epoch from clock_timestamp() - searched_at)::float8 * 1000 as age, searched_up_to, undeclared
     from fieldkeep.watches where family = $1 and undeclared is not null`,
    [family],
  );
  const row = rows[0];
  if (row === undefined) return undefined;
  return { ageMs: row.age, upToVersion: row.searched_up_to, ...row.undeclared };
}

/** By the database's clock: now, and when the last rotation of a family was done. */
export async function readClock(
  db: Queryable,
  family: string,
): Promise<{ readonly now: Date; readonly doneAt?: Date }> {
  const { rows } = await db.query<{ now: Date; done_at: Date | null }>(
    `select clock_timestamp() as now, max(done_at) as done_at from fieldkeep.rotations
     where family = $1 and kind = 'rotation' and cancelled is null`,
    [family],
  );
  const { now, done_at } = rows[0]!;
  return { now, ...(done_at !== null && { doneAt: done_at }) };
}

/** The newest rotation of a family that was done, its waivers being those that count. */
export async function findLastDone(db: Queryable, family: string): Promise<string | undefined> {
  const { rows } = await db.query<{ id: string }>(
    `select id from fieldkeep.rotations
     where family = $1 and kind = 'rotation' and done_at is not null and cancelled is null
     order by done_at desc limit 1`,
    [family],
  );
  return rows[0]?.id;
}

/** What was given up in one run stays given up in the next, row by row. */
export async function copyWaivers(tx: Queryable, from: string, to: string): Promise<void> {
  await tx.query(
    `insert into fieldkeep.rotation_failures (rotation, "table", "column", row, code, pass, waived_at, waived_by)
     select $2, "table", "column", row, code, 0, waived_at, waived_by from fieldkeep.rotation_failures
     where rotation = $1 and waived_at is not null on conflict do nothing`,
    [from, to],
  );
}

/** Whether the version is the active one; held so until the transaction ends. */
export async function isActive(tx: Queryable, family: string, version: number): Promise<boolean> {
  const { rowCount } = await tx.query(
    `select from fieldkeep.key_versions where family = $1 and version = $2 and state = 'active' for share`,
    [family, version],
  );
  return rowCount === 1;
}
