/**
 * SQL of holding runs and giving them up. Only the word is written down here; whoever works on the run finds it at its
 * next step. Each answers false when the run has ended.
 */
import type { Client } from '../db.ts';
import { overtaken } from './store.ts';

/** Pausing a paused run changes nothing. */
export async function pauseRun(tx: Client, id: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    'update fieldkeep.rotations set paused_at = coalesce(paused_at, now()) where id = $1 and done_at is null',
    [id],
  );
  return rowCount === 1;
}

/** Its rate is measured anew, and a blocked run is looked at at once. */
export async function resumeRun(tx: Client, id: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    'update fieldkeep.rotations set paused_at = null, rate_at = null where id = $1 and done_at is null',
    [id],
  );
  return rowCount === 1 && (await lookAtOnce(tx, id));
}

/** A blocked run is then due to be looked at. ('epoch' and not '-infinity', which is no date in JavaScript.) */
export async function lookAtOnce(tx: Client, id: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations
     set blocked_at = case when blocked is not null then timestamptz 'epoch' else blocked_at end
     where id = $1 and done_at is null`,
    [id],
  );
  return rowCount === 1;
}

/** Ends a run that is not done; `why` is for people. Never an emergency's. */
export async function cancelRun(tx: Client, id: string, why: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations set done_at = now(), cancelled = $2, paused_at = null
     where id = $1 and done_at is null and not compromised`,
    [id, why],
  );
  return rowCount === 1;
}

/**
 * Holds the word in place until the transaction ends: what it writes is not written to a run that was paused, cancelled or
 * superseded a moment ago. Errors: `conflict` when it was.
 */
export async function mustGoOn(tx: Client, id: string): Promise<void> {
  const { rowCount } = await tx.query(
    'select from fieldkeep.rotations where id = $1 and done_at is null and paused_at is null for share',
    [id],
  );
  if (rowCount !== 1) throw overtaken(id);
}
