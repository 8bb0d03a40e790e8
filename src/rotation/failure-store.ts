/** SQL of rows that do not open: by table, column and key, never the value. */
import type { Client, Queryable } from '../db.ts';

export interface Failure {
  readonly column: string;
  readonly row: string;
  readonly code: string;
}

/** Notes the rows of a range that did not open; a row that is noted already gets the newest code. */
export async function insertFailures(
  tx: Client,
  range: { readonly run: string; readonly pass: number; readonly table: string },
  failures: readonly Failure[],
): Promise<void> {
  if (failures.length === 0) return;
  await tx.query(
    `insert into fieldkeep.rotation_failures (rotation, "table", "column", row, code, pass)
     select $1, $2, u.c, u.r, u.e, $6 from unnest($3::text[], $4::text[], $5::text[]) as u(c, r, e)
     on conflict (rotation, "table", "column", row) do update set code = excluded.code, pass = excluded.pass`,
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

export interface StoredFailure extends Failure {
  readonly table: string;
  readonly notedAt: Date;
}

/** In order of table, column and row, after `after`. */
export async function listFailures(
  db: Queryable,
  run: string,
  limit: number,
  after: readonly [string, string, string] | undefined,
): Promise<StoredFailure[]> {
  const { rows } = await db.query<{ table: string; column: string; row: string; code: string; noted_at: Date }>(
    `select "table", "column", row, code, noted_at from fieldkeep.rotation_failures
     where rotation = $1 and ($2::text is null or ("table", "column", row) > ($2, $3, $4))
     order by "table", "column", row limit $5`,
    [run, after?.[0] ?? null, after?.[1] ?? null, after?.[2] ?? null, limit],
  );
  return rows.map(({ noted_at: notedAt, ...rest }) => ({ ...rest, notedAt }));
}
