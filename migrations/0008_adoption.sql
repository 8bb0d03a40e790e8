-- Columns that are filled from another one, compared with it, and given back, each by a run of its own kind; and which
-- adoptions were begun and ended.

alter table fieldkeep.rotations
  drop constraint rotations_kind_check,
  drop constraint rotations_check,
  add column "table" text,
  add column "column" text,
  -- the column that holds the plaintext; null: the same one
  add column source text,
  add constraint rotations_kind_check
    check (kind in ('rotation', 'adoption', 'verification', 'finish', 'undo', 'leave')),
  add constraint rotations_about_check check (case kind
    when 'rotation' then family is not null and version is not null and "table" is null
    when 'adoption' then family is null and version is null and "table" is null
    else family is not null and version is null and "table" is not null and "column" is not null end);
create unique index rotations_one_per_column on fieldkeep.rotations ("table", "column")
  where done_at is null and "table" is not null;

-- A column with a source is adopted from the moment that somebody begins it; one that is adopted in place, at once. Both
-- until it is undone.
create table fieldkeep.adoptions (
  "table" text not null,
  "column" text not null,
  started_at timestamptz,
  -- the whole column was compared with its source, and was equal
  verified_at timestamptz,
  -- no plaintext is left in the source
  finished_at timestamptz,
  undone_at timestamptz,
  primary key ("table", "column")
);
