/** An envelope is bound to its row's key and tenant: the triggers let it go with them, while a source has the value, too. */
import assert from 'node:assert/strict';
import { openPool } from '../../src/db.ts';
import { findMissingTriggers, formatTriggers, type TriggerColumn } from '../../src/targets/adoption-triggers.ts';
import { createTarget } from '../support/database.ts';

const of: TriggerColumn = {
  ...{ schema: 'app', name: 'people', column: 'pay_enc', source: 'pay', indexColumns: ['pay_eq'] },
  bound: ['id', 'tenant'],
};

describe('targets/adoption-triggers, of key and tenant', () => {
  it('lets an envelope go with them, and no value be lost', async () => {
    const target = await createTarget();
    const pool = openPool(target.ownerUrl, { max: 1, name: 'rebind' });
    const seal = () =>
      pool.query(
        `begin; set local fieldkeep.reencrypting = on; update app.people set pay_enc = 'E', pay_eq = 'T'; commit`,
      );
    const save = async (set: string) => {
      await pool.query(`update app.people set ${set}`);
      const { rows } = await pool.query<{ s: unknown }>('select array[pay, pay_enc, pay_eq] as s from app.people');
      return rows[0]!.s;
    };
    try {
      await pool.query(`create schema app;
        create table app.people (id int primary key, tenant text, pay text, pay_enc text, pay_eq text)`);
      for (const statement of formatTriggers(of)) await pool.query(statement);
      assert.deepEqual(await findMissingTriggers(pool, of), []);
      await pool.query(`insert into app.people values (1, 'acme', '10')`);
      await seal();
      const old = `pay = '10', pay_enc = 'E0', pay_eq = 'T0'`; // of a whole row that was read before
      assert.deepEqual(await save(`id = 1, tenant = 'acme', ${old}`), ['10', 'E', 'T']);
      assert.deepEqual(await save(`id = 1, tenant = 'globex', ${old}`), ['10', null, null]);
      await seal();
      assert.deepEqual(await save('id = 2'), ['10', null, null]);
      await seal();
      // It has moved, sealed for where it goes; from then on nothing else has the value.
      assert.deepEqual(await save(`id = 3, pay_enc = 'E3', pay_eq = 'T3'`), [null, 'E3', 'T3']);
      assert.deepEqual(await save('id = 4'), [null, 'E3', 'T3']);
    } finally {
      await pool.end();
      await target.drop();
    }
  });
});
