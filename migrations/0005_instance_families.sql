-- An instance may serve some families only: a version of another is activated without asking it. Null: all.
alter table fieldkeep.instances add column families text[];
