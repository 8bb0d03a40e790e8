/**
 * SQL of the mirrors: `own` is Fieldkeep's database, `db` a target's. Keys travel between the two as the lines of a backup
 * file (backup.ts), so that times and fingerprints arrive as they were.
 */
import type { Queryable } from '../db.ts';
import type { KeyName } from './store.ts';
import type { KeyVersion } from './version.ts';

/** A wrapped data key with the version that it belongs to. */
export interface MirrorLine extends KeyName {
  readonly wrapped: string;
  /** Base64 of 16 bytes. */
  readonly fingerprint: string;
  readonly state: string;
}

const stateOrder = ['pending', 'active', 'decrypt-only', 'compromised'] as const;

const lineOf = (key: string, version: string) => `json_build_object('tenant', ${key}.tenant, 'family', ${key}.family,
  'version', ${key}.version, 'wrapped', ${key}.wrapped, 'fingerprint', encode(${key}.fingerprint, 'base64'),
  'state', ${version}.state, 'transitVersion', ${version}.transit_version, 'bind', ${version}.bind,
  'normalise', ${version}.normalise, 'indexes', ${version}.indexes, 'createdAt', ${version}.created_at,
  'activatedAt', ${version}.activated_at) as line`;

const names = `unnest($1::text[], $2::text[], $3::int[]) as n (tenant, family, version)`;

function toColumns(keys: readonly KeyName[]): [string[], string[], number[]] {
  return [keys.map((key) => key.tenant), keys.map((key) => key.family), keys.map((key) => key.version)];
}

/** The key of a name as a mirror keeps it; undefined when there is none. */
export async function findLine(own: Queryable, { tenant, family, version }: KeyName): Promise<MirrorLine | undefined> {
  const { rows } = await own.query<{ line: MirrorLine }>(
    `select ${lineOf('k', 'v')} from fieldkeep.data_keys k join fieldkeep.key_versions v using (family, version)
     where k.tenant = $1 and k.family = $2 and k.version = $3`,
    [tenant, family, version],
  );
  return rows[0]?.line;
}

/** Which of the database's keys to list: those of some families, of one version where it is given. */
export interface KeyFilter {
  readonly families: readonly string[];
  readonly version?: number;
}

/** Keys after `after` that are not known to be in the target's mirror, or with `all` also those that are; in order of their names. */
export async function listLines(
  own: Queryable,
  target: string,
  { families, version, all = false }: KeyFilter & { readonly all?: boolean },
  after: KeyName | undefined,
  limit: number,
): Promise<MirrorLine[]> {
  const { tenant, family, version: from } = after ?? { tenant: '', family: '', version: 0 };
  const { rows } = await own.query<{ line: MirrorLine }>(
    `select ${lineOf('k', 'v')} from fieldkeep.data_keys k join fieldkeep.key_versions v using (family, version)
     where k.family = any ($1) and ($2::int is null or k.version = $2) and ($3 or not $4 = any (k.mirrored))
       and (k.tenant, k.family, k.version) > ($5, $6, $7) order by k.tenant, k.family, k.version limit $8`,
    [families, version ?? null, all, target, tenant, family, from, limit],
  );
  return rows.map((row) => row.line);
}

export async function countUnmirrored(
  own: Queryable,
  target: string,
  { families, version }: KeyFilter,
): Promise<number> {
  const { rows } = await own.query<{ n: number }>(
    `select count(*)::int as n from fieldkeep.data_keys
     where family = any ($1) and ($2::int is null or version = $2) and not $3 = any (mirrored)`,
    [families, version ?? null, target],
  );
  return rows[0]!.n;
}

/** Notes which keys the mirror of a target holds (or, with `holds` false, does not hold after all). */
export async function setMirrored(
  own: Queryable,
  target: string,
  keys: readonly KeyName[],
  holds: boolean,
): Promise<void> {
  if (keys.length === 0) return;
  // Locked in one order, so that two workers do not wait for each other.
  await own.query(
    `with locked as (
       select k.tenant, k.family, k.version from fieldkeep.data_keys k join ${names} using (tenant, family, version)
       where ($4 = any (k.mirrored)) <> $5 order by k.tenant, k.family, k.version for no key update of k)
     update fieldkeep.data_keys k
     set mirrored = case when $5 then array_append(array_remove(k.mirrored, $4), $4) else array_remove(k.mirrored, $4) end
     from locked l where (k.tenant, k.family, k.version) = (l.tenant, l.family, l.version)`,
    [...toColumns(keys), target, holds],
  );
}

const incoming = `json_to_recordset($1) as m (tenant text, family text, version int, wrapped text, fingerprint text,
  state text, "transitVersion" int, bind text, normalise text, indexes json, "createdAt" timestamptz,
  "activatedAt" timestamptz)`;

/** Puts keys into a mirror; a name that has one there keeps it. */
export async function insertLines(db: Queryable, lines: readonly MirrorLine[]): Promise<void> {
  await db.query(
    `insert into fieldkeep.wrapped_keys (tenant, family, version, wrapped, fingerprint, state, transit_version, bind,
       normalise, indexes, created_at, activated_at)
     select tenant, family, version, wrapped, decode(fingerprint, 'base64'), state, "transitVersion", bind, normalise,
       indexes, "createdAt", "activatedAt" from ${incoming} on conflict do nothing`,
    [JSON.stringify(lines)],
  );
}

/** Those of the names under which a mirror holds another key, or none. */
export async function listDifferent(db: Queryable, lines: readonly MirrorLine[]): Promise<KeyName[]> {
  const { rows } = await db.query<KeyName>(
    `select m.tenant, m.family, m.version from ${incoming}
     left join fieldkeep.wrapped_keys w using (tenant, family, version)
     where w.wrapped is distinct from m.wrapped or w.fingerprint is distinct from decode(m.fingerprint, 'base64')`,
    [JSON.stringify(lines)],
  );
  return rows;
}

/** What a mirror holds after `after`, in order of the names. Whoever owns the database may have written it. */
export async function listMirror(db: Queryable, after: KeyName | undefined, limit: number): Promise<MirrorLine[]> {
  const { tenant, family, version } = after ?? { tenant: '', family: '', version: 0 };
  const { rows } = await db.query<{ line: MirrorLine }>(
    `select ${lineOf('w', 'w')} from fieldkeep.wrapped_keys w
     where (tenant, family, version) > ($1, $2, $3) order by tenant, family, version limit $4`,
    [tenant, family, version, limit],
  );
  return rows.map((row) => row.line);
}

/** Families of which these lines say more than the database knows: a version, a tenant's key, a later state. */
export async function listUnknownFamilies(own: Queryable, lines: readonly MirrorLine[]): Promise<string[]> {
  const { rows } = await own.query<{ family: string }>(
    `select distinct n.family
     from unnest($1::text[], $2::text[], $3::int[], $4::text[]) as n (tenant, family, version, state)
     left join fieldkeep.key_versions v using (family, version)
     left join fieldkeep.data_keys k using (tenant, family, version)
     where coalesce(v.state, '') <> 'destroyed' and
       (v.state is null or k.tenant is null or array_position($5::text[], n.state) > array_position($5, v.state))
     order by 1`,
    [...toColumns(lines), lines.map((line) => line.state), stateOrder],
  );
  return rows.map((row) => row.family);
}

/** States go forward only: what a mirror knows later than we do is not forgotten there. */
export async function updateStates(db: Queryable, versions: readonly KeyVersion[]): Promise<void> {
  const rows = versions.map(({ family, version, state, activatedAt }) => ({ family, version, state, activatedAt }));
  await db.query(
    `update fieldkeep.wrapped_keys w set state = m.state, activated_at = coalesce(m."activatedAt", w.activated_at)
     from json_to_recordset($1) as m (family text, version int, state text, "activatedAt" timestamptz)
     where w.family = m.family and w.version = m.version
       and array_position($2::text[], w.state) < array_position($2, m.state)`,
    [JSON.stringify(rows), stateOrder],
  );
}

/** Answers how many keys were deleted. */
export async function deleteVersions(
  db: Queryable,
  versions: readonly { readonly family: string; readonly version: number }[],
): Promise<number> {
  const { rowCount } = await db.query(
    `delete from fieldkeep.wrapped_keys where (family, version) in (select * from unnest($1::text[], $2::int[]))`,
    [versions.map(({ family }) => family), versions.map(({ version }) => version)],
  );
  return rowCount ?? 0;
}

export interface MirrorStatus {
  readonly target: string;
  readonly behind: number;
  readonly unknown: readonly string[];
  readonly problem: string | null;
}

/** What is not given stays as it was. */
export async function upsertMirror(
  own: Queryable,
  { target, behind, unknown, problem }: Omit<MirrorStatus, 'unknown'> & { readonly unknown?: readonly string[] },
): Promise<void> {
  await own.query(
    `insert into fieldkeep.mirrors as m (target, behind, unknown, problem) values ($1, $2, coalesce($3, '{}'::text[]), $4)
     on conflict (target) do update
     set behind = excluded.behind, unknown = coalesce($3, m.unknown), problem = excluded.problem, changed_at = now()
     where (m.behind, m.unknown, m.problem) is distinct from (excluded.behind, coalesce($3, m.unknown), excluded.problem)`,
    [target, behind, unknown ?? null, problem],
  );
}

export async function listMirrors(own: Queryable, targets: readonly string[]): Promise<MirrorStatus[]> {
  const { rows } = await own.query<MirrorStatus>(
    'select target, behind, unknown, problem from fieldkeep.mirrors where target = any ($1) order by target',
    [targets],
  );
  return rows;
}

/** The first target whose mirror knows more of a family than this database. */
export async function findUnknown(own: Queryable, family: string): Promise<string | undefined> {
  const { rows } = await own.query<{ target: string }>(
    'select target from fieldkeep.mirrors where $1 = any (unknown) order by target limit 1',
    [family],
  );
  return rows[0]?.target;
}

/** After an import nothing is unknown any more. */
export async function clearUnknown(own: Queryable): Promise<void> {
  await own.query(`update fieldkeep.mirrors set unknown = '{}' where unknown <> '{}'`);
}
