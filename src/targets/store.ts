/** SQL that reads what a database has of a plan's steps. It changes nothing, and any role may ask most of it. */
import type { Queryable } from '../db.ts';
import type { IndexState, PlaceName, RoleState, TableRights } from './state.ts';

/** Schemas that are neither the server's nor ours. */
const customers = `n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'fieldkeep', 'fieldkeep_jobs')`;

/** All that a role may be given on a table; MAINTAIN came with Postgres 17. */
const tableRights = `(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']
  || case when current_setting('server_version_num')::int >= 170000 then array['MAINTAIN'] else '{}'::text[] end)`;

/** Text as `name` has it, without the quotes that it gets where it needs some. */
const unquote = (text: string) => text.replaceAll('"', '');

export async function findRole(db: Queryable, name: string): Promise<RoleState> {
  const { rows } = await db.query<Pick<RoleState, 'superuser' | 'readOnly' | 'powers' | 'lacks'>>(
    `select r.rolsuper as superuser,
       array_remove(array[case when r.rolcreaterole then 'create roles' end, case when r.rolreplication then 'replicate' end]
         || array(select 'act as ' || m.rolname::text from pg_roles m where pg_has_role(r.oid, m.oid, 'member') and m.rolname in
              ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program') order by m.rolname), null) as powers,
       array_remove(array[case when not r.rolcanlogin then 'LOGIN' end, case when not has_database_privilege(r.oid,
         current_database(), 'connect') then 'CONNECT on the database' end], null) as lacks, exists (
       select from pg_db_role_setting s where s.setrole = r.oid and 'default_transaction_read_only=on' = any (s.setconfig)
         and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))) as "readOnly"
     from pg_roles r where r.rolname = $1`,
    [name],
  );
  if (rows[0] === undefined) {
    return { name, exists: false, superuser: false, powers: [], lacks: [], readOnly: false, creates: [] };
  }
  const { rows: creates } = await db.query<{ where: string }>(
    `select 'the database' as where where has_database_privilege($1, current_database(), 'create')
     union all select 'schema ' || n.nspname from pg_namespace n
     where (${customers} or n.nspname like 'fieldkeep%') and has_schema_privilege($1, n.oid, 'create') order by 1`,
    [name],
  );
  return { name, exists: true, ...rows[0], creates: creates.map((row) => row.where) };
}

/** Undefined when there is no such table; views and foreign tables are none. */
export async function findTable(
  db: Queryable,
  { schema, name }: PlaceName,
): Promise<{ oid: number; partitioned: boolean; ownerName: string } | undefined> {
  const { rows } = await db.query<{ oid: number; partitioned: boolean; ownerName: string }>(
    `select c.oid, c.relkind = 'p' as partitioned, c.relowner::regrole::text as "ownerName"
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p')`,
    [schema, name],
  );
  return rows[0];
}

/** Who guards columns here, when that role has not the rights of the table's owner, without which no constraint is made. */
export async function findPowerlessGuard(db: Queryable, table: number): Promise<string | undefined> {
  const { rows } = await db.query<{ name: string }>(
    `select p.proowner::regrole::text as name from pg_proc p join pg_namespace n on n.oid = p.pronamespace, pg_class c
     where n.nspname = 'fieldkeep' and p.proname = 'fe_guard_add' and c.oid = $1
       and not pg_has_role(p.proowner, c.relowner, 'usage')`,
    [table],
  );
  return rows[0]?.name;
}

/** Makes this session the only one that sets a database up, until it ends. */
export async function claimSetup(db: Queryable): Promise<boolean> {
  const { rows } = await db.query<{ claimed: boolean }>(
    `select pg_try_advisory_lock(hashtextextended('fieldkeep target:setup', 0)) as claimed`,
  );
  return rows[0]!.claimed;
}

/**
 * What roles may change in the schema fieldkeep that are neither the owner of the thing nor `worker`: whoever lists a column
 * there, or a key, decides what our role does.
 */
export async function listIntruders(db: Queryable, worker: string): Promise<string[]> {
  const { rows } = await db.query<{ text: string }>(
    `with things as (
       select 'schema ' || n.nspname as what, n.nspowner as owner, x.grantee, x.privilege_type as held
       from pg_namespace n, aclexplode(n.nspacl) x where n.nspname = 'fieldkeep' and x.privilege_type = 'CREATE'
       union all
       select c.relname, c.relowner, x.grantee, x.privilege_type from pg_class c, aclexplode(c.relacl) x
       where c.relnamespace = to_regnamespace('fieldkeep') and x.privilege_type <> 'SELECT'
       union all
       select c.relname, c.relowner, x.grantee, x.privilege_type
       from pg_class c join pg_attribute a on a.attrelid = c.oid, aclexplode(a.attacl) x
       where c.relnamespace = to_regnamespace('fieldkeep') and x.privilege_type <> 'SELECT'
       union all
       select p.proname, p.proowner, x.grantee, x.privilege_type from pg_proc p, aclexplode(p.proacl) x
       where p.pronamespace = to_regnamespace('fieldkeep') and p.prosecdef)
     select distinct case grantee when 0 then 'PUBLIC' else grantee::regrole::text end || ' may ' || held || ' ' || what as text
     from things where grantee <> owner and grantee is distinct from to_regrole(quote_ident($1))::oid order by 1`,
    [worker],
  );
  return rows.map(({ text }) => text);
}

/** The partitions that hold rows and can be indexed, those of partitions included. */
export async function listPartitions(db: Queryable, table: number): Promise<PlaceName[]> {
  const { rows } = await db.query<PlaceName>(
    `select n.nspname as schema, c.relname as name from pg_partition_tree($1::oid::regclass) p
     join pg_class c on c.oid = p.relid join pg_namespace n on n.oid = c.relnamespace
     where p.isleaf and c.relkind = 'r' order by 1, 2`,
    [table],
  );
  return rows;
}

/** Of the table and its partitions. */
export async function listIndexes(db: Queryable, table: number): Promise<IndexState[]> {
  const { rows } = await db.query<{ name: string; valid: boolean; parts: string[]; predicate: string | null }>(
    `select i.relname as name, x.indisvalid as valid, pg_get_expr(x.indpred, x.indrelid, true) as predicate,
            array(select pg_get_indexdef(x.indexrelid, n, true) from generate_series(1, x.indnkeyatts) n) as parts
     from pg_index x join pg_class i on i.oid = x.indexrelid
     where x.indrelid = $1 or x.indrelid in (select relid from pg_partition_tree($1::oid::regclass)) order by 1`,
    [table],
  );
  return rows.map(({ predicate, parts, ...rest }) => ({
    ...rest,
    parts: parts.map(unquote),
    ...(predicate !== null && { predicate: unquote(predicate) }),
  }));
}

/** Whether row level security would hide rows of the table from the role. */
export async function isFiltered(db: Queryable, table: number, role: string): Promise<boolean> {
  const { rows } = await db.query<{ filtered: boolean }>(
    `select c.relrowsecurity and not (r.rolsuper or r.rolbypassrls)
            and (c.relforcerowsecurity or not pg_has_role(r.oid, c.relowner, 'usage')) as filtered
     from pg_class c, pg_roles r where c.oid = $1 and r.rolname = $2`,
    [table, role],
  );
  return rows[0]?.filtered === true;
}

/** What a role that exists may do with a table, by whatever way it came to that. */
export async function findRights(db: Queryable, table: number, role: string): Promise<TableRights> {
  const { rows } = await db.query<{ owner: boolean; usage: boolean; table: string[] }>(
    `select pg_has_role($2::name, c.relowner, 'usage') as owner, has_schema_privilege($2, c.relnamespace, 'usage') as usage,
            array(select r from unnest(${tableRights}) r where has_table_privilege($2, c.oid, r)) as table
     from pg_class c where c.oid = $1`,
    [table, role],
  );
  const { rows: columns } = await db.query<{ name: string; rights: string[] }>(
    `select a.attname as name, array(select r from unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) r
                                     where has_column_privilege($2, a.attrelid, a.attnum, r)) as rights
     from pg_attribute a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum`,
    [table, role],
  );
  return { ...rows[0]!, columns: new Map(columns.map((row) => [row.name, row.rights])) };
}

/** Tables that are none of `registered` (schema.table) and that the role may do something with, and what. */
export async function listElsewhere(db: Queryable, role: string, registered: readonly string[]): Promise<string[]> {
  const { rows } = await db.query<{ name: string; rights: string[] }>(
    `select n.nspname || '.' || c.relname as name, rights from pg_class c join pg_namespace n on n.oid = c.relnamespace,
       lateral (select array(
         select r from unnest(${tableRights}) r
         where case when r in ('DELETE', 'TRUNCATE', 'TRIGGER', 'MAINTAIN') then has_table_privilege($1, c.oid, r)
                    else has_any_column_privilege($1, c.oid, r) end) as rights) held
     where c.relkind in ('r', 'p', 'v', 'm', 'f') and ${customers} and n.nspname || '.' || c.relname <> all ($2)
       and rights <> '{}' order by 1`,
    [role, registered],
  );
  return rows.map(({ name, rights }) => `it may ${rights.join(', ')} ${name}`);
}

/** What a role that reads everything cannot read, or not all of, and what it may write; of partitions their table. */
export async function listReaderGaps(
  db: Queryable,
  role: string,
): Promise<Record<'unreadable' | 'filtered' | 'writable', string[]>> {
  const { rows } = await db.query<{ name: string; unreadable: boolean; filtered: boolean; writable: boolean }>(
    `select * from (
       select n.nspname || '.' || c.relname as name,
         not (has_schema_privilege(r.oid, n.oid, 'usage') and has_table_privilege(r.oid, c.oid, 'select')) as unreadable,
         c.relrowsecurity and not (r.rolsuper or r.rolbypassrls)
           and (c.relforcerowsecurity or not pg_has_role(r.oid, c.relowner, 'usage')) as filtered,
         has_any_column_privilege(r.oid, c.oid, 'insert, update') or has_table_privilege(r.oid, c.oid, 'delete, truncate')
           as writable
       from pg_class c join pg_namespace n on n.oid = c.relnamespace, pg_roles r
       where r.rolname = $1 and c.relkind in ('r', 'p', 'm') and not c.relispartition and ${customers}) t
     where unreadable or filtered or writable order by name`,
    [role],
  );
  const pick = (what: 'unreadable' | 'filtered' | 'writable') =>
    rows.filter((row) => row[what]).map(({ name }) => name);
  return { unreadable: pick('unreadable'), filtered: pick('filtered'), writable: pick('writable') };
}

/** The columns that the service may guard, as schema.table.column; undefined when our role may not know. */
export async function listGuarded(db: Queryable): Promise<Set<string> | undefined> {
  const { rows: found } = await db.query<{ readable: boolean }>(
    `select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = 'fieldkeep' and c.relname = 'guarded_columns'`,
  );
  if (found[0] === undefined) return new Set();
  if (!found[0].readable) return undefined;
  const { rows } = await db.query<{ name: string }>(
    `select schema_name || '.' || table_name || '.' || column_name as name from fieldkeep.guarded_columns`,
  );
  return new Set(rows.map(({ name }) => name));
}

/** Whether the role exists and may use our schema. */
export async function mayUseSchema(db: Queryable, role: string): Promise<boolean> {
  const { rows } = await db.query<{ may: boolean }>(
    `select has_schema_privilege(r.oid, n.oid, 'usage') as may from pg_roles r, pg_namespace n
     where r.rolname = $1 and n.nspname = 'fieldkeep'`,
    [role],
  );
  return rows[0]?.may === true;
}

/** Out of the way for the rest of a transaction that is rolled back; nobody else sees or waits for it. */
export async function putAside(db: Queryable): Promise<void> {
  await db.query(`do $$ begin if to_regnamespace('fieldkeep') is not null then
    alter schema fieldkeep rename to fieldkeep_standing; end if; end $$`);
}

/** Of these indexes those that are invalid and that nobody is making. */
export async function listInvalid(db: Queryable, indexes: readonly PlaceName[]): Promise<PlaceName[]> {
  const { rows } = await db.query<PlaceName>(
    `select n.nspname as schema, i.relname as name from pg_index x join pg_class i on i.oid = x.indexrelid
     join pg_namespace n on n.oid = i.relnamespace join unnest($1::text[], $2::text[]) w(schema, name)
       on w.schema = n.nspname and w.name = i.relname
     where not x.indisvalid
       and not exists (select from pg_stat_progress_create_index p where p.index_relid = x.indexrelid)`,
    [indexes.map(({ schema }) => schema), indexes.map(({ name }) => name)],
  );
  return rows;
}

/**
 * Everything in the schema fieldkeep, in words that two states of it can be compared by: functions with their bodies, tables
 * with their columns, constraints, indexes and triggers, whose they are if not the schema's owner's, and what owner, `worker`
 * and PUBLIC may do.
 */
export async function describeSchema(db: Queryable, worker: string): Promise<Map<string, string>> {
  const { rows } = await db.query<{ what: string; text: string }>(
    `with ours as (select oid, nspowner, nspacl from pg_namespace where nspname = 'fieldkeep'),
     acl as (
       select 'pg_proc'::regclass as class, oid, 0 as part, proacl as acl, proowner as owner, 'f' as kind from pg_proc
       where pronamespace in (select oid from ours)
       union all select 'pg_class'::regclass, oid, 0, relacl, relowner, 'r' from pg_class
       where relnamespace in (select oid from ours)
       union all select 'pg_class'::regclass, a.attrelid, a.attnum, a.attacl, c.relowner, 'c'
       from pg_class c join pg_attribute a on a.attrelid = c.oid where c.relnamespace in (select oid from ours)
       union all select 'pg_namespace'::regclass, oid, 0, nspacl, nspowner, 'n' from ours
     ), given as (
       select class, oid, part, concat_ws(' ', case when owner <> (select nspowner from ours) then 'of ' || owner::regrole end,
         (select string_agg(concat_ws(' ', who, x.privilege_type), ', ' order by who, x.privilege_type)
          from aclexplode(coalesce(acl, acldefault(kind::"char", owner))) x, lateral (select case x.grantee when 0 then 'PUBLIC'
            when owner then 'owner' when to_regrole(quote_ident($1)) then 'worker' end as who) w where who is not null)) as text
       from acl)
     select 'schema fieldkeep' as what, g.text from ours n join given g on g.class = 'pg_namespace'::regclass and g.oid = n.oid
     union all
     select 'function fieldkeep.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
            pg_get_functiondef(p.oid) || g.text
     from pg_proc p join ours n on p.pronamespace = n.oid join given g on g.class = 'pg_proc'::regclass and g.oid = p.oid
     where p.prokind in ('f', 'p')
     union all
     select 'table fieldkeep.' || c.relname, concat_ws(E'\\n', g.text, c.relpersistence, c.relrowsecurity,
       (select string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
          pg_get_expr(d.adbin, d.adrelid), ag.text), E'\\n' order by a.attname)
        from pg_attribute a join given ag on ag.class = 'pg_class'::regclass and ag.oid = a.attrelid and ag.part = a.attnum
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
       (select string_agg(def, E'\\n' order by def) from pg_constraint k, pg_get_constraintdef(k.oid) def where k.conrelid = c.oid),
       (select string_agg(def, E'\\n' order by def) from pg_index x, pg_get_indexdef(x.indexrelid) def where x.indrelid = c.oid),
       (select string_agg(pg_get_triggerdef(t.oid) || t.tgenabled::text, E'\\n' order by t.tgname)
        from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal))
     from pg_class c join ours n on c.relnamespace = n.oid
     join given g on g.class = 'pg_class'::regclass and g.oid = c.oid and g.part = 0
     where c.relkind in ('r', 'p', 'v')`,
    [worker],
  );
  return new Map(rows.map(({ what, text }) => [what, text]));
}
