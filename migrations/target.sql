-- What every target database gets. `npm run target:setup -- NAME` prints it, with the rights, indexes and columns that the
-- registered tables there need, or applies all of that; here is only what is the same everywhere. :service stands for the
-- quoted name of the role of TARGET_<NAME>_URL. Running it again changes nothing; nothing here touches a table of the
-- customer's. Fieldkeep's own database gets the same by its migrations.

create schema if not exists fieldkeep;

-- The version of an envelope, from its text alone, so that an index can find what is old:
-- Of null: null. Of an FE1 envelope: its version. Of what begins like an envelope of any generation but is none: -1. Else: 0.
-- It runs in the customer's INSERTs, so no text may make it fail.
create or replace function fieldkeep.fe_version(v text) returns int language sql immutable parallel safe
return case
  when v is null then null
  when not starts_with(v, 'fe') then 0
  when starts_with(v, 'fe1.') and split_part(left(v, 40), '.', 4) <> ''
   and length(split_part(left(v, 40), '.', 3)) between 1 and 9
   and translate(split_part(left(v, 40), '.', 3), '0123456789', '') = ''
   and not starts_with(split_part(left(v, 40), '.', 3), '0') then split_part(left(v, 40), '.', 3)::int
  when left(v, 40) ~ '^fe[0-9]+\.' then -1
  else 0 end;

-- Called when a row was stored otherwise than sent (a trigger changed it, a type cut it): fails the whole statement.
-- Volatile: the planner would call an immutable function of a constant by itself.
create or replace function fieldkeep.fe_stored_otherwise(what text) returns int language plpgsql volatile as $$
begin
  raise exception 'table % stores something else than it was sent', what using errcode = 'triggered_data_change_violation';
end $$;

grant usage on schema fieldkeep to :service;

-- Claims a value by all of its search tokens until the transaction ends: whoever claims one of them, too, waits. All in
-- one order, so that claims of several values do not deadlock. UNIQUE.md says how writers use it.
create or replace function fieldkeep.fe_claim(tokens text[]) returns void language plpgsql volatile as $$
declare
  key bigint;
begin
  -- An older snapshot would not show what the transaction that held the claim before has written.
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'fe_claim needs read committed, this transaction is %', current_setting('transaction_isolation')
      using errcode = 'invalid_transaction_state';
  end if;
  for key in select distinct pg_catalog.hashtextextended(token, 0) from pg_catalog.unnest(tokens) token
             where token is not null order by 1 loop
    perform pg_catalog.pg_advisory_xact_lock(key);
  end loop;
end $$;

grant execute on function fieldkeep.fe_claim(text[]) to public;

grant usage on schema fieldkeep to :service;

-- The mirror: wrapped data keys of the families that have columns in this database, and the versions that they belong
-- to, so that its rows outlive the loss of Fieldkeep's own database (npm run keys -- import --mirrors). They open nothing
-- without the root keys. A key is committed here before the first value is sealed under it for this database, so a backup
-- of this database holds the keys of all its rows. Nobody changes a key; only the version's state goes forward.
create table if not exists fieldkeep.wrapped_keys (
  -- '' owns the canary of a version
  tenant text not null,
  family text not null,
  version int not null,
  wrapped text not null,
  fingerprint bytea not null check (length(fingerprint) = 16),
  -- of the version, as in fieldkeep.key_versions; keys of a destroyed one are not kept
  state text not null check (state in ('pending', 'active', 'decrypt-only', 'compromised')),
  transit_version int not null,
  bind text not null,
  normalise text,
  indexes json not null default '[]',
  created_at timestamptz not null,
  activated_at timestamptz,
  primary key (tenant, family, version)
);
create index if not exists wrapped_keys_version on fieldkeep.wrapped_keys (family, version);
grant select, insert, delete, update (state, activated_at) on fieldkeep.wrapped_keys to :service;

-- Guards.
-- When a key version is retired, each registered column gets a CHECK constraint that refuses its envelopes. The service's
-- role owns no table, so it asks these functions, which act on the columns that the owner lists:
--
--     insert into fieldkeep.guarded_columns values ('app', 'people', 'ssn') on conflict do nothing;
--
-- Run this file as the owner of the tables: the functions have the rights of whoever installs them.

-- The columns whose guards the service may change: their owner lists them, nobody else. The functions below run with the
-- rights of whoever installs them, which must be the tables' owner, and touch nothing that is not listed here.
create table if not exists fieldkeep.guarded_columns (
  schema_name text not null,
  table_name text not null,
  column_name text not null,
  primary key (schema_name, table_name, column_name)
);

-- Errors unless the owner has listed the column.
create or replace function fieldkeep.fe_guard_check(p_schema text, p_table text, p_column text)
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
create or replace function fieldkeep.fe_guard_prefix(p_column text)
returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp
return 'fe_guard_' || case when octet_length(p_column) <= 44 then p_column else md5(p_column) end || '_';

-- Has the table refuse envelopes of versions below p_version from now on, and plaintext too unless p_plaintext. Rows that
-- are there are looked at by fe_guard_validate. Holds the table for an instant; with lock_timeout set it may fail (55P03).
create or replace function fieldkeep.fe_guard_add(
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
create or replace function fieldkeep.fe_guard_validate(p_schema text, p_table text, p_column text, p_version int)
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
grant select on fieldkeep.guarded_columns to :service;
grant execute on function fieldkeep.fe_guard_add(text, text, text, int, boolean),
  fieldkeep.fe_guard_validate(text, text, text, int) to :service;
