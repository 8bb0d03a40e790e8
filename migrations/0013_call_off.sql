-- A destruction that was agreed to and is not done is called off: by whom and why, in a sentence. Whoever goes on with it
-- refuses it then, unless the keeper of root keys has done it before.
alter table fieldkeep.destructions add column called_off text;
