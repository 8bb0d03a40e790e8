-- Rights by duty. An api process, which faces agents, changes no key, no run and no approval: it hands calls to a worker
-- through the tables below. Who may do what: grants.sql, and the table in docs.

-- Calls that an api process hands over. Everything is covered by the MAC, which takes a data key: whoever has only a
-- database role can insert rows here, and no worker acts on them.
create table fieldkeep.asked_calls (
  id uuid primary key,
  -- JSON of what is asked, by whom, and since when
  call text not null check (octet_length(call) <= 262144),
  -- "<version of the key>.<base64url>"
  mac text not null check (octet_length(mac) <= 128),
  asked_at timestamptz not null default clock_timestamp()
);
create index asked_calls_asked on fieldkeep.asked_calls (asked_at);

-- A call is taken once, by one worker, and answered once. Only workers write here.
create table fieldkeep.asked_answers (
  id uuid primary key,
  worker uuid not null,
  taken_at timestamptz not null default clock_timestamp(),
  answer text,
  answered_at timestamptz
);
create index asked_answers_taken on fieldkeep.asked_answers (taken_at);

-- That an approval was used stands apart from what was asked and decided.
create table fieldkeep.approval_uses (
  approval uuid primary key references fieldkeep.approvals,
  used_at timestamptz not null default clock_timestamp()
);
insert into fieldkeep.approval_uses (approval, used_at) select id, used_at from fieldkeep.approvals where used_at is not null;
-- approvals.used_at stays for processes of the release before; nothing reads it any more.

-- Key versions that requests used, "ssn.1 bank.2", written with the entries that tell of them and before any answer leaves:
-- that nobody reads a version any more is taken from here, and not from what a process says of itself.
alter table fieldkeep.audit_intake add column uses text;

-- Whoever holds this row puts entries in order. A row of ours instead of an advisory lock: those anybody can take.
create table fieldkeep.unfolding (
  one boolean primary key default true check (one)
);
insert into fieldkeep.unfolding default values;
