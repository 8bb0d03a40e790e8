/** SQL of a pass: its ranges, who works on them, how far they got, and what is done of each column. */
import type { Client, Queryable } from '../db.ts';
import type { Key } from './batch.ts';
import { insertFailures, type Failure } from './failure-store.ts';
import { overtaken, present } from './store.ts';

export interface RangeSpec {
  readonly id: string;
  readonly table: string;
  readonly lower?: Key;
  readonly upper?: Key;
}

/**
 * Writes a pass down as a whole: its ranges, and with the first pass what there is to do. Errors: `conflict` when it is
 * there already.
 */
export async function insertPass(
  tx: Client,
  run: string,
  pass: number,
  ranges: readonly RangeSpec[],
  totals: readonly { table: string; column: string; total: number }[],
): Promise<void> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations set pass = $2, planned_at = coalesce(planned_at, clock_timestamp()), blocked = null
     where id = $1 and pass = $2 - 1 and done_at is null`,
    [run, pass],
  );
  if (rowCount !== 1) throw overtaken(run);
  await tx.query('delete from fieldkeep.rotation_failures where rotation = $1', [run]);
  for (const { table, column, total } of totals) {
    await tx.query(
      `insert into fieldkeep.rotation_columns (rotation, "table", "column", total) values ($1, $2, $3, $4)
       on conflict do nothing`,
      [run, table, column, total],
    );
  }
  for (const { id, table, lower, upper } of ranges) {
    await tx.query(
      `insert into fieldkeep.rotation_ranges (id, rotation, pass, "table", lower, upper) values ($1, $2, $3, $4, $5, $6)`,
      [id, run, pass, table, lower ?? null, upper ?? null],
    );
  }
}

export interface Range {
  readonly id: string;
  readonly run: string;
  readonly pass: number;
  readonly table: string;
  readonly lower?: Key;
  readonly upper?: Key;
  /** How far it got: in this step (a column and a version), up to this key. */
  readonly step?: string;
  readonly cursor?: Key;
}

interface RangeRow {
  id: string;
  run: string;
  pass: number;
  table: string;
  lower: string[] | null;
  upper: string[] | null;
  step: string | null;
  cursor: string[] | null;
}

/**
 * Takes an unfinished range under a new lease, unless a living instance holds it. What a former holder still sends
 * afterwards is refused, because its checkpoints name the old lease.
 */
export async function claimRange(db: Queryable, id: string, lease: string, holder: string): Promise<Range | undefined> {
  const { rows } = await db.query<RangeRow>(
    `update fieldkeep.rotation_ranges g set lease = $2, holder = $3
     where id = $1 and finished_at is null and (holder is null or not exists
       (select from fieldkeep.instances i where i.id = g.holder and i.heartbeat_at > now() - interval '10 s'))
     returning id, rotation as run, pass, "table", lower, upper, step, cursor`,
    [id, lease, holder],
  );
  const row = rows[0];
  if (row === undefined) return undefined;
  const { lower, upper, step, cursor, ...rest } = row;
  return { ...rest, ...present({ lower, upper, step, cursor }) };
}

/** Gives a range back, so that anybody can go on with it at once. */
export async function releaseRange(db: Queryable, id: string, lease: string): Promise<void> {
  await db.query('update fieldkeep.rotation_ranges set holder = null where id = $1 and lease = $2', [id, lease]);
}

/** Gives back what an earlier job of this process still holds, because the database was away when it ended. */
export async function releaseForgotten(db: Queryable, holder: string, working: readonly string[]): Promise<void> {
  await db.query(
    `update fieldkeep.rotation_ranges set holder = null
     where holder = $1 and finished_at is null and id <> all ($2::uuid[])`,
    [holder, working],
  );
}

/** Unfinished ranges that nobody alive works on. */
export async function listFreeRanges(db: Queryable): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select g.id from fieldkeep.rotation_ranges g where g.finished_at is null and (g.holder is null or not exists
       (select from fieldkeep.instances i where i.id = g.holder and i.heartbeat_at > now() - interval '10 s'))
     order by g.rotation, g."table", g.lower nulls first limit 500`,
  );
  return rows.map((row) => row.id);
}

export interface Checkpoint {
  readonly step: string;
  readonly cursor: Key;
  /** Values brought up to date since the last checkpoint, by column. */
  readonly done: ReadonlyMap<string, number>;
  readonly failures: readonly Failure[];
}

/** Somebody else has the range now: whatever this process still does with it, it must not say so. */
export class LeaseLost extends Error {
  constructor() {
    super('The lease of the range was lost.');
    this.name = 'LeaseLost';
  }
}

/** Writes down how far a range got. Errors: LeaseLost, and then nothing is written. */
export async function insertCheckpoint(tx: Client, range: Range, lease: string, point: Checkpoint): Promise<void> {
  const { rowCount } = await tx.query(
    'update fieldkeep.rotation_ranges set step = $3, cursor = $4, error = null where id = $1 and lease = $2 and finished_at is null',
    [range.id, lease, point.step, point.cursor],
  );
  if (rowCount !== 1) throw new LeaseLost();
  for (const [column, done] of [...point.done].sort(([a], [b]) => (a < b ? -1 : 1))) {
    await tx.query(
      `update fieldkeep.rotation_columns set done = done + $4 where rotation = $1 and "table" = $2 and "column" = $3`,
      [range.run, range.table, column, done],
    );
  }
  await insertFailures(tx, range, point.failures);
}

/** Notes why an attempt at the range failed. */
export async function setRangeError(db: Queryable, id: string, error: string): Promise<void> {
  await db.query('update fieldkeep.rotation_ranges set error = $2 where id = $1 and finished_at is null', [id, error]);
}

/** What went wrong last with an unfinished range of the run, if anything: table and code. */
export async function findRangeError(
  db: Queryable,
  run: string,
): Promise<{ table: string; error: string } | undefined> {
  const { rows } = await db.query<{ table: string; error: string }>(
    `select "table", error from fieldkeep.rotation_ranges
     where rotation = $1 and finished_at is null and error is not null limit 1`,
    [run],
  );
  return rows[0];
}

export async function finishRange(db: Queryable, id: string, lease: string): Promise<void> {
  await db.query(
    'update fieldkeep.rotation_ranges set finished_at = now(), holder = null where id = $1 and lease = $2',
    [id, lease],
  );
}

export interface ColumnProgress {
  readonly table: string;
  readonly column: string;
  readonly total: number;
  readonly done: number;
  readonly failed: number;
}

export async function listProgress(db: Queryable, run: string): Promise<ColumnProgress[]> {
  const { rows } = await db.query<{ table: string; column: string; total: string; done: string; failed: number }>(
    `select c."table", c."column", c.total, c.done, (select count(*)::int from fieldkeep.rotation_failures f
       where f.rotation = c.rotation and f."table" = c."table" and f."column" = c."column") as failed
     from fieldkeep.rotation_columns c where c.rotation = $1 order by 1, 2`,
    [run],
  );
  return rows.map((row) => ({ ...row, total: Number(row.total), done: Number(row.done) }));
}
