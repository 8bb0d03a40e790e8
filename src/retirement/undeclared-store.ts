/** SQL of a role that only reads: which columns could hold an envelope, and whether they do. */
import { quoteIdentifier, type Queryable } from '../db.ts';

export interface SearchTable {
  readonly schema: string;
  readonly name: string;
  readonly partitioned: boolean;
}

export interface TextColumn extends SearchTable {
  readonly column: string;
  readonly readable: boolean;
  /** bytea: text that was stored as bytes. */
  readonly binary: boolean;
}

/**
 * Columns of a type that an envelope fits in: strings, json, xml, hstore, rows, arrays of those, bytea, and domains over
 * those. Of partitions the table that they belong to; not of views, which hold nothing, and of what is ours.
 */
export async function listTextColumns(db: Queryable): Promise<TextColumn[]> {
  const { rows } = await db.query<TextColumn>(
    `with recursive attribute as (
       select n.oid as schema_oid, n.nspname, c.oid as table_oid, c.relname, c.relkind, a.attname, a.attnum, a.atttypid
       from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
       where (c.relkind in ('r', 'p') or (c.relkind = 'm' and c.relispopulated)) and not c.relispartition
         and a.attnum > 0 and not a.attisdropped
         and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'fieldkeep', 'fieldkeep_jobs')
     ), resolved (type, base) as (
       select atttypid, atttypid from attribute
       union
       select r.type, case when t.typtype = 'd' then t.typbasetype else t.typelem end
       from resolved r join pg_type t on t.oid = r.base
       where t.typtype = 'd' or (t.typcategory = 'A' and t.typelem <> 0)
     ), textual as (
       select r.type, bool_or(t.typname = 'bytea') as bytes
       from resolved r join pg_type t on t.oid = r.base join pg_type top on top.oid = r.type
       where t.typcategory in ('S', 'C') or t.typname in ('json', 'jsonb', 'xml', 'hstore')
         or (t.typname = 'bytea' and top.typcategory <> 'A')
       group by 1
     )
     select nspname as schema, relname as name, relkind = 'p' as partitioned, attname as column,
            has_schema_privilege(schema_oid, 'usage') and has_column_privilege(table_oid, attnum, 'select') as readable,
            bytes as "binary"
     from attribute join textual on type = atttypid order by 1, 2, attnum`,
  );
  return rows;
}

/**
 * Of these columns the ones that hold an envelope of the family of at most this version, anywhere in their text. The table
 * is read once, whatever is in it. Collation "C", for a pattern has no meaning in a collation where unlike texts are equal.
 */
export async function searchColumns(
  db: Queryable,
  { schema, name, partitioned }: SearchTable,
  columns: readonly Pick<TextColumn, 'column' | 'binary'>[],
  family: string,
  upToVersion: number,
): Promise<string[]> {
  const q = quoteIdentifier;
  const holds = columns.map(({ column, binary }, i) => {
    const [text, begins] = binary
      ? [`encode(t.${q(column)}::bytea, 'escape')`, `position($1::text::bytea in t.${q(column)}::bytea) > 0`]
      : [`(t.${q(column)}::text collate "C")`, `strpos(t.${q(column)}::text collate "C", $1::text) > 0`];
    return `coalesce(bool_or(${begins} and exists (
      select from regexp_matches(${text}, $2, 'g') m where m[1]::int <= $3)), false) as "${i}"`;
  });
  const { rows } = await db.query<Record<string, boolean>>(
    `select ${holds.join(', ')} from ${partitioned ? '' : 'only '}${q(schema)}.${q(name)} t`,
    [`fe1.${family}.`, `fe1\\.${family}\\.([1-9][0-9]{0,8})\\.`, upToVersion],
  );
  return columns.filter((_, i) => rows[0]![String(i)] === true).map(({ column }) => column);
}
