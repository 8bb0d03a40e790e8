/**
 * SQL that finds who has to do with a column: what the database knows to depend on it, and what only its text tells. Names
 * and kinds, never the words of a statement, which may hold values.
 */
import type { Queryable } from '../db.ts';

/** The column in the table and in each of its partitions. */
const places = `places as (
  select a.attrelid, a.attnum from pg_attribute a
  where a.attname = $2 and not a.attisdropped
    and a.attrelid in (select $1::oid union select relid from pg_partition_tree($1::oid))
)`;

/** A pattern that finds a name as a word of its own, in text that may quote it. */
function asWord(name: string): string {
  const letter = /[\p{L}\p{N}_]/u;
  const escaped = name.replaceAll(/[^\p{L}\p{N}_]/gu, '\\$&');
  return `${letter.test(name.at(0) ?? '') ? '\\m' : ''}${escaped}${letter.test(name.at(-1) ?? '') ? '\\M' : ''}`;
}

export interface SeenConstraint {
  readonly name: string;
  /** c: check, u: unique, p: primary key, f: foreign key, x: exclusion. */
  readonly kind: string;
  /** Of a foreign key: whether the column refers (or is referred to). */
  readonly refers: boolean;
  /** The table that has the constraint, as regclass prints it. */
  readonly table: string;
  /** Of unique ones: two nulls are equal. */
  readonly nullsEqual: boolean;
}

export async function listConstraints(db: Queryable, oid: number, column: string): Promise<SeenConstraint[]> {
  const { rows } = await db.query<SeenConstraint>(
    `with ${places}
     select distinct c.conname::text as name, c.contype::text as kind,
            c.conrelid = p.attrelid and p.attnum = any (c.conkey) as refers, c.conrelid::regclass::text as "table",
            coalesce(x.indnullsnotdistinct, false) as "nullsEqual"
     from places p
     join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = p.attrelid and d.refobjsubid = p.attnum
       and d.classid = 'pg_constraint'::regclass
     join pg_constraint c on c.oid = d.objid and c.conparentid = 0 and c.contype <> 'n'
     left join pg_index x on x.indexrelid = c.conindid and c.contype = 'u'
     order by name`,
    [oid, column],
  );
  return rows;
}

export interface SeenIndex {
  readonly name: string;
  readonly method: string;
  readonly unique: boolean;
  readonly nullsEqual: boolean;
  /** Whether the column itself is one of its parts, an expression mentions it, its predicate does. */
  readonly direct: boolean;
  readonly expression: boolean;
  readonly predicate: boolean;
}

/** Indexes that mention the column and belong to no constraint; a version index is ours, and only that finds old envelopes. */
export async function listIndexes(db: Queryable, oid: number, column: string): Promise<SeenIndex[]> {
  const { rows } = await db.query<SeenIndex>(
    `with ${places}
     select distinct i.relname::text as name, m.amname::text as method, x.indisunique as unique,
            x.indnullsnotdistinct as "nullsEqual", p.attnum = any (x.indkey) as direct,
            coalesce(pg_get_expr(x.indexprs, x.indrelid) ~ $3, false) as expression,
            coalesce(pg_get_expr(x.indpred, x.indrelid) ~ $3, false) as predicate
     from places p
     join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = p.attrelid and d.refobjsubid = p.attnum
       and d.classid = 'pg_class'::regclass
     join pg_index x on x.indexrelid = d.objid
     join pg_class i on i.oid = x.indexrelid and not i.relispartition join pg_am m on m.oid = i.relam
     where coalesce(pg_get_expr(x.indexprs, x.indrelid), '') !~ '^fieldkeep\\.fe_version\\('
     order by name`,
    [oid, column, asWord(column)],
  );
  return rows;
}

export interface SeenView {
  readonly name: string;
  readonly materialized: boolean;
  /** Whether it reads the column through another view. */
  readonly indirect: boolean;
}

export async function listViews(db: Queryable, oid: number, column: string): Promise<SeenView[]> {
  const { rows } = await db.query<SeenView>(
    `with recursive ${places}, views as (
       select r.ev_class as oid, 0 as depth
       from places p
       join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = p.attrelid and d.refobjsubid = p.attnum
         and d.classid = 'pg_rewrite'::regclass
       join pg_rewrite r on r.oid = d.objid and r.rulename = '_RETURN' -- of a view, not a rule of the table
       union
       select r.ev_class, 1
       from views v
       join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = v.oid
         and d.classid = 'pg_rewrite'::regclass
       join pg_rewrite r on r.oid = d.objid and r.rulename = '_RETURN' and r.ev_class <> v.oid
     )
     select v.oid::regclass::text as name, c.relkind = 'm' as materialized, min(v.depth) > 0 as indirect
     from views v join pg_class c on c.oid = v.oid and c.relkind in ('v', 'm')
     group by v.oid, c.relkind order by name`,
    [oid, column],
  );
  return rows;
}

export interface SeenOther {
  /** rule, policy, statistics, generated column, function (of SQL, with its body parsed). */
  readonly kind: 'rule' | 'policy' | 'statistics' | 'generated' | 'function';
  readonly name: string;
  /** Of a generated column. */
  readonly notNull: boolean;
}

/** What else the database knows to depend on the column. */
export async function listOthers(db: Queryable, oid: number, column: string): Promise<SeenOther[]> {
  const { rows } = await db.query<SeenOther>(
    `with ${places}, deps as (
       select p.attrelid, d.classid, d.objid, d.objsubid from places p
       join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = p.attrelid and d.refobjsubid = p.attnum
     )
     select 'rule' as kind, r.rulename::text as name, false as "notNull" from deps d
     join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid and r.rulename <> '_RETURN'
     union
     select 'policy', o.polname::text, false from deps d
     join pg_policy o on d.classid = 'pg_policy'::regclass and o.oid = d.objid
     union
     select 'statistics', s.stxname::text, false from deps d
     join pg_statistic_ext s on d.classid = 'pg_statistic_ext'::regclass and s.oid = d.objid
     union
     select 'function', d.objid::regprocedure::text, false from deps d where d.classid = 'pg_proc'::regclass
     union
     select 'generated', a.attname::text, a.attnotnull from deps d
     join pg_attrdef f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid
     join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum and a.attgenerated <> '' and a.attrelid = $1::oid
     order by kind, name`,
    [oid, column],
  );
  return rows;
}

export interface TableTrigger {
  readonly name: string;
  readonly before: boolean;
  /** Fires for each row. */
  readonly row: boolean;
  readonly function: string;
  /** The table, or the partition of it, that has the trigger, as regclass prints it. */
  readonly table: string;
  /** Whether its function or its condition has the column's name in it. */
  readonly mentions: boolean;
  /** Whether it takes rows as a whole: to_jsonb(new), old.*, a transition table. */
  readonly wholeRows: boolean;
}

/** Triggers of the table, and of partitions their own, that fire in the application's sessions. */
export async function listTriggers(db: Queryable, oid: number, column: string): Promise<TableTrigger[]> {
  const { rows } = await db.query<TableTrigger>(
    `select t.tgname::text as name, (t.tgtype & 2) <> 0 as before, (t.tgtype & 1) <> 0 as row,
            t.tgfoid::regproc::text as function, t.tgrelid::regclass::text as "table",
            p.prosrc ~* $2 or pg_get_triggerdef(t.oid) ~* $2 as mentions,
            coalesce(t.tgoldtable, t.tgnewtable) is not null
              or regexp_replace(p.prosrc, '--[^\\n]*|\\mreturn\\s+(old|new)\\M', '', 'gi')
                   ~* '\\m(old|new)\\M\\s*(\\.\\s*\\*|[^.[:space:]])' as "wholeRows"
     from pg_trigger t join pg_proc p on p.oid = t.tgfoid
     where t.tgrelid in (select $1::oid union select relid from pg_partition_tree($1::oid)) and t.tgparentid = 0
       and not t.tgisinternal and t.tgenabled in ('O', 'A')
     order by t.tgname collate "C"`,
    [oid, asWord(column)],
  );
  return rows;
}

export interface SeenFunction {
  readonly name: string;
}

/**
 * Functions of the customer's whose text names both the table and the column, those of other tables' triggers among them.
 * Those of extensions, and of the table's own triggers, are left out.
 */
export async function listFunctions(
  db: Queryable,
  oid: number,
  table: string,
  column: string,
): Promise<SeenFunction[]> {
  const { rows } = await db.query<SeenFunction>(
    `select p.oid::regprocedure::text as name
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname not in ('pg_catalog', 'information_schema', 'fieldkeep')
       and not exists (select from pg_trigger t where t.tgfoid = p.oid
                       and t.tgrelid in (select $3::oid union select relid from pg_partition_tree($3::oid)))
       and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
       and p.prosrc ~* $1 and p.prosrc ~* $2
     order by name`,
    [asWord(table), asWord(column), oid],
  );
  return rows;
}

export interface SeenStatement {
  readonly id: string;
  readonly calls: number;
  readonly filters: boolean;
  readonly orders: boolean;
  readonly groups: boolean;
}

/** Where pg_stat_statements is; undefined when it is not there or may not be read. */
export async function findStatementsView(db: Queryable): Promise<string | undefined> {
  const { rows } = await db.query<{ place: string }>(
    `select format('%I.%I', n.nspname, c.relname) as place
     from pg_extension e join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
       and d.classid = 'pg_class'::regclass
     join pg_class c on c.oid = d.objid and c.relname = 'pg_stat_statements' and has_table_privilege(c.oid, 'select')
     join pg_namespace n on n.oid = c.relnamespace and has_schema_privilege(n.oid, 'usage')
     where e.extname = 'pg_stat_statements'`,
  );
  return rows[0]?.place;
}

/** Statements that name the table, and the column after WHERE, ORDER BY or GROUP BY; the most called first. */
export async function listStatements(
  db: Queryable,
  view: string,
  table: string,
  column: string,
  max: number,
): Promise<SeenStatement[]> {
  const { rows } = await db.query<SeenStatement>(
    `select * from (
       select s.queryid::text as id, sum(s.calls)::float8 as calls,
              bool_or(s.query ~* ('\\m(where|on|having)\\M.*' || $2)) as filters,
              bool_or(s.query ~* ('\\morder\\s+by\\M.*' || $2)) as orders,
              bool_or(s.query ~* ('\\mgroup\\s+by\\M.*' || $2)) as groups
       from ${view} s
       where s.dbid = (select oid from pg_database where datname = current_database()) and s.queryid is not null
         and s.query ~* '^\\s*(select|update|delete|insert|with|merge)\\M' and s.query ~* $1 and s.query ~* $2
       group by s.queryid
     ) s where filters or orders or groups order by calls desc, id limit $3`,
    [asWord(table), asWord(column), max],
  );
  return rows;
}

/** Roles, other than the owner, that were granted something on the column itself. */
export async function listColumnGrants(db: Queryable, oid: number, column: string): Promise<string[]> {
  const { rows } = await db.query<{ role: string }>(
    `select distinct case g.grantee when 0 then 'public' else g.grantee::regrole::text end as role
     from pg_attribute a join pg_class c on c.oid = a.attrelid, aclexplode(a.attacl) g
     where a.attrelid = $1::oid and a.attname = $2 and g.grantee <> c.relowner order by role`,
    [oid, column],
  );
  return rows.map(({ role }) => role);
}

export interface SeenPublication {
  readonly name: string;
  readonly updates: boolean;
  /** The columns that are published; null: all. */
  readonly columns: readonly string[] | null;
  readonly filtered: boolean;
  /** Whether the row filter mentions the column. */
  readonly filters: boolean;
}

export async function listPublications(db: Queryable, oid: number, column: string): Promise<SeenPublication[]> {
  const { rows } = await db.query<SeenPublication>(
    `select p.pubname::text as name, p.pubupdate as updates,
            case when r.prattrs is null then null else
              array(select a.attname::text from pg_attribute a where a.attrelid = $1::oid and a.attnum = any (r.prattrs)) end as columns,
            r.prqual is not null as filtered,
            coalesce(pg_get_expr(r.prqual, r.prrelid) ~ $2, false) as filters
     from pg_publication p
     left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = $1::oid
     left join pg_publication_namespace s on s.pnpubid = p.oid
       and s.pnnspid = (select relnamespace from pg_class where oid = $1::oid)
     where p.puballtables or r.oid is not null or s.oid is not null
     order by name`,
    [oid, asWord(column)],
  );
  return rows;
}

/** Logical replication slots of this database. */
export async function listSlots(db: Queryable): Promise<string[]> {
  const { rows } = await db.query<{ name: string }>(
    `select slot_name::text as name from pg_replication_slots where slot_type = 'logical' and database = current_database()
     order by name`,
  );
  return rows.map(({ name }) => name);
}

/** Subscriptions that write to the table or to a partition of it. */
export async function listSubscriptions(db: Queryable, oid: number): Promise<string[]> {
  const { rows } = await db.query<{ name: string }>(
    `select distinct s.subname::text as name from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
     where r.srrelid in (select $1::oid union select relid from pg_partition_tree($1::oid)) order by name`,
    [oid],
  );
  return rows.map(({ name }) => name);
}
