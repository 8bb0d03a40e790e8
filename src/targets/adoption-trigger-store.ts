/** SQL that reads which triggers a table of the customer's has, and what their functions say. */
import type { Queryable } from '../db.ts';

export interface SeenTrigger {
  readonly name: string;
  /** Fires in sessions like the application's. */
  readonly enabled: boolean;
  readonly definition: string;
}

export interface SeenRelation {
  /** A partition's triggers are copies of its parent's, and can be switched off by themselves. */
  readonly isPartition: boolean;
  readonly triggers: readonly SeenTrigger[];
}

/** Of the table and of all its partitions; empty when there is no such table. */
export async function listTableTriggers(db: Queryable, schema: string, name: string): Promise<SeenRelation[]> {
  const { rows } = await db.query<{ isPartition: boolean; triggers: SeenTrigger[] }>(
    `with root as (
       select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p')
     ), relations as (
       select oid, false as is_partition from root
       union all
       select t.relid, true from root, pg_partition_tree(root.oid) t where t.relid <> root.oid
     )
     select r.is_partition as "isPartition",
            coalesce((select json_agg(json_build_object('name', t.tgname, 'enabled', t.tgenabled in ('O', 'A'),
                                                        'definition', pg_get_triggerdef(t.oid)))
                      from pg_trigger t where t.tgrelid = r.oid and (not t.tgisinternal or t.tgparentid <> 0)), '[]') as triggers
     from relations r`,
    [schema, name],
  );
  return rows;
}

/** Tables that inherit from the table and are no partitions: no trigger of it fires for their rows. */
export async function listHeirs(db: Queryable, schema: string, name: string): Promise<string[]> {
  const { rows } = await db.query<{ heir: string }>(
    `select i.inhrelid::regclass::text as heir
     from pg_inherits i join pg_class h on h.oid = i.inhrelid and not h.relispartition
     join pg_class c on c.oid = i.inhparent join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1 and c.relname = $2 order by heir`,
    [schema, name],
  );
  return rows.map(({ heir }) => heir);
}

/** Guards of the column that let no plaintext in. */
export async function listGuards(db: Queryable, schema: string, name: string, column: string): Promise<string[]> {
  const { rows } = await db.query<{ guard: string }>(
    `select k.conname as guard
     from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1 and c.relname = $2 and k.contype = 'c'
       and starts_with(k.conname::text, fieldkeep.fe_guard_prefix($3)) and pg_get_constraintdef(k.oid) !~ ' = 0'
     order by guard`,
    [schema, name, column],
  );
  return rows.map(({ guard }) => guard);
}

/** Whether a CHECK of this name, about this column alone, keeps it null. */
export async function isKeptNull(
  db: Queryable,
  { schema, name, source }: { readonly schema: string; readonly name: string; readonly source: string },
  check: string,
): Promise<boolean> {
  const { rows } = await db.query<{ found: boolean }>(
    `select exists (
       select from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = $1 and c.relname = $2 and k.conname = $3 and k.contype = 'c'
         and pg_get_constraintdef(k.oid) in (format('CHECK ((%I IS NULL))', $4::text), format('CHECK ((%I IS NULL)) NOT VALID', $4::text))
     ) as found`,
    [schema, name, check, source],
  );
  return rows[0]!.found;
}

/** A trigger function; undefined when there is none of this name. */
export async function readFunction(
  db: Queryable,
  schema: string,
  name: string,
): Promise<{ body: string; language: string; settings: string } | undefined> {
  const { rows } = await db.query<{ body: string; language: string; settings: string }>(
    `select p.prosrc as body, l.lanname as language, coalesce(array_to_string(p.proconfig, ','), '') as settings
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
     where n.nspname = $1 and p.proname = $2 and p.pronargs = 0`,
    [schema, name],
  );
  return rows[0];
}
