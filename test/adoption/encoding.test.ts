/** Databases that are not UTF-8: what their owner runs has no character that they lack, and the plan says where values may be none. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { openPool } from '../../src/db.ts';
import { inspectColumn } from '../../src/adoption/inspect.ts';
import { planAdoption } from '../../src/adoption/plan.ts';
import { formatFinish, formatPreparation, formatUndo } from '../../src/adoption/sql.ts';
import { createTarget } from '../support/database.ts';
import { changePolicy } from '../rotation/support.ts';

const entry = { table: 'app.t', key: ['id'], tenant: { value: 'acme' }, column: 'pay_enc', class: 'salary' };
const policy = changePolicy({ columns: [{ ...entry, from: 'pay', adopt: true }] });
const column = policy.columns[0]!;

describe('adoption in a database of another encoding', () => {
  it('prints ASCII for names of ASCII', () => {
    const plain = { partitions: [], isNested: false };
    const target = readFileSync(new URL('../../migrations/target.sql', import.meta.url), 'utf8');
    for (const sql of [
      target,
      ...[formatPreparation, formatFinish, formatUndo].map((format) => format(column, plain)),
    ]) {
      assert.deepEqual(sql.match(/[^\n -~]/g), null);
    }
  });

  it('finds that nobody looks at the bytes', async () => {
    const target = await createTarget();
    const pool = openPool(target.ownerUrl, { max: 1, name: 'encoding' });
    try {
      await pool.query('create schema app; create table app.t (id int primary key, pay text, pay_enc text)');
      const seen = (await inspectColumn(pool, column))!;
      assert.equal(seen.table.encoding, 'UTF8');
      const find = (encoding: string) =>
        planAdoption(column, policy.classes.get('salary')!, { ...seen, table: { ...seen.table, encoding } }).filter(
          ({ level, what }) => level === 'change' && what.startsWith('The database has no encoding'),
        ).length;
      assert.deepEqual([find('SQL_ASCII'), find('UTF8'), find('LATIN1')], [1, 0, 0]);
    } finally {
      await pool.end();
      await target.drop();
    }
  });
});
