-- Wrapped data keys are kept a second time in the customer's databases, whose rows need them (target.sql): there, losing
-- this database does not lose the rows. Here stands how far that has come.

alter table fieldkeep.data_keys
  -- targets whose mirror holds this key, committed: nothing is sealed for a column there before
  add column mirrored text[] not null default '{}';

-- What a worker found when it last looked at the mirror of a target.
create table fieldkeep.mirrors (
  target text primary key,
  -- keys that the target's rows may need and that its mirror does not hold yet
  behind int not null default 0,
  -- families of which the mirror knows more than this database: it is older than the mirror, and makes no keys for them
  unknown text[] not null default '{}',
  -- why the mirror cannot be brought up to date, in a sentence
  problem text,
  changed_at timestamptz not null default now()
);
