/** SQL of the epoch. What raises it stands beside what changes key state (store.ts). */
import type { Queryable } from '../db.ts';
import type { Epoch } from './epoch.ts';

/** Which server answers: the moment of its start, in microseconds. A promoted standby was started at another moment. */
export const serverSql = 'extract(epoch from pg_postmaster_start_time())::text';

export interface EpochRow {
  readonly n: string;
  readonly token: string;
  readonly server: string;
}

export function toEpoch({ n, token, server }: EpochRow): Epoch {
  return { n: Number(n), token, server };
}

/** The epoch as this transaction sees it. */
export async function readEpoch(db: Queryable): Promise<Epoch> {
  const { rows } = await db.query<EpochRow>(`select n, token, ${serverSql} as server from fieldkeep.epoch`);
  return toEpoch(rows[0]!);
}

/** The epoch, which nobody else raises before this transaction ends. */
export async function lockEpoch(tx: Queryable): Promise<Epoch> {
  const { rows } = await tx.query<EpochRow>(`select n, token, ${serverSql} as server from fieldkeep.lock_epoch()`);
  return toEpoch(rows[0]!);
}

/** A condition on fieldkeep.epoch, and the values of its three parameters, of which `first` is the number of the first. */
export function epochIs(epoch: Epoch, first: number): { readonly sql: string; readonly values: unknown[] } {
  const sql = `n = $${first} and token = $${first + 1} and ${serverSql} = $${first + 2}`;
  return { sql, values: [epoch.n, epoch.token, epoch.server] };
}
