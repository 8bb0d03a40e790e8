/**
 * SQL of the question which rows were opened lately. The log is read from its end, a stretch at a time: an index over row
 * digests would have to be asked for every row of a table. What is to be in the answer is unfolded first (store.ts).
 */
import type { Queryable } from '../db.ts';

/** Entries from `first` up to the one before `end`. */
export interface Stretch {
  readonly first: number;
  readonly end: number;
}

/**
 * The entries since a moment, to within the seconds by which some stand out of order: found by halving, for times have no
 * index that would find it. What was pruned is older.
 */
export async function findStretchSince(db: Queryable, since: Date): Promise<Stretch> {
  const { rows } = await db.query<{ first: string; end: string }>(
    `with recursive log as (
       select coalesce(max(index), -1) + 1 as "end" from fieldkeep.audit_entries
     ), search (low, high) as (
       select 0::bigint, "end" from log
       union all
       select case when older then middle + 1 else low end, case when older then high else middle end
       from (select low, high, (low + high) / 2 as middle, coalesce((select coalesce(e."time" < $1, false)
               from fieldkeep.audit_entries e where e.index = (low + high) / 2), true) as older
             from search where low < high) halves
     )
     select low as first, "end" from search cross join log where low >= high`,
    [since],
  );
  return { first: Number(rows[0]!.first), end: Number(rows[0]!.end) };
}

/** Digests of the rows of which single calls in the stretch opened a value of the class. */
export async function listOpenedRows(db: Queryable, className: string, { first, end }: Stretch): Promise<string[]> {
  const { rows } = await db.query<{ digest: string }>(
    `select distinct row_digest as digest from fieldkeep.audit_entries
     where index >= $2 and index < $3 and row_digest is not null and class = $1 and action in ('decrypt', 'match')
       and outcome = 'ok'`,
    [className, first, end],
  );
  return rows.map((row) => row.digest);
}

interface OpenedBatch {
  readonly index: number;
  /** Of the rows of which it opened a value of the class. */
  readonly rowDigests: readonly string[];
}

/** Batches in the stretch that opened values of the class, newest first, `limit` at most. */
export async function listOpenedBatches(
  db: Queryable,
  className: string,
  { first, end }: Stretch,
  limit: number,
): Promise<OpenedBatch[]> {
  const { rows } = await db.query<{ index: string; digests: string[] }>(
    `select i.index, array(
       select substring(item.line from '"rowDigest":"([^"]+)"')
       from string_to_table(i.items, E'\\n') as item(line)
       where strpos(item.line, '"class":"' || $1 || '"') > 0 and strpos(item.line, '"outcome":"ok"') > 0
         and strpos(item.line, '"rowDigest":"') > 0) as digests
     from fieldkeep.audit_items i join fieldkeep.audit_entries e using (index)
     where i.index >= $2 and i.index < $3 and e.action in ('decrypt', 'match') and e.outcome in ('ok', 'partial')
       and (e.class = $1 or e.class is null)
     order by i.index desc limit $4`,
    [className, first, end, limit],
  );
  return rows.map((row) => ({ index: Number(row.index), rowDigests: row.digests }));
}
