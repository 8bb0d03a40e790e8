-- Which policy is in force. A process that has another one plans, drives, counts and ends nothing.

-- By the version of the file (a hash). The one that is not superseded is in force.
create table fieldkeep.policies (
  version text primary key,
  in_force_at timestamptz not null default clock_timestamp(),
  superseded_at timestamptz
);
create unique index policies_one_in_force on fieldkeep.policies ((true)) where superseded_at is null;

-- Columns that a policy in force has registered, also those that a later one no longer does: values may be left there.
create table fieldkeep.registered_columns (
  address text not null,
  "column" text not null,
  class text not null,
  -- as the policy had it
  definition json not null,
  -- the policy that no longer registers it, and since when; null while it is registered
  dropped_by text,
  dropped_at timestamptz,
  primary key (address, "column", class)
);

alter table fieldkeep.instances
  add column role text,
  -- the policy that it goes by, and since when
  add column policy text,
  add column policy_since timestamptz;

-- the policy of the process that last took the run further
alter table fieldkeep.rotations add column policy text;
