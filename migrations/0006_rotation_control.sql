-- Runs that are held, given up, throttled and rehearsed; rows that are done before others or once more.

alter table fieldkeep.rotations
  -- nothing of the run goes on while this is set
  add column paused_at timestamptz,
  -- why it ended without being done; done_at then says when
  add column cancelled text,
  -- the pass whose failed rows were tried once more at its end
  add column retried_pass int not null default 0,
  -- rowsPerSecondMax, over all processes: no batch is written before this moment
  add column paced_until timestamptz,
  -- what slows it down now, in words
  add column throttle text,
  -- values per second, smoothed, and when it was last brought up to date
  add column rate double precision,
  add column rate_at timestamptz,
  -- positions in the write-ahead logs of the servers it writes to, by target, when the first pass was planned; and bytes
  -- written there until it ended (by everybody)
  add column wal_from json,
  add column wal_bytes bigint,
  -- what the last rehearsal before it predicted
  add column predicted json;

-- spent in UPDATEs: what the next rehearsal predicts from
alter table fieldkeep.rotation_columns add column update_ms double precision not null default 0;

alter table fieldkeep.rotation_ranges
  -- instead of a stretch of the key: these rows, by name
  add column rows text[],
  -- ranges of a lower rank are finished first
  add column rank int not null default 1;

alter table fieldkeep.rotation_failures
  -- given up by approval: does not keep the run from being done
  add column waived_at timestamptz,
  add column waived_by text;

-- What the newest rehearsal of a family's rotation predicted.
create table fieldkeep.rotation_rehearsals (
  family text primary key references fieldkeep.key_families,
  made_at timestamptz not null default now(),
  prediction json not null
);

-- Key types of registered tables, written by whoever sees them: a process that is not connected to a target checks the
-- spelling of rows by them.
create table fieldkeep.registered_tables (
  address text primary key,
  key_types text[] not null,
  seen_at timestamptz not null default now()
);
