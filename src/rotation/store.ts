/** SQL of runs, ranges and failures, in Fieldkeep's own database. */
import type { Client, Pool, Queryable } from '../db.ts';
import type { Key } from './batch.ts';
import { FieldkeepError } from '../errors.ts';
import { phaseOf, type Phase } from './plan.ts';

export interface Run {
  readonly id: string;
  readonly kind: 'rotation' | 'adoption';
  readonly family?: string;
  /** What a rotation makes; its predecessor is one less. */
  readonly version?: number;
  readonly reason?: string;
  readonly compromised: boolean;
  readonly requestedBy: string;
  readonly createdAt: Date;
  readonly pendingAt?: Date;
  readonly activatedAt?: Date;
  readonly pass: number;
  readonly plannedAt?: Date;
  readonly blocked?: string;
  readonly blockedAt?: Date;
  readonly doneAt?: Date;
  readonly unfinishedRanges: number;
  readonly failed: number;
  readonly phase: Phase;
  /** By the database's clock, when this was read. */
  readonly now: Date;
}

interface RunRow {
  id: string;
  kind: 'rotation' | 'adoption';
  family: string | null;
  version: number | null;
  reason: string | null;
  compromised: boolean;
  requested_by: string;
  created_at: Date;
  pending_at: Date | null;
  activated_at: Date | null;
  pass: number;
  planned_at: Date | null;
  blocked: string | null;
  blocked_at: Date | null;
  done_at: Date | null;
  unfinished: number;
  failed: number;
  now: Date;
}

const runColumns = `r.id, r.kind, r.family, r.version, r.reason, r.compromised, r.requested_by, r.created_at, r.pending_at,
  r.activated_at, r.pass, r.planned_at, r.blocked, r.blocked_at, r.done_at,
  (select count(*)::int from fieldkeep.rotation_ranges g where g.rotation = r.id and g.finished_at is null) as unfinished,
  (select count(*)::int from fieldkeep.rotation_failures f where f.rotation = r.id) as failed,
  clock_timestamp() as now`;

/** Members that are null in the database are absent in the object. */
function present<T extends object>(members: T): { [K in keyof T]?: NonNullable<T[K]> } {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== null)) as never;
}

function toRun(row: RunRow): Run {
  const optional = present({
    family: row.family,
    version: row.version,
    reason: row.reason,
    pendingAt: row.pending_at,
    activatedAt: row.activated_at,
    plannedAt: row.planned_at,
    blocked: row.blocked,
    blockedAt: row.blocked_at,
    doneAt: row.done_at,
  });
  return {
    id: row.id,
    kind: row.kind,
    compromised: row.compromised,
    requestedBy: row.requested_by,
    createdAt: row.created_at,
    pass: row.pass,
    unfinishedRanges: row.unfinished,
    failed: row.failed,
    now: row.now,
    ...optional,
    phase: phaseOf({ kind: row.kind, unfinishedRanges: row.unfinished, ...optional }),
  };
}

export interface NewRun {
  readonly id: string;
  readonly kind: 'rotation' | 'adoption';
  readonly family?: string;
  readonly version?: number;
  readonly reason?: string;
  readonly compromised?: boolean;
  readonly requestedBy: string;
}

/** False when an unfinished run of the family (or an unfinished adoption) stands in the way. */
export async function insertRun(db: Queryable, run: NewRun): Promise<boolean> {
  const { rowCount } = await db.query(
    `insert into fieldkeep.rotations (id, kind, family, version, reason, compromised, requested_by)
     values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing`,
    [
      run.id,
      run.kind,
      run.family ?? null,
      run.version ?? null,
      run.reason ?? null,
      run.compromised ?? false,
      run.requestedBy,
    ],
  );
  return rowCount === 1;
}

export async function findRun(db: Queryable, id: string): Promise<Run | undefined> {
  const { rows } = await db.query<RunRow>(`select ${runColumns} from fieldkeep.rotations r where r.id = $1`, [id]);
  return rows[0] === undefined ? undefined : toRun(rows[0]);
}

export async function findUnfinished(db: Queryable, family: string): Promise<Run | undefined> {
  const { rows } = await db.query<RunRow>(
    `select ${runColumns} from fieldkeep.rotations r where r.family = $1 and r.done_at is null`,
    [family],
  );
  return rows[0] === undefined ? undefined : toRun(rows[0]);
}

export async function isAdopting(db: Queryable): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    `select exists (select from fieldkeep.rotations where kind = 'adoption' and done_at is null) as found`,
  );
  return rows[0]!.found;
}

export async function listUnfinished(db: Queryable): Promise<Run[]> {
  const { rows } = await db.query<RunRow>(
    `select ${runColumns} from fieldkeep.rotations r where r.done_at is null order by r.created_at`,
  );
  return rows.map(toRun);
}

/** Newest first; `before` is the id that the page before ended with. */
export async function listRuns(
  db: Queryable,
  filter: { family?: string; before?: string; limit: number },
): Promise<Run[]> {
  const { rows } = await db.query<RunRow>(
    `select ${runColumns} from fieldkeep.rotations r
     where ($1::text is null or r.family = $1)
       and ($2::uuid is null or (r.created_at, r.id) < (select created_at, id from fieldkeep.rotations where id = $2))
     order by r.created_at desc, r.id desc limit $3`,
    [filter.family ?? null, filter.before ?? null, filter.limit],
  );
  return rows.map(toRun);
}

/** Takes a run for `ms`, or keeps it; false when another process is taking it further. */
export async function claimRun(db: Queryable, id: string, driver: string, ms: number): Promise<boolean> {
  const { rowCount } = await db.query(
    `update fieldkeep.rotations set driver = $2, driver_until = now() + make_interval(secs => $3::float8 / 1000)
     where id = $1 and done_at is null and (driver = $2 or driver_until is null or driver_until < now()
       or not exists (select from fieldkeep.instances i where i.id = driver and i.heartbeat_at > now() - interval '10 s'))`,
    [id, driver, ms],
  );
  return rowCount === 1;
}

export async function releaseRun(db: Queryable, id: string, driver: string): Promise<void> {
  await db.query('update fieldkeep.rotations set driver_until = null where id = $1 and driver = $2', [id, driver]);
}

export async function setPending(db: Queryable, id: string): Promise<void> {
  await db.query('update fieldkeep.rotations set pending_at = clock_timestamp() where id = $1 and pending_at is null', [
    id,
  ]);
}

export async function setActivated(db: Queryable, id: string): Promise<void> {
  await db.query(
    'update fieldkeep.rotations set activated_at = clock_timestamp() where id = $1 and activated_at is null',
    [id],
  );
}

export async function setBlocked(tx: Queryable, id: string, sentence: string): Promise<void> {
  await tx.query('update fieldkeep.rotations set blocked = $2, blocked_at = now() where id = $1', [id, sentence]);
}

/** Another process took the run further since it was looked at; what was found out no longer counts. */
function overtaken(id: string): FieldkeepError {
  return new FieldkeepError('conflict', `Another process has taken run ${id} further.`);
}

/** Errors: `conflict` when it is not in this pass any more. */
export async function setDone(tx: Client, id: string, pass: number): Promise<void> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations set done_at = clock_timestamp(), blocked = null
     where id = $1 and pass = $2 and done_at is null`,
    [id, pass],
  );
  if (rowCount !== 1) throw overtaken(id);
}

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

export interface Failure {
  readonly column: string;
  readonly row: string;
  readonly code: string;
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
  if (point.failures.length === 0) return;
  await tx.query(
    `insert into fieldkeep.rotation_failures (rotation, "table", "column", row, code, pass)
     select $1, $2, u.c, u.r, u.e, $6 from unnest($3::text[], $4::text[], $5::text[]) as u(c, r, e)
     on conflict (rotation, "table", "column", row) do update set code = excluded.code, pass = excluded.pass`,
    [
      range.run,
      range.table,
      point.failures.map((failure) => failure.column),
      point.failures.map((failure) => failure.row),
      point.failures.map((failure) => failure.code),
      range.pass,
    ],
  );
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

export interface StoredFailure extends Failure {
  readonly table: string;
  readonly notedAt: Date;
}

/** In order of table, column and row, after `after`. */
export async function listFailures(
  db: Queryable,
  run: string,
  limit: number,
  after: readonly [string, string, string] | undefined,
): Promise<StoredFailure[]> {
  const { rows } = await db.query<{ table: string; column: string; row: string; code: string; noted_at: Date }>(
    `select "table", "column", row, code, noted_at from fieldkeep.rotation_failures
     where rotation = $1 and ($2::text is null or ("table", "column", row) > ($2, $3, $4))
     order by "table", "column", row limit $5`,
    [run, after?.[0] ?? null, after?.[1] ?? null, after?.[2] ?? null, limit],
  );
  return rows.map(({ noted_at: notedAt, ...rest }) => ({ ...rest, notedAt }));
}

/** Families whose time to rotate has come and that are not rotating. */
export async function listDue(pool: Pool): Promise<string[]> {
  const { rows } = await pool.query<{ family: string }>(
    `select f.family from fieldkeep.key_families f where f.next_rotation_at <= now() and not exists
       (select from fieldkeep.rotations r where r.family = f.family and r.done_at is null)`,
  );
  return rows.map((row) => row.family);
}
