/** SQL of emergencies: a run becomes one, or ends because one began. Called in the transaction that closes the version. */
import type { Client } from '../db.ts';

/** The unfinished run becomes the emergency, and is not held any more. False when it has ended, or is one already. */
export async function setEmergency(
  tx: Client,
  id: string,
  asked: { readonly reason?: string; readonly requestedBy: string },
): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations set compromised = true, reason = $2, requested_by = $3, paused_at = null
     where id = $1 and done_at is null and not compromised`,
    [id, asked.reason ?? null, asked.requestedBy],
  );
  return rowCount === 1;
}

/** The run ends undone, for the run `by`. False when it has ended already. */
export async function setSuperseded(tx: Client, id: string, by: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.rotations
     set done_at = clock_timestamp(), cancelled = 'superseded by ' || $2::text, paused_at = null, blocked = null
     where id = $1 and done_at is null`,
    [id, by],
  );
  return rowCount === 1;
}

/** Nobody takes the run's ranges up again, and whoever works on one has lost its lease. */
export async function closeRanges(tx: Client, run: string): Promise<void> {
  await tx.query(
    `update fieldkeep.rotation_ranges set finished_at = now(), lease = null, holder = null
     where rotation = $1 and finished_at is null`,
    [run],
  );
}
