/** SQL of a pass: its ranges, who works on them, how far they got, and what is done of each column. */
import { transaction, type Client, type Pool, type Queryable } from '../db.ts';
import { aliveSql } from '../keys/instance-store.ts';
import type { Key } from './batch.ts';
import { deleteFailures, deleteRetryable, insertFailures, type Failure } from './failure-store.ts';
import { present } from '../present.ts';
import { overtaken } from './store.ts';

/** A stretch of a table's key, open at both ends where a bound is absent; or rows by name, tried before (or after) all else. */
export interface RangeSpec {
  readonly id: string;
  readonly table: string;
  readonly lower?: Key;
  readonly upper?: Key;
  readonly rows?: readonly string[];
  /** Ranges of a lower rank are finished first; 1 where absent. */
  readonly rank?: number;
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
  walFrom: Readonly<Record<string, string>>,
): Promise<void> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations set pass = $2, planned_at = coalesce(planned_at, clock_timestamp()), blocked = null, wal_from = coalesce(wal_from, $3),
       rate_at = clock_timestamp()
     where id = $1 and pass = $2 - 1 and done_at is null`,
    [run, pass, JSON.stringify(walFrom)],
  );
  if (rowCount !== 1) throw overtaken(run);
  await deleteFailures(tx, run);
  await deletePast(tx, run, pass);
  for (const { table, column, total } of totals) {
    await tx.query(
      `insert into fieldkeep.rotation_columns (rotation, "table", "column", total) values ($1, $2, $3, $4)
       on conflict do nothing`,
      [run, table, column, total],
    );
  }
  await insertRanges(tx, run, pass, ranges);
}

/** An adoption goes on for as long as plaintext is written: of its ranges, the first pass and the last two stay. */
async function deletePast(tx: Client, run: string, pass: number): Promise<void> {
  await tx.query(
    `delete from fieldkeep.rotation_ranges
     where rotation = $1 and pass between 2 and $2 - 2 and finished_at is not null`,
    [run, pass],
  );
}

async function insertRanges(tx: Client, run: string, pass: number, ranges: readonly RangeSpec[]): Promise<void> {
  for (const { id, table, lower, upper, rows, rank } of ranges) {
    await tx.query(
      `insert into fieldkeep.rotation_ranges (id, rotation, pass, "table", lower, upper, rows, rank)
       values ($1, $2, $3, $4, $5, $6, $7, $8)`,
      [id, run, pass, table, lower ?? null, upper ?? null, rows ?? null, rank ?? 1],
    );
  }
}

/** Has rows tried once more at the end of a pass, once. Errors: `conflict` when they have been. */
export async function insertRetry(tx: Client, run: string, pass: number, ranges: readonly RangeSpec[]): Promise<void> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations set retried_pass = $2
     where id = $1 and pass = $2 and retried_pass < $2 and done_at is null`,
    [run, pass],
  );
  if (rowCount !== 1) throw overtaken(run);
  await deleteRetryable(tx, run);
  await insertRanges(tx, run, pass, ranges);
}

export interface Range {
  readonly id: string;
  readonly run: string;
  readonly pass: number;
  readonly table: string;
  readonly lower?: Key;
  readonly upper?: Key;
  /** Instead of a stretch: these rows, by name. */
  readonly rows?: readonly string[];
  /** How far it got: in this step, up to this key (of named rows: how many). */
  readonly step?: string;
  readonly cursor?: Key;
}

/** Of the range `g`: a living instance works on it. */
const isHeld = (g: string) => `${g}.holder is not null and ${aliveSql(`${g}.holder`)}`;

interface RangeRow {
  id: string;
  run: string;
  pass: number;
  table: string;
  lower: string[] | null;
  upper: string[] | null;
  rows: string[] | null;
  step: string | null;
  cursor: string[] | null;
}

/**
 * Takes an unfinished range under a new lease, unless a living instance holds it or `concurrentMax` ranges of its run are
 * worked on already. What a former holder still sends afterwards is refused, because its checkpoints name the old lease.
 */
export async function claimRange(
  pool: Pool,
  id: string,
  lease: string,
  holder: string,
  concurrentMax = 1_000,
): Promise<Range | undefined> {
  return await transaction(pool, async (tx) => {
    // One claim of a run at a time: two that count at once would both find room. A lock on a row of ours, because anybody
    // can take an advisory lock.
    await tx.query(
      `select from fieldkeep.rotations r
       where r.id = (select g.rotation from fieldkeep.rotation_ranges g where g.id = $1) for no key update`,
      [id],
    );
    const { rows } = await tx.query<RangeRow>(
      `update fieldkeep.rotation_ranges g set lease = $2, holder = $3
       where id = $1 and finished_at is null and not (${isHeld('g')}) and $4 > (
         select count(*) from fieldkeep.rotation_ranges o
         where o.rotation = g.rotation and o.finished_at is null and o.id <> g.id and ${isHeld('o')})
       returning id, rotation as run, pass, "table", lower, upper, rows, step, cursor`,
      [id, lease, holder, concurrentMax],
    );
    const row = rows[0];
    if (row === undefined) return undefined;
    const { lower, upper, rows: named, step, cursor, ...rest } = row;
    return { ...rest, ...present({ lower, upper, rows: named, step, cursor }) };
  });
}

/** Tables with ranges that are not finished. */
export async function listUnfinishedTables(db: Queryable, run: string): Promise<string[]> {
  const { rows } = await db.query<{ table: string }>(
    'select distinct "table" from fieldkeep.rotation_ranges where rotation = $1 and finished_at is null order by 1',
    [run],
  );
  return rows.map((row) => row.table);
}

/** The run of an unfinished range. */
export async function findRunOf(db: Queryable, range: string): Promise<string | undefined> {
  const { rows } = await db.query<{ rotation: string }>(
    'select rotation from fieldkeep.rotation_ranges where id = $1 and finished_at is null',
    [range],
  );
  return rows[0]?.rotation;
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

/**
 * Unfinished ranges that nobody alive works on, of the named runs or of all, at most `limit` of each; of the lowest rank
 * only that is not finished.
 */
export async function listFreeRanges(db: Queryable, runs?: readonly string[], limit = 500): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select id from (
       select g.id, row_number() over (partition by g.rotation order by g.pass, g."table", g.lower nulls first) as n
       from fieldkeep.rotation_ranges g
       where g.finished_at is null and not (${isHeld('g')}) and ($1::uuid[] is null or g.rotation = any ($1))
         and g.rank = (select min(o.rank) from fieldkeep.rotation_ranges o
                       where o.rotation = g.rotation and o.finished_at is null)) free
     where n <= $2 order by n`,
    [runs ?? null, limit],
  );
  return rows.map((row) => row.id);
}

export interface Checkpoint {
  readonly step: string;
  readonly cursor: Key;
  /** Values brought up to date since the last checkpoint, by column. */
  readonly done: ReadonlyMap<string, number>;
  readonly failures: readonly Failure[];
  /** Spent in the UPDATEs that did it. */
  readonly updateMs?: number;
  /** Locks or timeouts were in the way. */
  readonly contended?: boolean;
  /** What slows the range down, in words. */
  readonly throttle?: string;
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
  let values = 0;
  for (const [column, done] of [...point.done].sort(([a], [b]) => (a < b ? -1 : 1))) {
    values += done;
    await tx.query(
      `update fieldkeep.rotation_columns set done = done + $4, update_ms = update_ms + $5
       where rotation = $1 and "table" = $2 and "column" = $3`,
      [range.run, range.table, column, done, (point.updateMs ?? 0) / point.done.size],
    );
  }
  const throttle = point.throttle ?? (point.contended === true ? 'locks of the application' : null);
  await updateRate(tx, range.run, values, throttle);
  await insertFailures(tx, range, point.failures);
}

const rateSmoothedOverSeconds = 10;

/** Smooths the run's rate, by all of its time while that is short; a pause does not count. */
async function updateRate(tx: Client, run: string, values: number, throttle: string | null): Promise<void> {
  await tx.query(
    `update fieldkeep.rotations r set throttle = $3, rate_at = clock_timestamp(),
       rate = case when s.lately is null then r.rate
         else coalesce(r.rate, 0) + greatest(1 - exp(-s.lately / $4), s.lately / greatest(s.ever, s.lately))
              * ($2 / s.lately - coalesce(r.rate, 0)) end
     from (select greatest(extract(epoch from clock_timestamp() - rate_at), 0.001)::float8 as lately,
                  extract(epoch from clock_timestamp() - planned_at)::float8 as ever
           from fieldkeep.rotations where id = $1) s
     where r.id = $1`,
    [run, values, throttle, rateSmoothedOverSeconds],
  );
}

/** Notes why an attempt at the range failed. */
export async function setRangeError(db: Queryable, id: string, error: string): Promise<void> {
  await db.query('update fieldkeep.rotation_ranges set error = $2 where id = $1 and finished_at is null', [id, error]);
}

/** What went wrong last with an unfinished range of the run, if anything: table, and our words for it or a code. */
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
