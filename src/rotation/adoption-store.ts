/** SQL of adoptions: which were begun, compared with their source, finished and undone. */
import type { Client, Queryable } from '../db.ts';
import { present } from '../present.ts';
import type { Run } from './store.ts';

export interface AdoptionDates {
  readonly startedAt?: Date;
  readonly verifiedAt?: Date;
  readonly finishedAt?: Date;
  readonly undoneAt?: Date;
}

export async function findAdoption(db: Queryable, table: string, column: string): Promise<AdoptionDates> {
  const { rows } = await db.query<Record<keyof AdoptionDates, Date | null>>(
    `select started_at as "startedAt", verified_at as "verifiedAt", finished_at as "finishedAt", undone_at as "undoneAt"
     from fieldkeep.adoptions where "table" = $1 and "column" = $2`,
    [table, column],
  );
  return rows[0] === undefined ? {} : present(rows[0]);
}

/** The column is adopted from now on. */
export async function setStarted(tx: Client, table: string, column: string): Promise<void> {
  await tx.query(
    `insert into fieldkeep.adoptions ("table", "column", started_at) values ($1, $2, clock_timestamp())
     on conflict ("table", "column") do update set
       started_at = case when adoptions.undone_at is null and adoptions.started_at is not null then adoptions.started_at
                         else excluded.started_at end,
       verified_at = null, finished_at = null, undone_at = null`,
    [table, column],
  );
}

/** The column is adopted no more: what is plaintext stays that. */
export async function setUndone(tx: Client, table: string, column: string): Promise<void> {
  await tx.query(
    `insert into fieldkeep.adoptions ("table", "column", undone_at) values ($1, $2, clock_timestamp())
     on conflict ("table", "column") do update set undone_at = coalesce(adoptions.undone_at, excluded.undone_at)`,
    [table, column],
  );
}

/** What the end of a run means for its column. */
export async function noteEnd(tx: Client, run: Run): Promise<void> {
  const { kind, table, column, failed } = run;
  if (table === undefined || column === undefined) return;
  if (kind === 'finish') {
    await tx.query(
      `update fieldkeep.adoptions set finished_at = clock_timestamp() where "table" = $1 and "column" = $2`,
      [table, column],
    );
  }
  if (kind === 'verification') {
    await tx.query(
      `update fieldkeep.adoptions set verified_at = case when $3 = 0 then clock_timestamp() end
       where "table" = $1 and "column" = $2`,
      [table, column, failed],
    );
  }
}

/** The newest run about the column, of the kinds that are about one column. */
export async function findColumnRun(db: Queryable, table: string, column: string): Promise<string | undefined> {
  const { rows } = await db.query<{ id: string }>(
    `select id from fieldkeep.rotations where "table" = $1 and "column" = $2 order by created_at desc limit 1`,
    [table, column],
  );
  return rows[0]?.id;
}
