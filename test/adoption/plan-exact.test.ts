/** What a plan counts in the rows themselves: those that the job would record as failed, and why. */
import assert from 'node:assert/strict';
import { inspectColumn } from '../../src/adoption/inspect.ts';
import { planAdoption } from '../../src/adoption/plan.ts';
import { openPool } from '../../src/db.ts';
import { changePolicy } from '../rotation/support.ts';
import { createTarget } from '../support/database.ts';

const canary = 'CANARY-52';
const entry = {
  ...{ table: 'app.t', key: ['id'], tenant: { column: 'tenant' }, column: 'pay_enc', class: 'ssn', from: 'pay' },
  ...{ adopt: true, index: [{ name: 'eq', column: 'pay_eq', bits: 8 }] },
};

describe('adoption/plan, exactly', () => {
  it('counts the rows that the job would record as failed, and shows none of them', async () => {
    const target = await createTarget();
    const pool = openPool(target.ownerUrl, { max: 1, name: 'plan' });
    const stops = async (more: object, exact: boolean) => {
      const policy = changePolicy({ columns: [{ ...entry, ...more }] });
      const [column, fieldClass] = [policy.columns[0]!, policy.classes.get('ssn')!];
      const findings = planAdoption(column, fieldClass, await inspectColumn(pool, column, { exact, fieldClass }));
      assert.doesNotMatch(JSON.stringify(findings), /CANARY/);
      return findings.filter(({ level }) => level === 'stop').map(({ what }) => what);
    };
    try {
      await pool.query(`create schema app;
        create table app.t (id text primary key, tenant text, pay text, pay_enc text, pay_eq text);
        insert into app.t (id, tenant, pay) values
          ('', 'acme', '${canary}'), (repeat('é', 257), 'acme', '1'), ('a', 'b' || chr(10), '1'),
          ('b', repeat('x', 129), '1'), ('c', 'acme', '12３'), ('d', 'acme', '1½'), ('e', 'acme', repeat('1', 513)),
          ('f', 'acme', 'nö 12 – €'), ('g', 'acme', null), ('é', 'ä', '1'), ('h', 'acme', repeat('-', 600) || '1');
        insert into app.t (id, tenant, pay) select 'n' || n, 'acme', '１' from generate_series(1, 1200) n`);
      assert.deepEqual((await stops({}, true)).sort(), [
        '1 row with a value has a key of more than 512 bytes',
        '1 row with a value has an empty key',
        '1 row with a value has more than 512 bytes of what counts, and the column has a blind index',
        '1,202 rows with a value have letters or digits outside ASCII, which the class would lose when it compares',
        '2 rows with a value have a tenant that no token can carry',
      ]);
      assert.deepEqual(await stops({ tenants: ['ä'] }, true), [], 'rows of other tenants are not adopted');
      assert.deepEqual(await stops({}, false), []);
    } finally {
      await pool.end();
      await target.drop();
    }
  });
});
