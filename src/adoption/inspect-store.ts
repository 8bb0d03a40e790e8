/**
 * SQL that looks at a table before it is adopted: what it and its columns are, and how much of it there is. It reads
 * catalogs and statistics, never a value; only `countExactly`, which answers numbers, and `listSuspects` read the table.
 */
import { quoteIdentifier, type Queryable } from '../db.ts';

export interface SeenTable {
  readonly oid: number;
  /** r: table, p: partitioned, f: foreign, v: view, m: materialized view. */
  readonly kind: string;
  readonly unlogged: boolean;
  /** Of the database: UTF8, LATIN1, SQL_ASCII (none: bytes that nobody looks at). */
  readonly encoding: string;
  /** Of the whole, from statistics; -1 when it was never analyzed. */
  readonly rows: number;
  readonly pages: number;
  readonly bytes: number;
  readonly indexes: number;
  /** d: primary key, n: none, f: all columns, i: an index. */
  readonly replicaIdentity: string;
  readonly identityColumns: readonly string[];
  readonly partitionKey: readonly string[];
  /** Of a table that is partitioned by an expression. */
  readonly partitionExpression: string | null;
  readonly partitions: readonly { readonly schema: string; readonly name: string }[];
  readonly isNested: boolean;
  /** Tables that inherit from it and are no partitions. */
  readonly heirs: readonly string[];
  readonly rowSecurity: boolean;
  readonly rowSecurityForced: boolean;
}

/** Undefined when there is no table of this name, or when it cannot be seen. */
export async function findTable(db: Queryable, schema: string, name: string): Promise<SeenTable | undefined> {
  const { rows } = await db.query<SeenTable>(
    `with root as (
       select c.* from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p', 'f', 'v', 'm')
     ), tree as (
       select t.relid::oid as oid, t.isleaf as leaf from root, pg_partition_tree(root.oid) t where t.relid <> root.oid
     ), parts as ( -- where the rows are
       select c.oid, c.relname, pn.nspname, c.reltuples, c.relpages from pg_class c
       join pg_namespace pn on pn.oid = c.relnamespace
       where c.oid in (select oid from tree where leaf union all select oid from root where relkind <> 'p')
     )
     select r.oid::int8::float8 as oid, r.relkind::text as kind, r.relpersistence = 'u' as unlogged,
            (select pg_encoding_to_char(encoding)::text from pg_database where datname = current_database()) as encoding,
            (select coalesce(sum(reltuples) filter (where reltuples >= 0), -1)::float8 from parts) as rows,
            (select coalesce(sum(relpages), 0)::float8 from parts) as pages,
            (select coalesce(sum(pg_table_size(oid)), 0)::float8 from parts) as bytes,
            (select count(*)::int from pg_index x where x.indrelid = r.oid) as indexes,
            r.relreplident::text as "replicaIdentity",
            array(select a.attname::text from pg_index x
                  join pg_attribute a on a.attrelid = r.oid and a.attnum = any (x.indkey)
                  where x.indrelid = r.oid
                    and case r.relreplident when 'd' then x.indisprimary when 'i' then x.indisreplident else false end)
              as "identityColumns",
            array(select a.attname::text from pg_partitioned_table p
                  join pg_attribute a on a.attrelid = r.oid and a.attnum = any (p.partattrs) where p.partrelid = r.oid)
              as "partitionKey",
            (select pg_get_expr(p.partexprs, p.partrelid) from pg_partitioned_table p where p.partrelid = r.oid)
              as "partitionExpression",
            (select coalesce(json_agg(json_build_object('schema', nspname, 'name', relname) order by oid), '[]')
             from parts where oid <> r.oid) as partitions,
            exists (select from tree where not leaf) as "isNested",
            array(select i.inhrelid::regclass::text from pg_inherits i join pg_class h on h.oid = i.inhrelid
                  where i.inhparent = r.oid and not h.relispartition) as heirs,
            r.relrowsecurity as "rowSecurity", r.relforcerowsecurity as "rowSecurityForced"
     from root r`,
    [schema, name],
  );
  return rows[0];
}

export interface SeenColumn {
  readonly name: string;
  readonly number: number;
  /** As it is declared: numeric(12,2). */
  readonly declared: string;
  /** Of the type, or of what its domain is made of: numeric, character varying. */
  readonly type: string;
  /** b: base, c: composite, e: enum, r: range, m: multirange, of the type below any domain. */
  readonly typeKind: string;
  readonly domain: boolean;
  /** Of varchar(n) and char(n). */
  readonly lengthMax: number | null;
  readonly notNull: boolean;
  readonly hasDefault: boolean;
  /** s: stored, v: virtual, empty: neither. */
  readonly generated: string;
  readonly identity: boolean;
  /** The share of rows that are null, from statistics; null when there are none. */
  readonly nullShare: number | null;
  /** On average, from statistics. */
  readonly width: number | null;
  /** Whether statistics hold values of it. */
  readonly sampled: boolean;
}

/** All columns of a table, by name. */
export async function listColumns(db: Queryable, oid: number): Promise<Map<string, SeenColumn>> {
  const { rows } = await db.query<SeenColumn>(
    `with recursive base as (
       select a.attnum, a.atttypid as type, a.atttypmod as typmod, false as not_null
       from pg_attribute a where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped
       union all
       select b.attnum, t.typbasetype, t.typtypmod, b.not_null or t.typnotnull
       from base b join pg_type t on t.oid = b.type and t.typtype = 'd'
     )
     select a.attname::text as name, a.attnum as number, format_type(a.atttypid, a.atttypmod) as declared,
            case b.type when 'varchar'::regtype then 'character varying' when 'bpchar'::regtype then 'character'
                        else format_type(b.type, null) end as type,
            bt.typtype::text as "typeKind", b.type <> a.atttypid as domain,
            case when b.type in ('varchar'::regtype, 'bpchar'::regtype) and b.typmod > 4 then b.typmod - 4 end as "lengthMax",
            a.attnotnull or b.not_null or exists (
              select from pg_partition_tree(a.attrelid) p join pg_attribute o on o.attrelid = p.relid
              where o.attname = a.attname and o.attnotnull) as "notNull", a.atthasdef and a.attgenerated = '' as "hasDefault",
            a.attgenerated::text as generated, a.attidentity <> '' as identity,
            s.null_frac::float8 as "nullShare", s.avg_width as width,
            s.most_common_vals is not null or s.histogram_bounds is not null as sampled
     from pg_attribute a
     join base b on b.attnum = a.attnum
     join pg_type bt on bt.oid = b.type and bt.typtype <> 'd'
     join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
     left join lateral (select * from pg_stats s where s.schemaname = n.nspname and s.tablename = c.relname
                        and s.attname = a.attname order by s.inherited desc limit 1) s on true
     where a.attrelid = $1::oid`,
    [oid],
  );
  return new Map(rows.map((row) => [row.name, row]));
}

export interface SeenRole {
  readonly name: string;
  /** A superuser, or one with BYPASSRLS. */
  readonly aboveRows: boolean;
  readonly owner: boolean;
}

/** Of the role that re-encrypts, how it stands to a table; undefined when there is no such role. */
export async function findRole(db: Queryable, oid: number, role: string): Promise<SeenRole | undefined> {
  const { rows } = await db.query<SeenRole>(
    `select r.rolname::text as name, r.rolsuper or r.rolbypassrls as "aboveRows",
            pg_has_role(r.oid, c.relowner, 'usage') as owner
     from pg_roles r, pg_class c where r.rolname = $2 and c.oid = $1::oid`,
    [oid, role],
  );
  return rows[0];
}

/** A row that may not be one to seal: its key, its tenant and its value, as text. */
export interface SuspectRow {
  readonly key: readonly string[];
  readonly tenant: string | null;
  readonly value: string;
}

const suspectsMany = 500;
/** Longer texts are too long in any case. */
const charsMax = 20_000;

/**
 * Rows with a value of which SQL cannot say whether they could be sealed, in order of the key: those with text outside
 * ASCII, with control characters in the tenant, with an empty key, with anything long. They are few in most tables.
 */
export async function* listSuspects(
  db: Queryable,
  table: { readonly schema: string; readonly name: string; readonly key: readonly string[] },
  source: string,
  tenant: string | undefined,
): AsyncGenerator<SuspectRow> {
  const q = quoteIdentifier;
  const [value, owner] = [`${q(source)}::text`, tenant === undefined ? `''` : `coalesce(${q(tenant)}::text, '')`];
  const keys = table.key.map((name) => `${q(name)}::text`);
  const odd = [
    `${value} ~ '[^\\x01-\\x7f]'`,
    `length(${value}) > 512`,
    `${owner} ~ '[^\\x20-\\x7e]'`,
    `length(${owner}) > 128`,
    `concat(${keys.join(', ')}) = ''`,
    `length(concat(${keys.join(', ')})) > 80`, // an array of texts may be six times as long
  ];
  const order = table.key.map(q).join(', ');
  for (let offset: readonly string[] | undefined; ;) {
    const after = offset === undefined ? '' : `and (${order}) > (${table.key.map((_, i) => `$${i + 1}`).join(', ')})`;
    const { rows } = await db.query<(string | null)[]>({
      text: `select left(${value}, ${charsMax}), ${tenant === undefined ? 'null' : `${q(tenant)}::text`}, ${keys.join(', ')}
             from ${q(table.schema)}.${q(table.name)}
             where ${q(source)} is not null and (${odd.join(' or ')}) ${after} order by ${order} limit ${suspectsMany}`,
      values: [...(offset ?? [])],
      rowMode: 'array',
    });
    for (const [text, whose, ...key] of rows) yield { key: key as string[], tenant: whose ?? null, value: text! };
    if (rows.length < suspectsMany) return;
    offset = rows.at(-1)!.slice(2) as string[];
  }
}

export interface ExactCounts {
  readonly rows: number;
  readonly values: number;
  readonly withoutTenant: number;
  /** Of the longest value's text. */
  readonly bytesMax: number;
  readonly tooLong: number;
}

/** Reads the whole table. `tenant` is a column; absent where one tenant owns all. */
export async function countExactly(
  db: Queryable,
  table: { readonly schema: string; readonly name: string },
  source: string,
  tenant: string | undefined,
  bytesMax: number,
): Promise<ExactCounts> {
  const q = quoteIdentifier;
  const length = `octet_length(${q(source)}::text)`;
  const nobody = tenant === undefined ? 'false' : `coalesce(${q(tenant)}::text, '') = '' and ${q(source)} is not null`;
  const { rows } = await db.query<ExactCounts>(
    `select count(*)::float8 as rows, count(${q(source)})::float8 as values,
            count(*) filter (where ${nobody})::float8 as "withoutTenant",
            coalesce(max(${length}), 0)::float8 as "bytesMax",
            count(*) filter (where ${length} > $1)::float8 as "tooLong"
     from ${q(table.schema)}.${q(table.name)}`,
    [bytesMax],
  );
  return rows[0]!;
}
