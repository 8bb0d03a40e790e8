-- Re-encryption: runs, their key ranges and checkpoints, and what the customer's tables need.

-- The version of an envelope, from its text alone, so that an index can find what is old:
-- null → null · an FE1 envelope → its version · begins like an envelope of any generation but is none → -1 · anything else → 0.
-- It runs in the customer's INSERTs, so no text may make it fail.
create function fieldkeep.fe_version(v text) returns int language sql immutable parallel safe
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
create function fieldkeep.fe_stored_otherwise(what text) returns int language plpgsql volatile as $$
begin
  raise exception 'table % stores something else than it was sent', what using errcode = 'triggered_data_change_violation';
end $$;

-- A run brings registered columns up to date: after a rotation of one family, or by adopting plaintext.
-- Its phase is derived from these columns, never stored.
create table fieldkeep.rotations (
  id uuid primary key,
  kind text not null check (kind in ('rotation', 'adoption')),
  -- of a rotation: the family and the version that it makes
  family text references fieldkeep.key_families,
  version int,
  reason text,
  compromised boolean not null default false,
  requested_by text not null,
  created_at timestamptz not null default now(),
  -- the new version exists everywhere it must; search tokens answered from now on include it
  pending_at timestamptz,
  activated_at timestamptz,
  -- of the newest pass
  pass int not null default 0,
  planned_at timestamptz,
  blocked text,
  blocked_at timestamptz,
  done_at timestamptz,
  -- one process at a time takes a run further
  driver uuid,
  driver_until timestamptz,
  check ((kind = 'rotation') = (family is not null and version is not null))
);
create unique index rotations_one_per_family on fieldkeep.rotations (family) where done_at is null and kind = 'rotation';
create unique index rotations_one_adoption on fieldkeep.rotations (kind) where done_at is null and kind = 'adoption';
create index rotations_created on fieldkeep.rotations (created_at desc, id desc);

create table fieldkeep.rotation_columns (
  rotation uuid not null references fieldkeep.rotations,
  "table" text not null,
  "column" text not null,
  -- values to bring up to date, counted when the first pass was planned
  total bigint not null,
  done bigint not null default 0,
  primary key (rotation, "table", "column")
);

-- A stretch of a table's key, and how far it got: everything up to `cursor` in `step` (a column and a version), and all
-- steps before. Bounds are the key's columns as text; null is open.
create table fieldkeep.rotation_ranges (
  id uuid primary key,
  rotation uuid not null references fieldkeep.rotations,
  pass int not null,
  "table" text not null,
  lower text[],
  upper text[],
  step text,
  cursor text[],
  -- who works on it; a checkpoint is only written by the holder of the lease
  lease uuid,
  holder uuid,
  -- why the last attempt failed: a code, for people; it is tried again
  error text,
  finished_at timestamptz
);
create index rotation_ranges_unfinished on fieldkeep.rotation_ranges (rotation) where finished_at is null;

-- Rows that do not open, by table, column and key; never the value.
create table fieldkeep.rotation_failures (
  rotation uuid not null references fieldkeep.rotations,
  "table" text not null,
  "column" text not null,
  row text not null,
  code text not null,
  pass int not null,
  noted_at timestamptz not null default now(),
  primary key (rotation, "table", "column", row)
);
