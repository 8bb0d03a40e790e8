/** Nothing starts while a printed trigger is missing, off or other than printed: each way of that is seen and named. */
import assert from 'node:assert/strict';
import { openPool, quoteIdentifier as q, type Pool } from '../../src/db.ts';
import {
  buildTriggers,
  findMissingTriggers,
  formatTriggers,
  type TriggerColumn,
} from '../../src/targets/adoption-triggers.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';

const people: TriggerColumn = {
  ...{ schema: 'app', name: 'people', column: 'pay_enc', source: 'pay', indexColumns: ['pay_eq'], bound: [] },
};
const { functionName, triggers } = buildTriggers(people);
const names = triggers.map(({ name }) => name);
const at = `app.${q(functionName)}`;

describe('findMissingTriggers', () => {
  let target: TestDatabase;
  let pool: Pool;
  before(async () => {
    target = await createTarget();
    pool = openPool(target.ownerUrl, { max: 2, name: 'triggers' });
    await pool.query('create schema app');
  });
  after(async () => {
    await pool.end();
    await target.drop();
  });
  beforeEach(async () => {
    await pool.query(`drop table if exists app.people;
      create table app.people (id int primary key, name text, pay text, pay_enc text, pay_eq text)`);
    await install();
  });

  async function install(): Promise<void> {
    for (const statement of formatTriggers(people)) await pool.query(statement);
  }

  it('finds nothing missing, also after they were made again, by the file or as Postgres spells them', async () => {
    await install();
    assert.deepEqual(await findMissingTriggers(pool, people), []);
    const { rows } = await pool.query<{ sql: string }>(
      `select pg_get_triggerdef(oid) as sql from pg_trigger where tgrelid = 'app.people'::regclass`,
    );
    for (const name of names) await pool.query(`drop trigger ${q(name)} on app.people`);
    assert.deepEqual(await findMissingTriggers(pool, people), names);
    for (const { sql } of rows) await pool.query(sql);
    assert.deepEqual(await findMissingTriggers(pool, people), []);
    await pool.query(
      `begin; set local fieldkeep.reencrypting = on; insert into app.people values (1, 'n', '10', 'E', 'T'); commit`,
    );
    await pool.query(`update app.people set pay = '20'`);
    const { rows: left } = await pool.query('select pay, pay_enc, pay_eq from app.people');
    assert.deepEqual(left, [{ pay: '20', pay_enc: null, pay_eq: null }]);
  });

  it('finds all of them where there is no table', async () => {
    const none = await findMissingTriggers(pool, { ...people, name: 'nobody' });
    assert.equal(none.length, 5);
  });

  const drifts: [string, string, string[]][] = [
    ['one that is gone', `drop trigger ${q(names[1]!)} on app.people`, [names[1]!]],
    ['one that is switched off', `alter table app.people disable trigger ${q(names[0]!)}`, [names[0]!]],
    ['one for replicas only', `alter table app.people enable replica trigger ${q(names[2]!)}`, [names[2]!]],
    [
      'one with another condition',
      `create or replace trigger ${q(names[3]!)} before update of pay_enc on app.people for each row
       when (new.pay is not null) execute function ${at}('move')`,
      [names[3]!],
    ],
    [
      'one that fires at another time',
      triggers[2]!.sql.replace('create', 'create or replace').replace('before update on', 'before update of pay on'),
      [names[2]!],
    ],
    [
      'a function that says something else',
      `create or replace function ${at}() returns trigger language plpgsql set search_path = pg_catalog
       as 'begin return new; end'`,
      [functionName],
    ],
    ['a function with another search_path', `alter function ${at}() reset search_path`, [functionName]],
  ];
  for (const [what, sql, missing] of drifts) {
    it(`names ${what}`, async () => {
      await pool.query(sql);
      assert.deepEqual(await findMissingTriggers(pool, people), missing);
    });
  }

  it('does not mind one that fires always', async () => {
    await pool.query(`alter table app.people enable always trigger ${q(names[2]!)}`);
    assert.deepEqual(await findMissingTriggers(pool, people), []);
  });
});
