/** Runs and failures as the engine leaves them, inserted by hand: what tests of control and waivers need. */
import { randomUUID } from 'node:crypto';
import type { Pool } from '../../src/db.ts';

export interface RunSpec {
  readonly family?: string;
  /** Rows that do not open, by column of demo.employees. */
  readonly failures?: Readonly<Record<string, readonly string[]>>;
  readonly blocked?: boolean;
  readonly compromised?: boolean;
}

/** A run past its activation; `blocked` unless told otherwise. Whatever the family had under way is ended. */
export async function insertBlocked(owner: Pool, spec: RunSpec = {}): Promise<string> {
  const { family, failures = {}, blocked = true, compromised = false } = spec;
  const id = randomUUID();
  const kind = family === undefined ? 'adoption' : 'rotation';
  if (family !== undefined) {
    await owner.query('insert into fieldkeep.key_families (family) values ($1) on conflict do nothing', [family]);
  }
  await owner.query(
    `update fieldkeep.rotations set done_at = now()
     where done_at is null and kind = $1 and family is not distinct from $2`,
    [kind, family ?? null],
  );
  await owner.query(
    `insert into fieldkeep.rotations
       (id, kind, family, version, compromised, requested_by, activated_at, planned_at, pass, blocked, blocked_at)
     values ($1, $2, $3::text, case when $3::text is not null then 2 end, $4, 'test', now(), now(), 1,
       case when $5::boolean then 'Values do not open.' end, case when $5::boolean then now() end)`,
    [id, kind, family ?? null, compromised, blocked],
  );
  for (const [column, rows] of Object.entries(failures)) await insertFailed(owner, id, column, rows);
  return id;
}

export async function insertFailed(
  owner: Pool,
  run: string,
  column: string,
  rows: readonly string[],
  code = 'decryption_failed',
): Promise<void> {
  await owner.query(
    `insert into fieldkeep.rotation_failures (rotation, "table", "column", row, code, pass)
     select $1, 'demo.employees', $2, unnest($3::text[]), $4, 1`,
    [run, column, rows, code],
  );
}

export async function readRun(owner: Pool, id: string): Promise<Record<string, unknown>> {
  const { rows } = await owner.query<Record<string, unknown>>('select * from fieldkeep.rotations where id = $1', [id]);
  return rows[0]!;
}
