/** How much write-ahead log the servers of a run's tables wrote meanwhile, everybody's included: an upper bound of ours. */
import type { Queryable } from '../db.ts';
import type { TableShape } from '../targets/catalog.ts';
import type { Workshop } from './scan.ts';
import type { Run } from './store.ts';
import { rowsOf } from '../targets/targets.ts';

async function readPosition(db: Queryable): Promise<string> {
  const { rows } = await db.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  return rows[0]!.lsn;
}

async function bytesSince(db: Queryable, lsn: string): Promise<number> {
  const { rows } = await db.query<{ bytes: string }>(
    'select pg_wal_lsn_diff(pg_current_wal_lsn(), $1::pg_lsn)::bigint as bytes',
    [lsn],
  );
  return Number(rows[0]!.bytes);
}

/** Where the logs stand now, by target ('' for our own database). */
export async function readWalPositions(
  shop: Pick<Workshop, 'targets'>,
  tables: readonly { readonly table: TableShape }[],
): Promise<Record<string, string>> {
  const positions: Record<string, string> = {};
  for (const { table } of tables) positions[table.database ?? ''] ??= await readPosition(rowsOf(shop, table));
  return positions;
}

/** Bytes since the run's first pass was planned; undefined where that is not known. */
export async function measureWal({ targets }: Pick<Workshop, 'targets'>, run: Run): Promise<number | undefined> {
  let bytes = 0;
  for (const [name, lsn] of Object.entries(run.walFrom ?? {})) {
    const db = targets.find(name === '' ? undefined : name);
    if (db === undefined) return undefined;
    bytes += await bytesSince(db, lsn);
  }
  return run.walFrom === undefined ? undefined : bytes;
}
