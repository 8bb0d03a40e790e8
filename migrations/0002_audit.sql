-- The audit log. Writers add whole groups of entries to the intake; unfolding gives every entry its index, its place in
-- the tree. Everything here only grows: see audit_guard.

-- One start of one process. Its groups are numbered 1, 2, 3, … without gaps.
create table fieldkeep.audit_streams (
  stream bigint generated always as identity primary key,
  instance uuid not null,
  started_at timestamptz not null default clock_timestamp()
);

-- A group is one row, because a commit costs by rows and flushes. `lines`: the entries, one a line. `items`: null, or
-- for every entry a line with the items of its batch, joined by tabs (canonical JSON holds neither), empty if it is none.
-- No foreign key to audit_streams: it would lock the stream's row at every commit.
create table fieldkeep.audit_intake (
  stream bigint not null,
  seq bigint not null check (seq >= 1),
  lines text not null,
  items text,
  entries int not null check (entries >= 1),
  prev_hash bytea not null check (length(prev_hash) = 32),
  hash bytea not null check (length(hash) = 32),
  committed_at timestamptz not null default clock_timestamp(),
  primary key (stream, seq)
);

-- Which groups have become entries: written in the transaction that makes the entries, so a group is unfolded once.
create table fieldkeep.audit_unfolded (
  stream bigint not null,
  seq bigint not null,
  first_index bigint not null check (first_index >= 0),
  entries int not null check (entries >= 1),
  primary key (stream, seq),
  unique (first_index)
);

-- `line` is the entry, byte for byte what its leaf hashes; the other columns are taken from it to be searched.
-- Indexes are few, for each costs throughput: by time, by request, and by row for the question who saw a person's data.
create table fieldkeep.audit_entries (
  index bigint not null,
  line text not null,
  "time" timestamptz,
  request_id text,
  tenant text,
  agent text,
  person text,
  class text,
  view text,
  action text,
  outcome text,
  row_digest text,
  primary key (index)
) partition by range (index);
create index audit_entries_time on fieldkeep.audit_entries using brin ("time") with (autosummarize = on);
create index audit_entries_request_id on fieldkeep.audit_entries (request_id);
create index audit_entries_row_digest on fieldkeep.audit_entries (row_digest) where row_digest is not null;

-- The items of the entry that is a batch: one a line, what the entry's itemsRoot is the root of.
create table fieldkeep.audit_items (
  index bigint not null,
  items text not null,
  row_digests text[] not null,
  primary key (index)
) partition by range (index);
create index audit_items_row_digests on fieldkeep.audit_items using gin (row_digests);

create function fieldkeep.audit_refuse() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'the audit log only grows: % of % is refused', lower(tg_op), tg_table_name
    using errcode = 'restrict_violation';
end $$;

-- ENABLE ALWAYS: also under session_replication_role = replica. For each row as well where rows are, so that replicated
-- changes, which fire no statement triggers, are refused too.
create function fieldkeep.audit_guard(guarded regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('create trigger audit_refuse before update or delete or truncate on %s
    for each statement execute function fieldkeep.audit_refuse()', guarded);
  execute format('alter table %s enable always trigger audit_refuse', guarded);
  if (select relkind from pg_class where oid = guarded) = 'p' then return; end if;
  execute format('create trigger audit_refuse_row before update or delete on %s
    for each row execute function fieldkeep.audit_refuse()', guarded);
  execute format('alter table %s enable always trigger audit_refuse_row', guarded);
end $$;
revoke all on function fieldkeep.audit_guard(regclass) from public;

-- Makes the partition that the next entry goes to, and the one after it, unless they are there: as the owner, for the
-- service may not create tables. Takes no argument, so that nobody can have tables made at will. A partition is made
-- first and attached then: that blocks no reader and waits for none.
create function fieldkeep.audit_make_partitions() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  size constant bigint := 10000000;
  reached bigint := (select max(first_index + entries) from
    (select first_index, entries from fieldkeep.audit_unfolded order by first_index desc limit 1) last);
  part bigint;
  parent text;
  name text;
begin
  for part in select coalesce(reached, 0) / size + step from generate_series(0, 1) step loop
    foreach parent in array array['audit_entries', 'audit_items'] loop
      name := format('fieldkeep.%I', parent || '_' || part);
      continue when to_regclass(name) is not null;
      execute format('create table %s (like fieldkeep.%I including all)', name, parent);
      perform fieldkeep.audit_guard(name::regclass);
      execute format('alter table fieldkeep.%I attach partition %s for values from (%s) to (%s)',
        parent, name, part * size, (part + 1) * size);
    end loop;
  end loop;
end $$;
revoke all on function fieldkeep.audit_make_partitions() from public;

select fieldkeep.audit_guard(name::regclass) from unnest(array[
  'fieldkeep.audit_streams', 'fieldkeep.audit_intake', 'fieldkeep.audit_unfolded',
  'fieldkeep.audit_entries', 'fieldkeep.audit_items']) name;
select fieldkeep.audit_make_partitions();
