/** SQL of calls that an api process hands to a worker, and of their answers. */
import type { Queryable } from '../db.ts';

/** Tells workers that something was asked. Anybody can send a notice: it only has them look. */
export const askedChannel = 'fieldkeep_asked';

export interface StoredCall {
  readonly id: string;
  /** JSON; the MAC covers its bytes. */
  readonly call: string;
  readonly mac: string;
}

export async function insertCall(db: Queryable, { id, call, mac }: StoredCall): Promise<void> {
  await db.query('insert into fieldkeep.asked_calls (id, call, mac) values ($1, $2, $3)', [id, call, mac]);
  await db.query(`notify ${askedChannel}`);
}

/** What became of a call: undefined when no worker has taken it; no answer yet: one works on it. */
export async function findAnswer(db: Queryable, id: string): Promise<{ readonly answer?: string } | undefined> {
  const { rows } = await db.query<{ answer: string | null }>({
    name: 'asked-answer',
    text: 'select answer from fieldkeep.asked_answers where id = $1',
    values: [id],
  });
  const row = rows[0];
  return row === undefined ? undefined : row.answer === null ? {} : { answer: row.answer };
}

export interface UntakenCall extends StoredCall {
  /** Both by the database's clock. */
  readonly askedAt: Date;
  readonly now: Date;
}

/** Calls that nobody has taken, oldest first. */
export async function listUntaken(db: Queryable, limit: number): Promise<readonly UntakenCall[]> {
  const { rows } = await db.query<UntakenCall>(
    `select c.id, c.call, c.mac, c.asked_at as "askedAt", clock_timestamp() as now from fieldkeep.asked_calls c
     where not exists (select from fieldkeep.asked_answers a where a.id = c.id) order by c.asked_at limit $1`,
    [limit],
  );
  return rows;
}

/** True for the one worker that may act on the call. */
export async function takeCall(db: Queryable, id: string, worker: string): Promise<boolean> {
  const { rowCount } = await db.query(
    'insert into fieldkeep.asked_answers (id, worker) values ($1, $2) on conflict do nothing',
    [id, worker],
  );
  return rowCount === 1;
}

export async function setAnswer(db: Queryable, id: string, answer: string): Promise<void> {
  await db.query(
    `update fieldkeep.asked_answers set answer = $2, answered_at = clock_timestamp() where id = $1 and answer is null`,
    [id, answer],
  );
}

/** A call that is no call of ours leaves nothing behind that a worker would look at again. */
export async function deleteCall(db: Queryable, id: string): Promise<void> {
  await db.query('delete from fieldkeep.asked_calls where id = $1', [id]);
}

/** Answers outlive their calls by far: a call that is inserted again is known, and too old besides. */
export async function deleteOld(db: Queryable): Promise<void> {
  await db.query(`delete from fieldkeep.asked_calls where asked_at < now() - interval '10 minutes'`);
  await db.query(`delete from fieldkeep.asked_answers where taken_at < now() - interval '1 day'`);
}
