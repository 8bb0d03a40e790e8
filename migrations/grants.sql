-- What the service's role may do, run after every migration; :service stands for its quoted name.

-- keys
grant usage on schema fieldkeep to :service;
grant select, update on fieldkeep.epoch to :service;
grant select, insert, update on fieldkeep.key_families to :service;
grant select, insert, update on fieldkeep.key_versions to :service;
grant select, insert, delete on fieldkeep.data_keys to :service;
grant select, insert, update on fieldkeep.key_uses to :service;
grant select, insert, update, delete on fieldkeep.instances, fieldkeep.instance_ready to :service;
grant select, insert, delete on fieldkeep.idempotency_keys to :service;
