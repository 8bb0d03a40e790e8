-- What a failover to a standby that is behind must not hide.

-- After lost commits the epoch is raised again from an older number, and so a number is given twice. The token is new at
-- every raise: two epochs are one only when both agree.
alter table fieldkeep.epoch add column token uuid not null default gen_random_uuid();

-- The only way to raise it for a role that does not own it: always by one, always with a new token, always told.
create function fieldkeep.raise_epoch() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update fieldkeep.epoch set n = n + 1, token = gen_random_uuid();
  perform pg_notify('fieldkeep_epoch', '');
end $$;
revoke all on function fieldkeep.raise_epoch() from public;

-- The epoch, which nobody else raises before the caller's transaction ends. A row lock asks for the right to UPDATE.
create function fieldkeep.lock_epoch() returns table (n bigint, token uuid)
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select n, token from fieldkeep.epoch for no key update
$$;
revoke all on function fieldkeep.lock_epoch() from public;

-- Groups of a stream that are missing. `lost`: they were acknowledged, the database does not have them and nobody else
-- does; unfolding passes them, and passes no gap that is not written down here. `diverged`: the database has other groups
-- under these numbers, or some that their writer does not know; what it still had of its own it has stored again in a
-- new stream. `instance` is whose they were: after lost commits a stream's number may be given again.
create table fieldkeep.audit_lost (
  stream bigint not null,
  first_seq bigint not null check (first_seq >= 1),
  last_seq bigint not null check (last_seq >= first_seq),
  reason text not null check (reason in ('lost', 'diverged')),
  instance uuid not null,
  found_at timestamptz not null default clock_timestamp(),
  primary key (stream, first_seq, last_seq, reason, instance)
);
select fieldkeep.audit_guard('fieldkeep.audit_lost');
