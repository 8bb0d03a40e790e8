/**
 * Key state as a file, so that losing Fieldkeep's database does not lose the rows: useless without the root keys.
 *
 *     {"format":"fieldkeep-keys/1","exportedAt":"…"}
 *     {"family":"ssn","nextRotationAt":"…"}
 *     {"family":"ssn","version":1,"state":"active","transitVersion":1,"bind":"row","indexes":[…],…}
 *     {"tenant":"acme","family":"ssn","version":1,"wrapped":"vault:v1:…","fingerprint":"<base64>"}
 *
 * The mirrors in the customer's databases (restore.ts) are read as the same lines.
 *
 * An import only adds: of two states of a version the later one stands, and a name (tenant, family, version) that has a key
 * keeps it. Two different keys for one name, or two different versions of one number, and nothing is imported at all.
 */
import { z } from 'zod';
import { sqlState, transaction, type Client, type Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { raiseEpoch } from './store.ts';
import type { VersionState } from './version.ts';

const family = z.string().regex(/^[a-z][a-z0-9]{1,15}$/);
const version = z.int().min(1).max(999_999_999);
const time = z.iso.datetime({ offset: true });
const states = ['pending', 'active', 'decrypt-only', 'compromised', 'destroyed'] as const;

const header = z.strictObject({ format: z.literal('fieldkeep-keys/1'), exportedAt: time });
const familyLine = z.strictObject({ family, nextRotationAt: time.nullable() });
const versionLine = z.strictObject({
  ...{ family, version, state: z.enum(states), transitVersion: version, bind: z.enum(['row', 'column']) },
  normalise: z.enum(['digits', 'alnum', 'digits/fold', 'alnum/fold']).nullable(),
  indexes: z.array(z.strictObject({ table: z.string(), column: z.string(), name: z.string(), bits: z.int() })),
  createdAt: time,
  activatedAt: time.nullable(),
});
const keyLine = z.strictObject({
  ...{ tenant: z.string(), family, version, wrapped: z.string().min(1), fingerprint: z.base64().length(24) },
});

/** A row of a mirror: a key and its version in one. */
const mirrorLine = z.strictObject({ ...versionLine.shape, ...keyLine.shape });

export type VersionLine = z.infer<typeof versionLine>;
export type KeyLine = z.infer<typeof keyLine>;

export interface KeyBackup {
  readonly families: readonly z.infer<typeof familyLine>[];
  readonly versions: readonly VersionLine[];
  readonly dataKeys: readonly KeyLine[];
}

const exportQuery = `
  select 1 as part, family, 0 as version, '' as tenant, json_build_object('family', family, 'nextRotationAt', next_rotation_at) as line
  from fieldkeep.key_families
  union all
  select 2, family, version, '', json_build_object('family', family, 'version', version, 'state', state,
    'transitVersion', transit_version, 'bind', bind, 'normalise', normalise, 'indexes', indexes,
    'createdAt', created_at, 'activatedAt', activated_at)
  from fieldkeep.key_versions
  union all
  select 3, family, version, tenant, json_build_object('tenant', tenant, 'family', family, 'version', version,
    'wrapped', wrapped, 'fingerprint', encode(fingerprint, 'base64'))
  from fieldkeep.data_keys
  order by 1, 2, 3, 4`;

/** The file's text: everything of one moment. */
export async function exportKeys(pool: Pool): Promise<string> {
  const { rows } = await pool.query<{ line: object }>(exportQuery);
  const first = { format: 'fieldkeep-keys/1', exportedAt: new Date().toISOString() };
  return [first, ...rows.map((row) => row.line)].map((line) => `${JSON.stringify(line)}\n`).join('');
}

/** Errors: `request_invalid` naming the line, never what stands in it. */
export function parseBackup(text: string): KeyBackup {
  const backup = { families: [], versions: [], dataKeys: [] } as {
    families: z.infer<typeof familyLine>[];
    versions: VersionLine[];
    dataKeys: KeyLine[];
  };
  const lines = text.split('\n').filter((line) => line !== '');
  lines.forEach((line, i) => {
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      throw new FieldkeepError('request_invalid', `Line ${i + 1} is not JSON: the file is damaged or cut off.`);
    }
    const parsed = i === 0 ? header.safeParse(value) : z.union([familyLine, versionLine, keyLine]).safeParse(value);
    if (!parsed.success) throw new FieldkeepError('request_invalid', `Line ${i + 1} is no line of fieldkeep-keys/1.`);
    if (i === 0) return;
    const { data } = parsed;
    if ('wrapped' in data) backup.dataKeys.push(data);
    else if ('state' in data) backup.versions.push(data);
    else if ('nextRotationAt' in data) backup.families.push(data);
  });
  if (lines.length === 0) throw new FieldkeepError('request_invalid', 'The file is empty.');
  return backup;
}

/** The key and the version of a mirror's row; undefined when it is none: whoever owns the target may have written it. */
export function parseMirrorLine(line: unknown): { readonly version: VersionLine; readonly key: KeyLine } | undefined {
  const parsed = mirrorLine.safeParse(line);
  if (!parsed.success) return undefined;
  const { tenant, wrapped, fingerprint, ...version } = parsed.data;
  return { version, key: { tenant, family: version.family, version: version.version, wrapped, fingerprint } };
}

/** Of two states of a version the higher one is later. */
export const rank = (state: VersionState) => states.indexOf(state);

/** The states on the way from one to another, both ends included; the database allows no other steps. */
function pathOf(from: VersionState, to: VersionState): VersionState[] {
  if (to === 'compromised') return from === 'pending' ? [from, 'active', to] : [from, to];
  return states.filter((each) => each !== 'compromised' && rank(each) >= rank(from) && rank(each) <= rank(to));
}

/** Where a backup comes from, for people. */
export type Source = 'file' | 'mirrors';

export const beginAgain =
  'If the service was started on a new database before the import, begin with an empty one again.';

interface Standing {
  readonly state: VersionState;
  readonly transit_version: number;
  readonly bind: string;
}

async function findVersion(tx: Client, line: VersionLine): Promise<Standing | undefined> {
  const { rows } = await tx.query<Standing>(
    'select state, transit_version, bind from fieldkeep.key_versions where family = $1 and version = $2 for update',
    [line.family, line.version],
  );
  return rows[0];
}

const uniqueViolation = '23505';

function otherVersion({ family, version }: VersionLine, source: Source): FieldkeepError {
  return new FieldkeepError(
    'conflict',
    `Version ${version} of family ${family} is another one here than in the ${source}: nothing was imported. ${beginAgain}`,
  );
}

/** Answers true when it was missing. */
async function importVersion(tx: Client, line: VersionLine, source: Source): Promise<boolean> {
  const standing = await findVersion(tx, line);
  if (standing === undefined) {
    await tx.query(
      `insert into fieldkeep.key_versions
         (family, version, state, transit_version, bind, normalise, indexes, created_at, activated_at)
       values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
      [
        ...[line.family, line.version, line.state, line.transitVersion, line.bind, line.normalise],
        ...[JSON.stringify(line.indexes), line.createdAt, line.activatedAt],
      ],
    );
    return true;
  }
  if (standing.transit_version !== line.transitVersion || standing.bind !== line.bind) {
    throw otherVersion(line, source);
  }
  if (rank(line.state) <= rank(standing.state)) return false;
  for (const state of pathOf(standing.state, line.state).slice(1)) {
    await tx.query('update fieldkeep.key_versions set state = $3 where family = $1 and version = $2', [
      ...[line.family, line.version, state],
    ]);
  }
  if (line.state === 'destroyed') {
    await tx.query('delete from fieldkeep.data_keys where family = $1 and version = $2', [line.family, line.version]);
  }
  return false;
}

/** Answers how many were missing. Keys of destroyed versions stay out. */
async function importDataKeys(tx: Client, keys: readonly KeyLine[], source: Source): Promise<number> {
  const columns = [
    keys.map((key) => key.tenant),
    keys.map((key) => key.family),
    keys.map((key) => key.version),
    keys.map((key) => key.wrapped),
    keys.map((key) => key.fingerprint),
  ];
  const unnested = `unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::text[]) as f (tenant, family, version, wrapped, fingerprint)`;
  const { rows } = await tx.query<{ tenant: string; family: string; version: number }>(
    `select k.family, k.version from ${unnested} join fieldkeep.data_keys k using (tenant, family, version)
     where k.fingerprint <> decode(f.fingerprint, 'base64') limit 1`,
    columns,
  );
  if (rows[0] !== undefined) {
    throw new FieldkeepError(
      'conflict',
      `A tenant has another key for version ${rows[0].version} of family ${rows[0].family} here than in the ${source}: nothing was imported. ${beginAgain}`,
    );
  }
  const { rowCount } = await tx.query(
    `insert into fieldkeep.data_keys (tenant, family, version, wrapped, fingerprint)
     select tenant, family, version, f.wrapped, decode(f.fingerprint, 'base64')
     from ${unnested} join fieldkeep.key_versions v using (family, version) where v.state <> 'destroyed'
     on conflict do nothing`,
    columns,
  );
  return rowCount ?? 0;
}

export interface Imported {
  readonly families: number;
  readonly versions: number;
  readonly dataKeys: number;
}

/** Writes down what was imported, in the transaction that imports it. */
export type Tell = (tx: Client, imported: Imported) => Promise<void>;

/** All or nothing; running it again adds nothing. Errors: `conflict` when the file and the database disagree. */
export function importKeys(pool: Pool, backup: KeyBackup, source: Source = 'file', tell?: Tell): Promise<Imported> {
  return transaction(pool, async (tx) => {
    let [families, versions] = [0, 0];
    for (const { family, nextRotationAt } of backup.families) {
      const { rowCount } = await tx.query(
        'insert into fieldkeep.key_families (family, next_rotation_at) values ($1, $2) on conflict do nothing',
        [family, nextRotationAt],
      );
      families += rowCount ?? 0;
    }
    // The furthest states first: a version steps down from active before its successor becomes it.
    for (const line of [...backup.versions].sort((a, b) => rank(b.state) - rank(a.state))) {
      try {
        if (await importVersion(tx, line, source)) versions += 1;
      } catch (error) {
        // Another version stands here under its root key version, or is active beside it.
        throw sqlState(error) === uniqueViolation ? otherVersion(line, source) : error;
      }
    }
    const dataKeys = await importDataKeys(tx, backup.dataKeys, source);
    await raiseEpoch(tx);
    const imported = { families, versions, dataKeys };
    await tell?.(tx, imported);
    return imported;
  });
}
