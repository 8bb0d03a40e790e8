/** A table that a subscription writes to: the plan says which triggers must fire always, in a statement that works. */
import assert from 'node:assert/strict';
import { openPool } from '../../src/db.ts';
import { inspectColumn } from '../../src/adoption/inspect.ts';
import { planAdoption } from '../../src/adoption/plan.ts';
import { toTriggerColumn } from '../../src/adoption/sql.ts';
import { findMissingTriggers, formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { createTarget } from '../support/database.ts';
import { changePolicy } from '../rotation/support.ts';

describe('adoption of a table that is fed by replication', () => {
  it('has triggers that fire for what a subscription writes', async () => {
    const entry = { table: 'app.t', key: ['id'], tenant: { value: 'acme' }, column: 'pay_enc', class: 'salary' };
    const policy = changePolicy({ columns: [{ ...entry, from: 'pay', adopt: true }] });
    const column = policy.columns[0]!;
    const of = toTriggerColumn(column)!;
    const target = await createTarget();
    const pool = openPool(target.ownerUrl, { max: 1, name: 'subscription' });
    try {
      await pool.query(`
        create schema app; create table app.t (id int primary key, pay text, pay_enc text);
        create subscription fed connection 'dbname=nowhere' publication p with (connect = false, slot_name = none);
        insert into pg_subscription_rel (srsubid, srrelid, srsubstate)
          select oid, 'app.t'::regclass, 'r' from pg_subscription where subname = 'fed'`);
      const findings = planAdoption(column, policy.classes.get('salary')!, await inspectColumn(pool, column));
      await pool.query('drop subscription fed');
      const found = findings.find(({ what }) => what === 'Subscriptions write to the table: fed');
      assert.equal(found?.level, 'change');

      for (const statement of formatTriggers(of)) await pool.query(statement);
      await pool.query(found.how!.slice(found.how!.indexOf('alter table')));
      assert.deepEqual(await findMissingTriggers(pool, of), []);
      await pool.query(`
        insert into app.t (id, pay) values (1, 'a');
        set fieldkeep.reencrypting = on; update app.t set pay_enc = 'E'; reset fieldkeep.reencrypting;
        set session_replication_role = replica; update app.t set pay = 'b'; reset session_replication_role`);
      assert.deepEqual((await pool.query('select pay, pay_enc from app.t')).rows, [{ pay: 'b', pay_enc: null }]);
    } finally {
      await pool.end();
      await target.drop();
    }
  });
});
