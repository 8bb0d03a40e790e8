-- Where a value was moved to, of a reencrypt that names another place: asking for that row finds the entry too.
alter table fieldkeep.audit_entries add column to_row_digest text;
create index audit_entries_to_row_digest on fieldkeep.audit_entries (to_row_digest) where to_row_digest is not null;

-- How a version normalises: digits/fold and alnum/fold also count letters and digits outside ASCII ("nonAscii": "fold").
alter table fieldkeep.key_versions drop constraint key_versions_normalise_check;
alter table fieldkeep.key_versions add constraint key_versions_normalise_check
  check (normalise in ('digits', 'alnum', 'digits/fold', 'alnum/fold'));
