-- What a target database needs before its columns are worked on; its owner runs this there, once. Nothing here touches a
-- table of the customer's. `npm start` needs nothing of it for tables in Fieldkeep's own database.
--
--     psql "$OWNER_URL" -v service=fieldkeep_worker -f migrations/target.sql
--
-- Then the service's role (the one of TARGET_<NAME>_URL) gets what re-encryption needs of each registered table, no more:
--
--     grant usage on schema app to fieldkeep_worker;
--     grant select (id, tenant, ssn, ssn_eq), update (ssn, ssn_eq) on app.people to fieldkeep_worker;
--
-- and each registered column an index, so that a rotation costs by the rows that are old and not by the table:
--
--     create index concurrently on app.people (fieldkeep.fe_version(ssn), id);

create schema if not exists fieldkeep;

-- The version of an envelope, from its text alone, so that an index can find what is old:
-- null → null · an FE1 envelope → its version · begins like an envelope of any generation but is none → -1 · anything else → 0.
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
