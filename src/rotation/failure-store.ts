/** SQL of rows that do not open: by table, column and key, never the value. */
import type { Client, Queryable } from '../db.ts';

export interface Failure {
  readonly column: string;
  readonly row: string;
  readonly code: string;
}

/**
 * Notes the rows of a range that did not open; a row that is noted already gets the newest code. A waiver is of a row and
 * its code: with another code something else stands there, and is not waived.
 */
export async function insertFailures(
  tx: Client,
  range: { readonly run: string; readonly pass: number; readonly table: string },
  failures: readonly Failure[],
): Promise<void> {
  if (failures.length === 0) return;
  await tx.query(
    `insert into fieldkeep.rotation_failures as f (rotation, "table", "column", row, code, pass)
     select $1, $2, u.c, u.r, u.e, $6 from unnest($3::text[], $4::text[], $5::text[]) as u(c, r, e)
     on conflict (rotation, "table", "column", row) do update set code = excluded.code, pass = excluded.pass,
       waived_at = case when f.code = excluded.code then f.waived_at end,
       waived_by = case when f.code = excluded.code then f.waived_by end`,
    [
      range.run,
      range.table,
      failures.map((failure) => failure.column),
      failures.map((failure) => failure.row),
      failures.map((failure) => failure.code),
      range.pass,
    ],
  );
}

/** Forgets what is to be tried again: all but the rows that were given up. */
export async function deleteFailures(tx: Client, run: string): Promise<void> {
  await tx.query('delete from fieldkeep.rotation_failures where rotation = $1 and waived_at is null', [run]);
}

interface FailedRows {
  readonly table: string;
  readonly column: string;
  readonly rows: readonly string[];
}

/** Rows that were given up, by table and column. */
export async function listWaived(db: Queryable, run: string): Promise<FailedRows[]> {
  const { rows } = await db.query<FailedRows & { rows: string[] }>(
    `select "table", "column", array_agg(row) as rows from fieldkeep.rotation_failures
     where rotation = $1 and waived_at is not null group by 1, 2`,
    [run],
  );
  return rows;
}

/** Forgets the rows of listRetryable, which are about to be tried: those that fail again are noted again. */
export async function deleteRetryable(tx: Client, run: string): Promise<void> {
  await tx.query(
    `delete from fieldkeep.rotation_failures where rotation = $1 and waived_at is null and code <> 'envelope_malformed'`,
    [run],
  );
}

/** Rows that may open when they are tried once more, by table. What is no envelope stays none. */
export async function listRetryable(db: Queryable, run: string): Promise<{ table: string; rows: string[] }[]> {
  const { rows } = await db.query<{ table: string; rows: string[] }>(
    `select "table", array_agg(distinct row) as rows from fieldkeep.rotation_failures
     where rotation = $1 and waived_at is null and code <> 'envelope_malformed' group by 1 order by 1`,
    [run],
  );
  return rows;
}

export interface StoredFailure extends Failure {
  readonly table: string;
  readonly notedAt: Date;
  readonly waivedAt?: Date;
}

/** In order of table, column and row, after `after`. */
export async function listFailures(
  db: Queryable,
  run: string,
  limit: number,
  after: readonly [string, string, string] | undefined,
): Promise<StoredFailure[]> {
  const { rows } = await db.query<Omit<StoredFailure, 'waivedAt'> & { waivedAt: Date | null }>(
    `select "table", "column", row, code, noted_at as "notedAt", waived_at as "waivedAt"
     from fieldkeep.rotation_failures
     where rotation = $1 and ($2::text is null or ("table", "column", row) > ($2, $3, $4))
     order by "table", "column", row limit $5`,
    [run, after?.[0] ?? null, after?.[1] ?? null, after?.[2] ?? null, limit],
  );
  return rows.map(({ waivedAt, ...rest }) => ({ ...rest, ...(waivedAt !== null && { waivedAt }) }));
}

/** How many rows of a column do not open, and which: `digest` is SHA-256 over every row and its code. */
export interface FailedColumn {
  readonly table: string;
  readonly column: string;
  readonly rows: number;
  readonly digest: string;
}

/** The digest: base64url of SHA-256 over [row, code], [row, code], … in order of the row's bytes. */
const failedColumns = `f."table", f."column", count(*)::int as rows,
  rtrim(translate(encode(sha256(convert_to(
    string_agg(json_build_array(f.row, f.code)::text, ', ' order by f.row collate "C"), 'UTF8')),
    'base64'), '+/', '-_'), '=') as digest`;
const byColumn = `group by 1, 2 order by f."table" collate "C", f."column" collate "C"`;

/** What of a run does not open and is not waived. */
export async function digestFailures(db: Queryable, run: string): Promise<FailedColumn[]> {
  const { rows } = await db.query<FailedColumn>(
    `select ${failedColumns} from fieldkeep.rotation_failures f
     where f.rotation = $1 and f.waived_at is null ${byColumn}`,
    [run],
  );
  return rows;
}

/** Waives all of a run that is not waived, and answers what that was: the caller compares it with what was approved. */
export async function waiveFailures(tx: Client, run: string, approval: string): Promise<FailedColumn[]> {
  const { rows } = await tx.query<FailedColumn>(
    `with f as (
       update fieldkeep.rotation_failures set waived_at = now(), waived_by = $2
       where rotation = $1 and waived_at is null returning "table", "column", row, code)
     select ${failedColumns} from f ${byColumn}`,
    [run, approval],
  );
  return rows;
}
