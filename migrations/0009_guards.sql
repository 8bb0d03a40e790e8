-- Retiring and destroying key versions: guards on the customer's columns, and destructions that were agreed to.

-- The columns whose guards the service may change: their owner lists them, nobody else. The functions below run with the
-- rights of whoever installs them, which must be the tables' owner, and touch nothing that is not listed here.
create table fieldkeep.guarded_columns (
  schema_name text not null,
  table_name text not null,
  column_name text not null,
  primary key (schema_name, table_name, column_name)
);

-- Errors unless the owner has listed the column.
create function fieldkeep.fe_guard_check(p_schema text, p_table text, p_column text)
returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from fieldkeep.guarded_columns g
             where (g.schema_name, g.table_name, g.column_name) = (p_schema, p_table, p_column)) then
    return;
  end if;
  raise exception 'column % of table %.% is not in fieldkeep.guarded_columns', p_column, p_schema, p_table
    using errcode = 'insufficient_privilege';
end $$;

-- What the guards of a column are called, before their version: 63 bytes hold a long column's name only as a hash.
create function fieldkeep.fe_guard_prefix(p_column text)
returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp
return 'fe_guard_' || case when octet_length(p_column) <= 44 then p_column else md5(p_column) end || '_';

-- Has the table refuse envelopes of versions below p_version from now on, and plaintext too unless p_plaintext. Rows that
-- are there are looked at by fe_guard_validate. Holds the table for an instant; with lock_timeout set it may fail (55P03).
create function fieldkeep.fe_guard_add(
  p_schema text, p_table text, p_column text, p_version int, p_plaintext boolean)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  guard text := fieldkeep.fe_guard_prefix(p_column) || p_version;
  plain text := lower(translate(p_column, '" ()', ''));
  standing text;
begin
  perform fieldkeep.fe_guard_check(p_schema, p_table, p_column);
  if p_version is null or p_plaintext is null or p_version not between 2 and 999999999 then
    raise exception 'a guard refuses what is older than a version from 2 on' using errcode = 'invalid_parameter_value';
  end if;
  select pg_get_constraintdef(c.oid) into standing from pg_constraint c
  where c.conrelid = format('%I.%I', p_schema, p_table)::regclass and c.conname = guard;
  -- As Postgres spells it, but for case, quotes, parentheses, spaces and the cast of a varchar.
  if translate(replace(replace(lower(standing), '::text', ''), ' not valid', ''), '" ()', '') = 'check'
     || (case when p_plaintext then format('fieldkeep.fe_version%s=0or', plain) else '' end)
     || format('fieldkeep.fe_version%s>=%s', plain, p_version) then
    return;
  end if;
  execute format('alter table %I.%I %s add constraint %I check (%s fieldkeep.fe_version(%I) >= %s) not valid',
    p_schema, p_table, case when standing is null then '' else format('drop constraint %I,', guard) end, guard,
    case when p_plaintext then format('fieldkeep.fe_version(%I) = 0 or', p_column) else '' end, p_column, p_version);
end $$;

-- Looks at every row: one of an older version makes it fail (23514). Readers and writers go on meanwhile. Then the guards
-- of older versions go; where that would have to wait too long for a lock, they stay until the next call.
create function fieldkeep.fe_guard_validate(p_schema text, p_table text, p_column text, p_version int)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  guarded regclass := format('%I.%I', p_schema, p_table)::regclass;
  prefix text := fieldkeep.fe_guard_prefix(p_column);
  lower_guard text;
begin
  perform fieldkeep.fe_guard_check(p_schema, p_table, p_column);
  if not exists (select from pg_constraint c
                 where c.conrelid = guarded and c.conname = prefix || p_version and c.convalidated) then
    execute format('alter table %I.%I validate constraint %I', p_schema, p_table, prefix || p_version);
  end if;
  for lower_guard in
    select c.conname from pg_constraint c
    where c.conrelid = guarded and c.contype = 'c' and starts_with(c.conname::text, prefix)
      and case when substr(c.conname::text, length(prefix) + 1) ~ '^[0-9]{1,9}$'
               then substr(c.conname::text, length(prefix) + 1)::int < p_version end
  loop
    begin
      execute format('alter table %I.%I drop constraint %I', p_schema, p_table, lower_guard);
    exception when lock_not_available then null;
    end;
  end loop;
end $$;

revoke all on function fieldkeep.fe_guard_add(text, text, text, int, boolean),
  fieldkeep.fe_guard_validate(text, text, text, int) from public;

insert into fieldkeep.guarded_columns values
  ('demo', 'employees', 'ssn'), ('demo', 'employees', 'bank'), ('demo', 'employees', 'salary');

-- Guards as they were seen in their databases. Whether one stands is asked there; since when it has, only we remember.
create table fieldkeep.guards (
  -- as contexts name the table: schema.table, or target:schema.table
  "table" text not null,
  "column" text not null,
  -- the lowest version that it lets in
  version int not null check (version >= 2),
  family text not null references fieldkeep.key_families,
  added_at timestamptz not null default clock_timestamp(),
  -- no row was older then; null: it keeps new ones out, and what is there has not been looked at
  validated_at timestamptz,
  definition text,
  -- it was found to be gone, and nothing that is as strict in its place
  lost_at timestamptz,
  primary key ("table", "column", version)
);

-- When somebody last looked for envelopes that came late, and what keeps guards from being made, column by column.
create table fieldkeep.watches (
  family text primary key references fieldkeep.key_families,
  looked_at timestamptz not null,
  problems json not null default '[]'
);

-- Versions that are given up for good, from the moment that it was agreed to. Where one stands is derived from these:
-- asked → checked → destroyed (the keeper of root keys has confirmed it) → certified; or refused, because what was agreed to
-- was not so any more right before the end.
create table fieldkeep.destructions (
  id uuid primary key,
  family text not null,
  version int not null,
  approval uuid not null references fieldkeep.approvals,
  -- who agreed, and to what exactly
  decisions json not null,
  details json not null,
  without_guards boolean not null,
  reason text not null,
  requested_by text not null,
  asked_at timestamptz not null default clock_timestamp(),
  -- what was found right before the end
  evidence json,
  checked_at timestamptz,
  keeper_answer json,
  carried_out_by text,
  destroyed_at timestamptz,
  -- the id of the entry that tells of it
  entry text,
  -- of the wrapped keys, outside of our own tables
  copies_removed_at timestamptz,
  certificate text,
  signature text,
  public_key text,
  signing_key_version int,
  finished_at timestamptz,
  refused text,
  refused_at timestamptz,
  -- why it did not go on when it was tried last, in a sentence
  problem text,
  retry_at timestamptz,
  -- one process at a time takes it further
  driver uuid,
  driver_until timestamptz,
  foreign key (family, version) references fieldkeep.key_versions,
  check (refused_at is null or destroyed_at is null),
  check (finished_at is null or signature is not null)
);
create unique index destructions_one_open on fieldkeep.destructions (family)
  where destroyed_at is null and refused_at is null;
create unique index destructions_one_a_version on fieldkeep.destructions (family, version) where refused_at is null;
create index destructions_unfinished on fieldkeep.destructions (asked_at)
  where finished_at is null and refused_at is null;
