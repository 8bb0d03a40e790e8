/** SQL that looks at the customer's tables: what they are made of and what our role may do there. */
import type { Queryable } from '../db.ts';
import { columnId } from '../policy/policy.ts';

export interface Attribute {
  readonly type: string;
  /** As a cast to it is written: without a length, so that nothing is cut. */
  readonly cast: string;
  /** Does not take a null: by itself, by its domain, or in a partition. */
  readonly required: boolean;
  /** Of a composite type, of which one is null when all of its fields are. */
  readonly composite: boolean;
  readonly readable: boolean;
  /** Its type included, which what is written is cast to. */
  readonly writable: boolean;
}

export interface Inspection {
  /** Whether the database has our functions, where our role may use them. */
  readonly prepared: boolean;
  /** By column; empty when there is no such table. */
  readonly attributes: ReadonlyMap<string, Attribute>;
  /** Whether a valid unique index without predicate covers exactly the key's columns, all NOT NULL. */
  readonly unique: boolean;
  /** Columns with an index on their version, the key following. */
  readonly versionIndexed: ReadonlySet<string>;
  /** Predicates of partial indexes on exactly the key's columns, as Postgres spells them but for quotes. */
  readonly keyPredicates: ReadonlySet<string>;
}

async function isPrepared(db: Queryable): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    `select exists (
       select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = 'fieldkeep' and p.proname = 'fe_version' and p.proargtypes[0] = 'text'::regtype
         and has_schema_privilege(n.oid, 'usage')) as found`,
  );
  return rows[0]!.found;
}

async function listAttributes(db: Queryable, schema: string, name: string): Promise<Map<string, Attribute>> {
  const { rows } = await db.query<Attribute & { name: string }>(
    `select a.attname as name, case t.oid when 'varchar'::regtype then 'character varying'
            else format_type(t.oid, null) end as type, format_type(t.oid, -1) as cast,
            a.attnotnull or t.typnotnull or exists (
              select from pg_partition_tree(c.oid) p join pg_attribute o on o.attrelid = p.relid
              where o.attname = a.attname and o.attnotnull) as required,
            t.typtype = 'c' as composite,
            has_column_privilege(c.oid, a.attnum, 'select') as readable,
            has_column_privilege(c.oid, a.attnum, 'update') and has_schema_privilege(t.typnamespace, 'usage') as writable
     from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
     join pg_type t on t.oid = a.atttypid
     where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped`,
    [schema, name],
  );
  return new Map(rows.map(({ name: column, ...rest }) => [column, rest]));
}

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

/** Columns that an index has first, as fe_version of them, with exactly the key after it. */
async function listVersionIndexed(
  db: Queryable,
  schema: string,
  name: string,
  key: readonly string[],
): Promise<Set<string>> {
  const { rows } = await db.query<{ parts: string[]; keyed: boolean }>(
    `select parts, parts[2:] = (select array_agg(quote_ident(k.name) order by k.n)
                                from unnest($3::text[]) with ordinality k(name, n)) as keyed
     from (select array(select pg_get_indexdef(x.indexrelid, n, true) from generate_series(1, x.indnkeyatts) n) as parts
           from pg_index x join pg_class c on c.oid = x.indrelid join pg_namespace n on n.oid = c.relnamespace
           where n.nspname = $1 and c.relname = $2 and x.indisvalid and x.indpred is null) i`,
    [schema, name, key],
  );
  return new Set(
    rows.flatMap(({ parts, keyed }) => {
      const match = /^fieldkeep\.fe_version\(\(?"?([^"):]+)"?\)?(?:::text)?\)$/.exec(parts[0] ?? '');
      return match === null || !keyed ? [] : [match[1]!];
    }),
  );
}

async function listKeyPredicates(
  db: Queryable,
  schema: string,
  name: string,
  key: readonly string[],
): Promise<Set<string>> {
  const { rows } = await db.query<{ predicate: string }>(
    `select pg_get_expr(x.indpred, x.indrelid) as predicate
     from pg_index x join pg_class c on c.oid = x.indrelid join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1 and c.relname = $2 and x.indisvalid and x.indpred is not null
       and array(select pg_get_indexdef(x.indexrelid, k, true) from generate_series(1, x.indnkeyatts) k)
         = array(select quote_ident(k.name) from unnest($3::text[]) with ordinality k(name, n) order by k.n)`,
    [schema, name, key],
  );
  return new Set(rows.map((row) => row.predicate.replaceAll('"', '')));
}

/** Adoptions that were begun or undone, by `address\ncolumn`; of the others nothing is known. */
export async function listAdoptions(db: Queryable): Promise<Map<string, { started: boolean; undone: boolean }>> {
  const { rows } = await db.query<{ table: string; column: string; started: boolean; undone: boolean }>(
    `select "table", "column", started_at is not null as started, undone_at is not null as undone
     from fieldkeep.adoptions`,
  );
  return new Map(rows.map(({ table, column, ...rest }) => [columnId({ address: table, column }), rest]));
}

export interface Rule {
  /** The index's or the constraint's name. */
  readonly name: string;
  readonly kind: 'unique index' | 'foreign key';
  readonly column: string;
}

/**
 * Unique (and exclusion) indexes and foreign keys, of the table and its partitions, that compare one of these columns. An
 * expression counts with every column of its index.
 */
export async function listComparing(
  db: Queryable,
  schema: string,
  name: string,
  columns: readonly string[],
): Promise<Rule[]> {
  const { rows } = await db.query<Rule>(
    `with relation as (
       select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2
       union select p.relid from pg_class c join pg_namespace n on n.oid = c.relnamespace,
         lateral pg_partition_tree(c.oid) p where n.nspname = $1 and c.relname = $2
     )
     select i.relname as name, 'unique index' as kind, a.attname as column
     from pg_index x join pg_class i on i.oid = x.indexrelid join pg_attribute a on a.attrelid = x.indrelid
     where x.indrelid in (select oid from relation) and (x.indisunique or x.indisexclusion) and a.attname = any ($3)
       and (a.attnum = any (x.indkey[0 : x.indnkeyatts - 1]) or (x.indexprs is not null and exists (
         select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = x.indexrelid
           and d.refclassid = 'pg_class'::regclass and d.refobjid = x.indrelid and d.refobjsubid = a.attnum)))
     union
     select f.conname, 'foreign key', a.attname from pg_constraint f join pg_attribute a
       on (a.attrelid = f.conrelid and a.attnum = any (f.conkey)) or (a.attrelid = f.confrelid and a.attnum = any (f.confkey))
     where f.contype = 'f' and a.attrelid in (select oid from relation) and a.attname = any ($3)
     order by 2 desc, 1`,
    [schema, name, columns],
  );
  return rows;
}

/** Whether there is such a column, whoever may read it. */
export async function hasColumn(db: Queryable, schema: string, name: string, column: string): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    `select exists (
       select from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = $1 and c.relname = $2 and a.attname = $3 and a.attnum > 0 and not a.attisdropped) as found`,
    [schema, name, column],
  );
  return rows[0]!.found;
}

export async function inspectTable(
  db: Queryable,
  schema: string,
  name: string,
  key: readonly string[],
): Promise<Inspection> {
  return {
    prepared: await isPrepared(db),
    attributes: await listAttributes(db, schema, name),
    unique: await hasUniqueKey(db, schema, name, key),
    versionIndexed: await listVersionIndexed(db, schema, name, key),
    keyPredicates: await listKeyPredicates(db, schema, name, key),
  };
}

/** Remembers how the key of a table is spelled. */
export async function upsertKeyTypes(db: Queryable, address: string, types: readonly string[]): Promise<void> {
  await db.query(
    `insert into fieldkeep.registered_tables as r (address, key_types) values ($1, $2)
     on conflict (address) do update set key_types = excluded.key_types, seen_at = now()
     where r.key_types <> excluded.key_types`,
    [address, types],
  );
}

/** What is remembered of these tables, by address. */
export async function listKeyTypes(db: Queryable, addresses: readonly string[]): Promise<Map<string, string[]>> {
  const { rows } = await db.query<{ address: string; key_types: string[] }>(
    'select address, key_types from fieldkeep.registered_tables where address = any ($1)',
    [addresses],
  );
  return new Map(rows.map((row) => [row.address, row.key_types]));
}
