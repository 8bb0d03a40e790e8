/** SQL of runs, in Fieldkeep's own database. */
import type { Client, Pool, Queryable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { aliveSql } from '../keys/instance-store.ts';
import { present } from '../present.ts';
import { phaseOf, type Phase } from './phase.ts';
import type { RunKind } from './work.ts';

export interface Run {
  readonly id: string;
  readonly kind: RunKind;
  /** Absent where it may span families: of an adoption. */
  readonly family?: string;
  /** What a rotation makes; its predecessor is one less. */
  readonly version?: number;
  /** The one column that it is about, and where its plaintext stands, if that is another one; of kinds that name them. */
  readonly table?: string;
  readonly column?: string;
  readonly source?: string;
  readonly reason?: string;
  readonly compromised: boolean;
  readonly requestedBy: string;
  readonly createdAt: Date;
  readonly pendingAt?: Date;
  readonly activatedAt?: Date;
  readonly pass: number;
  /** The pass whose failed rows were tried once more at its end. */
  readonly retriedPass: number;
  readonly plannedAt?: Date;
  readonly pausedAt?: Date;
  readonly blocked?: string;
  readonly blockedAt?: Date;
  readonly doneAt?: Date;
  /** Why it ended without being done. */
  readonly cancelled?: string;
  readonly unfinishedRanges: number;
  /** Rows that do not open, those that were given up included. */
  readonly failed: number;
  readonly waived: number;
  /** Its family has blind indexes: searches have to know the tokens of what it makes. */
  readonly searchable: boolean;
  /** What slows it down now, in words. */
  readonly throttle?: string;
  /** Values per second, smoothed. */
  readonly rate?: number;
  /** When it last got further. */
  readonly rateAt?: Date;
  /** Log positions when the first pass was planned, by target ('' for our own database). */
  readonly walFrom?: Readonly<Record<string, string>>;
  readonly walBytes?: number;
  readonly predicted?: Prediction;
  /** The version of the policy by which it was last taken further. */
  readonly policy?: string;
  readonly phase: Phase;
  /** By the database's clock, when this was read. */
  readonly now: Date;
}

/** What a rehearsal says of the run that would come next. */
export interface Prediction {
  readonly madeAt: string;
  readonly values: number;
  /** From the first pass to the end, the waits included. */
  readonly seconds: number;
  readonly valuesPerSecond: number;
  readonly walBytes: number;
}

/** What is stored of a run, by its name there. */
const runColumns = `r.id, r.kind, r.family, r.version, r."table", r."column", r.source, r.reason, r.compromised,
  r.requested_by as "requestedBy", r.created_at as "createdAt", r.pending_at as "pendingAt",
  r.activated_at as "activatedAt", r.pass, r.retried_pass as "retriedPass", r.planned_at as "plannedAt",
  r.paused_at as "pausedAt", r.blocked, r.blocked_at as "blockedAt", r.done_at as "doneAt", r.cancelled, r.throttle,
  r.rate, r.rate_at as "rateAt", r.wal_from as "walFrom", r.wal_bytes::float8 as "walBytes", r.predicted, r.policy,
  (select count(*)::int from fieldkeep.rotation_ranges g
   where g.rotation = r.id and g.finished_at is null) as "unfinishedRanges",
  (select count(*)::int from fieldkeep.rotation_failures f where f.rotation = r.id) as failed,
  (select count(*)::int from fieldkeep.rotation_failures f where f.rotation = r.id and f.waived_at is not null) as waived,
  exists (select from fieldkeep.key_versions v where v.family = r.family and json_array_length(v.indexes) > 0) as searchable,
  clock_timestamp() as now`;

type RunRow = Record<keyof Omit<Run, 'phase'>, unknown>;

function toRun(row: RunRow): Run {
  const stored = present(row) as Omit<Run, 'phase'>;
  return { ...stored, phase: phaseOf(stored) };
}

type Asked = 'id' | 'kind' | 'family' | 'version' | 'table' | 'column' | 'source' | 'reason' | 'requestedBy';
export type NewRun = Pick<Run, Asked> & Partial<Pick<Run, 'compromised'>>;

/** False when an unfinished run of the family or the column (or an unfinished adoption) stands in the way. */
export async function insertRun(db: Queryable, run: NewRun): Promise<boolean> {
  const { rowCount } = await db.query(
    `insert into fieldkeep.rotations
       (id, kind, family, version, reason, compromised, requested_by, "table", "column", source, predicted)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
       (select prediction from fieldkeep.rotation_rehearsals where family = $3 and $2 = 'rotation'))
     on conflict do nothing`,
    [
      run.id,
      run.kind,
      run.family ?? null,
      run.version ?? null,
      run.reason ?? null,
      run.compromised ?? false,
      run.requestedBy,
      run.table ?? null,
      run.column ?? null,
      run.source ?? null,
    ],
  );
  return rowCount === 1;
}

export async function findRun(db: Queryable, id: string): Promise<Run | undefined> {
  const { rows } = await db.query<RunRow>(`select ${runColumns} from fieldkeep.rotations r where r.id = $1`, [id]);
  return rows[0] === undefined ? undefined : toRun(rows[0]);
}

/** The rotation of the family that is under way. */
export async function findUnfinished(db: Queryable, family: string): Promise<Run | undefined> {
  const { rows } = await db.query<RunRow>(
    `select ${runColumns} from fieldkeep.rotations r
     where r.family = $1 and r.kind = 'rotation' and r.done_at is null`,
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

/** Takes a run for `ms`, or keeps it; false when another process is taking it further. Notes the driver's policy. */
export async function claimRun(
  db: Queryable,
  id: string,
  driver: string,
  { ms, policy }: { readonly ms: number; readonly policy: string },
): Promise<boolean> {
  const { rowCount } = await db.query(
    `update fieldkeep.rotations set driver = $2, policy = $4,
       driver_until = now() + make_interval(secs => $3::float8 / 1000)
     where id = $1 and done_at is null and (driver = $2 or driver_until is null or driver_until < now()
       or not ${aliveSql('driver')})`,
    [id, driver, ms, policy],
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

/** What held the run up is over, as far as anybody knows: its ranges go on. */
export async function clearBlocked(tx: Queryable, id: string): Promise<void> {
  await tx.query('update fieldkeep.rotations set blocked = null where id = $1', [id]);
}

/** Says why nothing is written now, while no range is at work that could say it. */
export async function setThrottle(db: Queryable, id: string, throttle: string | null): Promise<void> {
  await db.query('update fieldkeep.rotations set throttle = $2 where id = $1 and throttle is distinct from $2', [
    id,
    throttle,
  ]);
}

/** The run was taken further, or held, since it was looked at; what was found out no longer counts. */
export function overtaken(id: string): FieldkeepError {
  return new FieldkeepError('conflict', `Run ${id} was taken further, held or ended meanwhile.`);
}

/** Errors: `conflict` when it is not in this pass any more. */
export async function setDone(tx: Client, id: string, pass: number, walBytes: number | undefined): Promise<void> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations set done_at = clock_timestamp(), blocked = null, throttle = null, wal_bytes = $3
     where id = $1 and pass = $2 and done_at is null`,
    [id, pass, walBytes ?? null],
  );
  if (rowCount !== 1) throw overtaken(id);
}

/** Families whose time to rotate has come and that are not rotating. */
export async function listDue(pool: Pool): Promise<string[]> {
  const { rows } = await pool.query<{ family: string }>(
    `select f.family from fieldkeep.key_families f where f.next_rotation_at <= now() and not exists
       (select from fieldkeep.rotations r where r.family = f.family and r.kind = 'rotation' and r.done_at is null)`,
  );
  return rows.map((row) => row.family);
}
