-- Key state: which versions exist, in which state, and the wrapped data keys. Nothing here opens anything without the
-- root key.

-- Raised by every change of key state or policy. An answer's audit entry commits only under the epoch that the answer
-- was computed under.
create table fieldkeep.epoch (
  one boolean primary key default true check (one),
  n bigint not null
);
insert into fieldkeep.epoch (n) values (1);

create table fieldkeep.key_families (
  family text primary key check (family ~ '^[a-z][a-z0-9]{1,15}$'),
  -- null: no schedule (the internal family `audit`)
  next_rotation_at timestamptz,
  created_at timestamptz not null default now()
);

-- States are the words of NIST SP 800-57. What a version was made for (bind, normalise, indexes) stays with it: a
-- change of policy counts from the next version.
create table fieldkeep.key_versions (
  family text not null references fieldkeep.key_families,
  version int not null check (version between 1 and 999999999),
  state text not null check (state in ('pending', 'active', 'decrypt-only', 'compromised', 'destroyed')),
  transit_version int not null check (transit_version >= 1),
  bind text not null check (bind in ('row', 'column')),
  normalise text check (normalise in ('digits', 'alnum')),
  indexes json not null default '[]',
  created_at timestamptz not null default now(),
  activated_at timestamptz,
  primary key (family, version),
  unique (family, transit_version)
);
create unique index key_versions_one_active on fieldkeep.key_versions (family) where state = 'active';
create unique index key_versions_one_pending on fieldkeep.key_versions (family) where state = 'pending';

create function fieldkeep.key_version_step() returns trigger language plpgsql as $$
begin
  if (old.state, new.state) not in (
    ('pending', 'active'), ('active', 'decrypt-only'), ('active', 'compromised'), ('decrypt-only', 'compromised'),
    ('decrypt-only', 'destroyed'), ('compromised', 'destroyed')
  ) and old.state <> new.state then
    raise exception 'a % version of family % cannot become %', old.state, old.family, new.state;
  end if;
  if (old.family, old.version, old.transit_version, old.bind) is distinct from
     (new.family, new.version, new.transit_version, new.bind) then
    raise exception 'what version % of family % is made of cannot change', old.version, old.family;
  end if;
  return new;
end $$;
create trigger key_version_step before update on fieldkeep.key_versions
  for each row execute function fieldkeep.key_version_step();

-- A name (tenant, family, version) has one key for ever: rows are inserted once and never updated. The tenant '' owns
-- the canary that an instance unwraps to show that it can use a new version.
create table fieldkeep.data_keys (
  tenant text not null,
  family text not null,
  version int not null,
  wrapped text not null,
  fingerprint bytea not null check (length(fingerprint) = 16),
  created_at timestamptz not null default now(),
  primary key (tenant, family, version),
  foreign key (family, version) references fieldkeep.key_versions
);

-- When requests (not the worker) last used a version, noted with each heartbeat.
create table fieldkeep.key_uses (
  family text not null,
  version int not null,
  last_used_at timestamptz not null,
  primary key (family, version),
  foreign key (family, version) references fieldkeep.key_versions
);

-- Processes of the service. Dead after 10 s without a heartbeat, by this database's clock.
create table fieldkeep.instances (
  id uuid primary key,
  started_at timestamptz not null default now(),
  heartbeat_at timestamptz not null default now()
);

-- An instance that has unwrapped the canary of a pending version says so here; a version activates when all have.
create table fieldkeep.instance_ready (
  instance uuid not null references fieldkeep.instances on delete cascade,
  family text not null,
  version int not null,
  primary key (instance, family, version)
);

-- Answers to calls that came with an Idempotency-Key, kept ten minutes: a lost answer is repeated, not done twice.
create table fieldkeep.idempotency_keys (
  principal text not null,
  key text not null,
  request_digest text not null,
  status int not null,
  body text not null,
  created_at timestamptz not null default now(),
  primary key (principal, key)
);
