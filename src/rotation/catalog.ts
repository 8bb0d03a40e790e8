/**
 * What the registered tables look like in the database: the types of their keys, which decide how a row is spelled, and
 * whether a version index finds old envelopes quickly. Read at start and whenever the policy changes.
 *
 * A row's name is its key as Postgres spells it: one column's text, or the RFC 8785 array of several.
 */
import { canonicalJson } from '../crypto/canonical.ts';
import type { Queryable } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';

export interface KeyColumn {
  readonly name: string;
  /** smallint, integer, bigint, uuid, text or character varying */
  readonly type: string;
}

/** A registered table as the engine needs it. */
export interface TableShape {
  readonly address: string;
  readonly schema: string;
  readonly name: string;
  readonly key: readonly KeyColumn[];
  readonly tenant: RegisteredColumn['tenant'];
  readonly columns: readonly RegisteredColumn[];
  /** Registered columns with an index on their version, key following. */
  readonly indexed: ReadonlySet<string>;
}

export interface Catalog {
  readonly tables: ReadonlyMap<string, TableShape>;
  /** Why a registered table cannot be worked on, by address, in a sentence. */
  readonly problems: ReadonlyMap<string, string>;
  /** Types of the key of a registered table that exists. */
  keyTypes(address: string): readonly string[] | undefined;
}

const integerTypes = new Set(['smallint', 'integer', 'bigint']);
const textTypes = new Set(['text', 'character varying']);
const integerPattern = /^(?:0|-?[1-9][0-9]{0,18})$/;
const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

function isCanonicalPart(type: string, text: string): boolean {
  if (integerTypes.has(type)) return integerPattern.test(text);
  return type === 'uuid' ? uuidPattern.test(text) : true;
}

/** Whether `row` is spelled as Postgres spells a key of these types. */
export function isCanonicalRow(types: readonly string[], row: string): boolean {
  if (types.length === 1) return isCanonicalPart(types[0]!, row);
  let parts: unknown;
  try {
    parts = JSON.parse(row);
  } catch {
    return false;
  }
  if (!Array.isArray(parts) || parts.length !== types.length) return false;
  const texts = parts.filter((part): part is string => typeof part === 'string');
  if (texts.length !== types.length || canonicalJson(texts) !== row) return false;
  return texts.every((text, i) => isCanonicalPart(types[i]!, text));
}

/** The name of a row from the texts of its key. */
export function formatRow(key: readonly string[]): string {
  return key.length === 1 ? key[0]! : canonicalJson(key);
}

interface Attribute {
  readonly name: string;
  readonly type: string;
}

async function listAttributes(db: Queryable, schema: string, name: string): Promise<Attribute[]> {
  const { rows } = await db.query<Attribute>(
    `select a.attname as name, case t.oid when 'varchar'::regtype then 'character varying'
            else format_type(t.oid, null) end as type
     from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
     join pg_type t on t.oid = a.atttypid
     where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped`,
    [schema, name],
  );
  return rows;
}

/** Whether a valid unique index without predicate covers exactly these columns, all NOT NULL. */
async function hasUniqueKey(db: Queryable, schema: string, name: string, key: readonly string[]): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    `select exists (
       select from pg_index x
       join pg_class c on c.oid = x.indrelid join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = $1 and c.relname = $2 and x.indisunique and x.indisvalid and x.indpred is null
         and (select array_agg(a.attname::text order by a.attname::text) from pg_attribute a
              where a.attrelid = c.oid and a.attnum = any (x.indkey[0 : x.indnkeyatts - 1]) and a.attnotnull)
           = (select array_agg(k order by k) from unnest($3::text[]) k)
         and x.indnkeyatts = cardinality($3::text[])) as found`,
    [schema, name, key],
  );
  return rows[0]!.found;
}

/** Columns that an index starts with the fe_version of. */
async function listVersionIndexed(db: Queryable, schema: string, name: string): Promise<string[]> {
  const { rows } = await db.query<{ definition: string }>(
    `select pg_get_indexdef(x.indexrelid, 1, true) as definition from pg_index x
     join pg_class c on c.oid = x.indrelid join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1 and c.relname = $2 and x.indisvalid and x.indpred is null`,
    [schema, name],
  );
  return rows.flatMap(({ definition }) => {
    const match = /^fieldkeep\.fe_version\(\(?"?([^")]+)"?\)?(?:::text)?\)$/.exec(definition);
    return match === null ? [] : [match[1]!];
  });
}

async function describeTable(db: Queryable, columns: readonly RegisteredColumn[]): Promise<TableShape | string> {
  const { address, schema, name, key, tenant } = columns[0]!;
  const attributes = new Map((await listAttributes(db, schema, name)).map((each) => [each.name, each.type]));
  if (attributes.size === 0) return `Table ${address} is registered and does not exist (or is not visible to us).`;
  const used = [...key, ...('column' in tenant ? [tenant.column] : [])];
  used.push(...columns.flatMap((column) => [column.column, ...column.index.map((index) => index.column)]));
  const missing = used.filter((column) => !attributes.has(column));
  if (missing.length > 0) return `Table ${address} has no column ${missing.join(', ')}.`;
  const types = key.map((column) => ({ name: column, type: attributes.get(column)! }));
  const bad = types.find(({ type }) => !integerTypes.has(type) && !textTypes.has(type) && type !== 'uuid');
  if (bad !== undefined)
    return `Column ${bad.name} of table ${address} is of type ${bad.type}; keys are integers, uuids or texts.`;
  const target = columns.flatMap((column) => [column.column, ...column.index.map((index) => index.column)]);
  const short = target.find((column) => !textTypes.has(attributes.get(column)!));
  if (short !== undefined)
    return `Column ${short} of table ${address} must be of a text type to hold envelopes or tokens.`;
  if (!(await hasUniqueKey(db, schema, name, key))) {
    return `The key of table ${address} needs a unique index on exactly its columns, all NOT NULL.`;
  }
  const indexed = new Set(await listVersionIndexed(db, schema, name));
  return { address, schema, name, key: types, tenant, columns, indexed };
}

/** Looks every registered table up. Errors: those of the database; a table that will not do is a problem, not an error. */
export async function loadCatalog(db: Queryable, registered: readonly RegisteredColumn[]): Promise<Catalog> {
  const tables = new Map<string, TableShape>();
  const problems = new Map<string, string>();
  for (const address of new Set(registered.map((column) => column.address))) {
    const found = await describeTable(
      db,
      registered.filter((column) => column.address === address),
    );
    if (typeof found === 'string') problems.set(address, found);
    else tables.set(address, found);
  }
  return { tables, problems, keyTypes: (address) => tables.get(address)?.key.map(({ type }) => type) };
}
