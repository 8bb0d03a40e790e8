-- Calls that other people have to agree to: what was asked, who decided, and that it was used. How an approval stands
-- (pending, approved, denied, expired, used) is derived from these, never stored.

create table fieldkeep.approvals (
  id uuid primary key,
  action text not null,
  -- the path of what it is done to, and what exactly; shown to those who decide
  about text not null,
  details json not null,
  reason text not null,
  -- who asked; neither decides
  agent text,
  person text,
  tenant text,
  required int not null check (required >= 1),
  -- of all of the above that the call must repeat when it runs
  request_digest text not null,
  created_at timestamptz not null default now(),
  decide_by timestamptz not null,
  used_at timestamptz,
  check (agent is not null or person is not null)
);
create index approvals_created on fieldkeep.approvals (created_at desc, id desc);
create index approvals_request_digest on fieldkeep.approvals (request_digest, created_at desc);

-- One a person, and none is ever taken back.
create table fieldkeep.approval_decisions (
  approval uuid not null references fieldkeep.approvals,
  person text not null,
  decision text not null check (decision in ('approve', 'deny')),
  reason text not null,
  decided_at timestamptz not null default clock_timestamp(),
  primary key (approval, person)
);
