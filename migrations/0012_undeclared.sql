-- What the last search for envelopes in columns that nobody registered has found, and up to which version it looked.
alter table fieldkeep.watches
  add column searched_at timestamptz,
  add column searched_up_to int,
  add column undeclared json;
