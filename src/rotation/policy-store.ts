/** SQL of the policy in force: which one it is, which processes go by another, and which columns it once registered. */
import type { Queryable } from '../db.ts';
import { aliveSql } from '../keys/instance-store.ts';
import type { RegisteredColumn } from '../policy/policy.ts';

export interface InForce {
  readonly version: string;
  readonly since: Date;
}

/** Undefined until a worker has put one in force. */
export async function findInForce(db: Queryable): Promise<InForce | undefined> {
  const { rows } = await db.query<InForce>(
    'select version, in_force_at as since from fieldkeep.policies where superseded_at is null',
  );
  return rows[0];
}

/** Whether a policy was in force and is no longer. */
export async function isSuperseded(db: Queryable, version: string): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    'select exists (select from fieldkeep.policies where version = $1 and superseded_at is not null) as found',
    [version],
  );
  return rows[0]!.found;
}

/** Whether this policy, or none at all, is in force; nobody puts another one in force before the transaction ends. */
export async function holdInForce(tx: Queryable, version: string): Promise<boolean> {
  const { rows } = await tx.query<{ version: string }>(
    'select version from fieldkeep.policies where superseded_at is null for share',
  );
  if (rows[0] !== undefined) return rows[0].version === version;
  return (await findInForce(tx)) === undefined; // another one may have been put in force while we waited for the lock
}

/** Supersedes every other policy. To be called while the epoch is locked: one at a time. */
export async function insertInForce(tx: Queryable, version: string, columns: readonly RegisteredColumn[]) {
  await tx.query(
    `update fieldkeep.policies set superseded_at = clock_timestamp() where superseded_at is null and version <> $1`,
    [version],
  );
  await tx.query(
    `insert into fieldkeep.policies as p (version) values ($1) on conflict (version) do update
       set in_force_at = clock_timestamp(), superseded_at = null where p.superseded_at is not null`,
    [version],
  );
  const addresses = columns.map(({ address }) => address);
  const [names, classes] = [columns.map(({ column }) => column), columns.map((column) => column.class)];
  await tx.query(
    `insert into fieldkeep.registered_columns as r (address, "column", class, definition)
     select * from unnest($1::text[], $2::text[], $3::text[], $4::json[])
     on conflict (address, "column", class) do update
       set definition = excluded.definition, dropped_by = null, dropped_at = null`,
    [addresses, names, classes, columns.map((column) => JSON.stringify(column))],
  );
  await tx.query(
    `update fieldkeep.registered_columns r set dropped_by = $4, dropped_at = clock_timestamp()
     where dropped_at is null and not exists (
       select from unnest($1::text[], $2::text[], $3::text[]) as c (address, "column", class)
       where (c.address, c."column", c.class) = (r.address, r."column", r.class))`,
    [addresses, names, classes, version],
  );
}

export interface DroppedColumn {
  readonly column: RegisteredColumn;
  /** The version of the policy that no longer registers it. */
  readonly by: string;
}

/** Columns of a family that a policy registered which was in force, and which the one in force does not. */
export async function listDropped(db: Queryable, family: string): Promise<DroppedColumn[]> {
  const { rows } = await db.query<DroppedColumn>(
    `select r.definition as column, r.dropped_by as by from fieldkeep.registered_columns r
     where r.class = $1 and r.dropped_at is not null order by r.address, r."column"`,
    [family],
  );
  return rows;
}

export interface Other {
  readonly id: string;
  readonly role: string;
  readonly policy: string;
  readonly since: Date;
}

/** Living processes, each with the policy that it goes by; processes of an older release do not say theirs. */
export async function listPolicies(db: Queryable): Promise<Other[]> {
  const { rows } = await db.query<Other>(
    `select i.id, i.role, i.policy, i.policy_since as since from fieldkeep.instances i
     where i.policy is not null and ${aliveSql('i.id')} order by i.policy_since, i.id`,
  );
  return rows;
}
