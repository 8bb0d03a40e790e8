/**
 * SQL of key state. Every function that changes what an answer may depend on is called in a transaction that also
 * calls raiseEpoch; the caller then waits out the open intake transactions (audit/store.ts).
 */
import type { Client, Pool, Queryable } from '../db.ts';
import { present } from '../present.ts';
import { serverSql, toEpoch, type EpochRow } from './epoch-store.ts';
import type { KeyFamily, KeyState, KeyVersion, VersionIndex, VersionState } from './version.ts';
import type { Normalise } from '../crypto/blind-index.ts';

export const epochChannel = 'fieldkeep_epoch';

export interface KeyName {
  readonly tenant: string;
  readonly family: string;
  readonly version: number;
}

/** A data key, and the target whose mirror is to hold it, if one is. */
export interface Wanted extends KeyName {
  readonly target?: string | undefined;
}

/** Raises the epoch and tells every instance. */
export async function raiseEpoch(tx: Client): Promise<void> {
  await tx.query('select fieldkeep.raise_epoch()');
}

interface StateRow extends EpochRow {
  family: string | null;
  next_rotation_at: Date | null;
  version: number | null;
  state: VersionState;
  transit_version: number;
  bind: 'row' | 'column';
  normalise: Normalise | null;
  indexes: VersionIndex[];
  created_at: Date;
  activated_at: Date | null;
}

function toVersion(row: StateRow, family: string, version: number): KeyVersion {
  return {
    family,
    version,
    state: row.state,
    transitVersion: row.transit_version,
    bind: row.bind,
    indexes: row.indexes,
    createdAt: row.created_at,
    ...present({ normalise: row.normalise, activatedAt: row.activated_at }),
  };
}

/** Everything about key state in one statement, and so of one moment. */
export async function loadKeyState(db: Queryable): Promise<KeyState> {
  const { rows } = await db.query<StateRow>(`
    select e.n, e.token, ${serverSql} as server, f.family, f.next_rotation_at, v.version, v.state, v.transit_version, v.bind, v.normalise,
           v.indexes, v.created_at, v.activated_at
    from fieldkeep.epoch e
    left join fieldkeep.key_families f on true
    left join fieldkeep.key_versions v using (family)
    order by f.family, v.version`);
  const families = new Map<string, KeyFamily & { versions: Map<number, KeyVersion> }>();
  for (const row of rows) {
    if (row.family === null) continue;
    const known = families.get(row.family) ?? {
      family: row.family,
      versions: new Map<number, KeyVersion>(),
      ...(row.next_rotation_at !== null && { nextRotationAt: row.next_rotation_at }),
    };
    if (row.version !== null) known.versions.set(row.version, toVersion(row, row.family, row.version));
    families.set(row.family, {
      ...known,
      ...(row.state === 'active' && row.version !== null && { active: row.version }),
      ...(row.state === 'pending' && row.version !== null && { pending: row.version }),
    });
  }
  return { epoch: toEpoch(rows[0]!), families };
}

/** True when this call made the family. */
export async function insertFamily(tx: Client, family: string, nextRotationAt: Date | undefined): Promise<boolean> {
  const { rowCount } = await tx.query(
    'insert into fieldkeep.key_families (family, next_rotation_at) values ($1, $2) on conflict do nothing',
    [family, nextRotationAt ?? null],
  );
  return rowCount === 1;
}

export interface NewVersion {
  readonly family: string;
  readonly version: number;
  readonly state: 'pending' | 'active';
  readonly transitVersion: number;
  readonly bind: 'row' | 'column';
  readonly normalise?: Normalise;
  readonly indexes: readonly VersionIndex[];
}

export async function insertVersion(tx: Client, made: NewVersion): Promise<void> {
  await tx.query(
    `insert into fieldkeep.key_versions (family, version, state, transit_version, bind, normalise, indexes, activated_at)
     values ($1, $2, $3, $4, $5, $6, $7, case when $3 = 'active' then now() end)`,
    [
      made.family,
      made.version,
      made.state,
      made.transitVersion,
      made.bind,
      made.normalise ?? null,
      JSON.stringify(made.indexes),
    ],
  );
}

/** The version before becomes decrypt-only and `version` active. Answers false when it was not pending (any more). */
export async function activateVersion(tx: Client, family: string, version: number): Promise<boolean> {
  await tx.query(
    `update fieldkeep.key_versions set state = 'decrypt-only'
     where family = $1 and state = 'active' and exists
       (select 1 from fieldkeep.key_versions where family = $1 and version = $2 and state = 'pending')`,
    [family, version],
  );
  const { rowCount } = await tx.query(
    `update fieldkeep.key_versions set state = 'active', activated_at = now()
     where family = $1 and version = $2 and state = 'pending'`,
    [family, version],
  );
  return rowCount === 1;
}

export async function setCompromised(tx: Client, family: string, version: number): Promise<void> {
  await tx.query(
    `update fieldkeep.key_versions set state = 'compromised'
     where family = $1 and version = $2 and state in ('active', 'decrypt-only')`,
    [family, version],
  );
}

/** A destroyed version keeps its row, without the keys. */
export async function setDestroyed(tx: Client, family: string, version: number): Promise<void> {
  await tx.query(
    `update fieldkeep.key_versions set state = 'destroyed'
     where family = $1 and version = $2 and state in ('decrypt-only', 'compromised')`,
    [family, version],
  );
  await tx.query('delete from fieldkeep.data_keys where family = $1 and version = $2', [family, version]);
}

export async function setNextRotation(db: Queryable, family: string, at: Date): Promise<void> {
  await db.query('update fieldkeep.key_families set next_rotation_at = $2 where family = $1', [family, at]);
}

/** A rotation that is due already is not due before `at`. */
export async function postponeDue(db: Queryable, family: string, at: Date): Promise<void> {
  await db.query(
    'update fieldkeep.key_families set next_rotation_at = $2 where family = $1 and next_rotation_at <= now()',
    [family, at],
  );
}

interface StoredDataKey {
  readonly wrapped: string;
  readonly fingerprint: Buffer;
}

interface FoundDataKey extends StoredDataKey {
  /** The server that answered, as in an epoch. */
  readonly server: string;
  /** Targets whose mirror holds it. */
  readonly mirrored: readonly string[];
}

export async function findDataKey(
  db: Queryable,
  tenant: string,
  family: string,
  version: number,
): Promise<FoundDataKey | undefined> {
  const { rows } = await db.query<FoundDataKey>({
    name: 'find-data-key',
    text: `select wrapped, fingerprint, mirrored, ${serverSql} as server from fieldkeep.data_keys
           where tenant = $1 and family = $2 and version = $3`,
    values: [tenant, family, version],
  });
  return rows[0];
}

/** Whether the tenant has a data key of any family. */
export async function hasDataKey(db: Queryable, tenant: string): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    'select exists (select from fieldkeep.data_keys where tenant = $1) as found',
    [tenant],
  );
  return rows[0]!.found;
}

/**
 * Stores a data key unless the name has one already: a name has one key for ever. Nor is it stored for a version that is
 * wrapped under another root key version: lost commits may have made room for another one of the same number.
 */
export async function insertDataKey(
  db: Queryable,
  name: KeyName,
  key: StoredDataKey,
  transitVersion: number,
): Promise<void> {
  await db.query(
    `insert into fieldkeep.data_keys (tenant, family, version, wrapped, fingerprint)
     select $1, family, version, $4, $5 from fieldkeep.key_versions
     where family = $2 and version = $3 and transit_version = $6
     on conflict do nothing`,
    [name.tenant, name.family, name.version, key.wrapped, key.fingerprint, transitVersion],
  );
}

/** Those of the named keys that are stored, and their fingerprints. */
export async function listFingerprints(
  db: Queryable,
  names: readonly KeyName[],
): Promise<(KeyName & { readonly fingerprint: Buffer })[]> {
  const { rows } = await db.query<KeyName & { fingerprint: Buffer }>(
    `select tenant, family, version, fingerprint from fieldkeep.data_keys
     join unnest($1::text[], $2::text[], $3::int[]) as named (tenant, family, version) using (tenant, family, version)`,
    [names.map(({ tenant }) => tenant), names.map(({ family }) => family), names.map(({ version }) => version)],
  );
  return rows;
}

/** Tenants (and '' for the canary) that have a key under `from` and none under `to` yet. */
export async function listTenantsLacking(db: Pool, family: string, from: number, to: number): Promise<string[]> {
  const { rows } = await db.query<{ tenant: string }>(
    `select tenant from fieldkeep.data_keys o where family = $1 and version = $2 and not exists
       (select 1 from fieldkeep.data_keys n where n.family = $1 and n.version = $3 and n.tenant = o.tenant)
     order by tenant`,
    [family, from, to],
  );
  return rows.map((row) => row.tenant);
}

/** When requests last used each version of a family, by the entries that are in order (audit/store.ts). */
export async function listLastUses(db: Queryable, family: string): Promise<Map<number, Date>> {
  const { rows } = await db.query<{ version: number; last_used_at: Date }>(
    'select version, last_used_at from fieldkeep.key_uses where family = $1',
    [family],
  );
  return new Map(rows.map((row) => [row.version, row.last_used_at]));
}
