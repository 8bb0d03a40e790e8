-- What the service's role may do, run after every migration; :service stands for its quoted name.

-- keys
grant usage on schema fieldkeep to :service;
grant select, update on fieldkeep.epoch to :service;
grant select, insert, update on fieldkeep.key_families to :service;
grant select, insert, update on fieldkeep.key_versions to :service;
grant select, insert, delete, update (mirrored) on fieldkeep.data_keys to :service;
grant select, insert, update on fieldkeep.mirrors to :service;
grant select, insert, update on fieldkeep.key_uses to :service;
grant select, insert, update, delete on fieldkeep.instances, fieldkeep.instance_ready to :service;
grant select, insert, delete on fieldkeep.idempotency_keys to :service;

-- audit: what is written stays
grant select, insert on fieldkeep.audit_streams, fieldkeep.audit_intake, fieldkeep.audit_unfolded,
  fieldkeep.audit_entries, fieldkeep.audit_items to :service;
grant execute on function fieldkeep.audit_make_partitions() to :service;

-- rotation
grant select, insert, update on fieldkeep.rotations, fieldkeep.rotation_columns, fieldkeep.rotation_ranges to :service;
grant select, insert, update, delete on fieldkeep.rotation_failures to :service;
grant select, insert, update on fieldkeep.rotation_rehearsals, fieldkeep.registered_tables to :service;

-- the policy in force: whoever works on runs puts it in force; everybody reads it
grant select, insert, update on fieldkeep.policies, fieldkeep.registered_columns to :service;

-- approvals: what was asked and decided stays
grant select, insert, update (used_at) on fieldkeep.approvals to :service;
grant select, insert on fieldkeep.approval_decisions to :service;

-- retiring and destroying: which columns are guarded is the owner's to say
grant select on fieldkeep.guarded_columns to :service;
grant execute on function fieldkeep.fe_guard_add(text, text, text, int, boolean),
  fieldkeep.fe_guard_validate(text, text, text, int) to :service;
grant select, insert, update on fieldkeep.guards, fieldkeep.watches to :service;
grant select, insert, update on fieldkeep.destructions to :service;

-- the demo's table: what re-encryption needs, and no more
grant usage on schema demo to :service;
grant select (id, tenant, ssn, ssn_eq, bank, salary), update (ssn, ssn_eq, bank, salary) on demo.employees to :service;

-- adoption
grant select, insert, update on fieldkeep.adoptions to :service;
grant delete on fieldkeep.rotation_ranges to :service;
