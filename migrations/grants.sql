-- What each duty may do in Fieldkeep's own database, run after every migration, once for every role that has the duty; :role
-- stands for its quoted name. A role is given nothing else: what it had before is taken away first. Sections begin with
-- `-- duty:`. The table in docs/roles.md says the same, cell by cell, and a test compares both with the database.

-- duty: api
-- Faces agents. It reads key state and the log, adds to the log, and hands calls to workers.
grant usage on schema fieldkeep to :role;
grant select on fieldkeep.migrations to :role;
-- Storing entries with writes and adopting a policy take the epoch.
grant select on fieldkeep.epoch to :role;
grant execute on function fieldkeep.raise_epoch(), fieldkeep.lock_epoch() to :role;
grant select on fieldkeep.key_families, fieldkeep.key_versions, fieldkeep.data_keys to :role;
grant select on fieldkeep.mirrors, fieldkeep.registered_tables, fieldkeep.policies to :role;
grant select on fieldkeep.approvals, fieldkeep.approval_decisions, fieldkeep.approval_uses to :role;
grant select on fieldkeep.audit_streams, fieldkeep.audit_intake, fieldkeep.audit_unfolded, fieldkeep.audit_entries,
  fieldkeep.audit_items to :role;
grant insert (instance) on fieldkeep.audit_streams to :role;
grant insert (stream, seq, lines, items, entries, prev_hash, hash, uses) on fieldkeep.audit_intake to :role;
-- A writer records what a failover lost of its own stream.
grant select on fieldkeep.audit_lost to :role;
grant insert (stream, first_seq, last_seq, reason, instance) on fieldkeep.audit_lost to :role;
grant select on fieldkeep.asked_calls, fieldkeep.asked_answers to :role;
grant insert (id, call, mac) on fieldkeep.asked_calls to :role;
-- That it lives, which policy it goes by, and what it is ready for.
grant select, delete on fieldkeep.instances to :role;
grant insert (id, families, role, policy, policy_since) on fieldkeep.instances to :role;
grant update (heartbeat_at, policy, policy_since) on fieldkeep.instances to :role;
grant select, insert on fieldkeep.instance_ready to :role;

-- duty: worker
-- Faces nobody. It makes keys, turns what was asked into runs, approvals and destructions, and puts entries in order.
grant usage on schema fieldkeep to :role;
grant select on fieldkeep.migrations to :role;
-- Storing entries with writes and adopting a policy take the epoch.
grant select on fieldkeep.epoch to :role;
grant execute on function fieldkeep.raise_epoch(), fieldkeep.lock_epoch() to :role;
grant select, insert, update on fieldkeep.key_families, fieldkeep.key_versions to :role;
grant select, insert, delete, update (mirrored) on fieldkeep.data_keys to :role;
grant select, insert, update on fieldkeep.mirrors, fieldkeep.key_uses to :role;
grant select, insert, update, delete on fieldkeep.instances, fieldkeep.instance_ready to :role;
grant select, insert, delete on fieldkeep.idempotency_keys to :role;
grant select, delete on fieldkeep.asked_calls to :role;
grant select, insert, delete, update (answer, answered_at) on fieldkeep.asked_answers to :role;
-- The audit log: what is written stays.
grant select, insert on fieldkeep.audit_streams, fieldkeep.audit_intake, fieldkeep.audit_unfolded,
  fieldkeep.audit_entries, fieldkeep.audit_items, fieldkeep.audit_lost to :role;
grant select, update on fieldkeep.unfolding to :role;
grant execute on function fieldkeep.audit_make_partitions() to :role;
-- Runs.
grant select, insert, update on fieldkeep.rotations, fieldkeep.rotation_columns to :role;
grant select, insert, update, delete on fieldkeep.rotation_ranges, fieldkeep.rotation_failures to :role;
grant select, insert, update on fieldkeep.rotation_rehearsals, fieldkeep.registered_tables, fieldkeep.adoptions to :role;
-- The policy in force: whoever works on runs puts it in force.
grant select, insert, update on fieldkeep.policies, fieldkeep.registered_columns to :role;
-- Approvals: what was asked and decided stays, and an approval is used once.
grant select, insert on fieldkeep.approvals, fieldkeep.approval_decisions, fieldkeep.approval_uses to :role;
-- Retiring and destroying: which columns are guarded is the owner's to say.
grant select on fieldkeep.guarded_columns to :role;
grant execute on function fieldkeep.fe_guard_add(text, text, text, int, boolean),
  fieldkeep.fe_guard_validate(text, text, text, int) to :role;
grant select, insert, update on fieldkeep.guards, fieldkeep.watches, fieldkeep.destructions to :role;

-- duty: rows
-- Reads and writes the registered columns, and nothing else: the customer's own code runs in its sessions. The demo's table
-- here; rights on other tables are for their owner to give (npm run target:setup -- own).
grant usage on schema fieldkeep to :role;
grant usage on schema demo to :role;
grant select (id, tenant, ssn, ssn_eq, bank, salary), update (ssn, ssn_eq, bank, salary) on demo.employees to :role;
