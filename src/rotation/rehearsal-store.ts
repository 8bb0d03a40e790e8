/** SQL of rehearsals: what earlier runs took, how large a table is, and the newest prediction for a family. */
import type { Queryable } from '../db.ts';
import type { TableShape } from '../targets/catalog.ts';
import { tableName } from './conditions.ts';
import type { Prediction } from './store.ts';

/** Fewer values tell too little. */
const pastValuesMin = 1_000;

export interface Past {
  readonly updateMsPerValue: number;
  readonly walBytesPerValue: number;
}

/**
 * What the newest finished rotation took for a value of this column, if it had enough of them. An adoption says nothing of
 * it: it stores several columns of a row in one UPDATE.
 */
export async function findPast(db: Queryable, table: string, column: string): Promise<Past | undefined> {
  const { rows } = await db.query<{ update_ms: number; wal: number }>(
    `select c.update_ms / c.done as update_ms,
            r.wal_bytes::float8 / (select sum(o.done) from fieldkeep.rotation_columns o where o.rotation = r.id) as wal
     from fieldkeep.rotation_columns c join fieldkeep.rotations r on r.id = c.rotation
     where c."table" = $1 and c."column" = $2 and c.done >= $3 and c.update_ms > 0
       and r.kind = 'rotation' and r.done_at is not null and r.cancelled is null and r.wal_bytes is not null
     order by r.done_at desc limit 1`,
    [table, column, pastValuesMin],
  );
  return rows[0] && { updateMsPerValue: rows[0].update_ms, walBytesPerValue: rows[0].wal };
}

/** Bytes without indexes, rows as the planner knows them, and how many indexes there are; partitions included. */
export async function findTableSize(
  db: Queryable,
  table: TableShape,
): Promise<{ bytes: number; rows: number; indexes: number }> {
  const { rows } = await db.query<{ bytes: string; rows: number; indexes: number }>(
    `select coalesce(sum(pg_table_size(p.relid)), 0) as bytes, coalesce(sum(greatest(c.reltuples, 0)), 0)::float8 as rows,
            (select count(*)::int from pg_index x where x.indrelid = $1::regclass) as indexes
     from pg_partition_tree($1::regclass) p join pg_class c on c.oid = p.relid where p.isleaf`,
    [tableName(table)],
  );
  const { bytes, ...rest } = rows[0]!;
  return { bytes: Number(bytes), ...rest };
}

/** Keeps the prediction for the run that comes next. */
export async function upsertRehearsal(db: Queryable, family: string, prediction: Prediction): Promise<void> {
  await db.query(
    `insert into fieldkeep.rotation_rehearsals (family, prediction) values ($1, $2)
     on conflict (family) do update set prediction = excluded.prediction, made_at = now()`,
    [family, JSON.stringify(prediction)],
  );
}
