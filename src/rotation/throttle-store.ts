/** SQL of what holds a run back: what a person said, its rate over all workers, replicas that are behind. */
import type { Queryable } from '../db.ts';

export interface Control {
  /** Paused or ended: nothing more is written. */
  readonly held: boolean;
  /** By the database's clock. */
  readonly now: Date;
}

export async function findControl(db: Queryable, run: string): Promise<Control> {
  const { rows } = await db.query<Control>(
    `select coalesce(bool_and(paused_at is not null or done_at is not null), true) as held, clock_timestamp() as now
     from fieldkeep.rotations where id = $1`,
    [run],
  );
  return rows[0]!;
}

/** Takes the time that `rows` rows need at `rate` rows a second. Answers how long to wait before they are written, ms. */
export async function reserveRate(db: Queryable, run: string, rows: number, rate: number): Promise<number> {
  const { rows: found } = await db.query<{ wait: number }>(
    `update fieldkeep.rotations set
       paced_until = greatest(paced_until, clock_timestamp()) + make_interval(secs => $2::float8 / $3::float8)
     where id = $1
     returning (extract(epoch from paced_until - clock_timestamp()) - $2::float8 / $3::float8)::float8 * 1000 as wait`,
    [run, rows, rate],
  );
  return Math.max(0, found[0]?.wait ?? 0);
}

/**
 * How far the slowest replica is behind, MiB; 0 without replicas, and where our role may not see them (they show with
 * pg_read_all_stats).
 */
export async function findLagMib(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ mib: number }>(
    `select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::float8 / 1048576 as mib
     from pg_stat_replication`,
  );
  return rows[0]!.mib;
}
