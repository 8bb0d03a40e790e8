/** What is written stays: for the service by its grants, for the owner by triggers. */
import assert from 'node:assert/strict';
import type { Pool } from '../../src/db.ts';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { checkOnce, getEpoch, makeLine, openBench, openLog, type Bench } from './support.ts';

const tables = ['audit_streams', 'audit_intake', 'audit_unfolded', 'audit_entries', 'audit_items'];
const refusal = /the audit log only grows/;

async function listPartitions(bench: Bench): Promise<string[]> {
  const { rows } = await bench.owner.query<{ name: string }>(
    `select relname as name from pg_class join pg_inherits on inhrelid = oid
     where inhparent in ('fieldkeep.audit_entries'::regclass, 'fieldkeep.audit_items'::regclass) order by 1`,
  );
  return rows.map(({ name }) => name).filter((name) => !name.includes('key'));
}

function changes(table: string): string[] {
  const column = table.includes('streams') ? 'instance' : table.includes('intake') ? 'lines' : 'index';
  const name = table === 'audit_unfolded' ? 'first_index' : column;
  return [
    `update fieldkeep.${table} set ${name} = ${name}`,
    `delete from fieldkeep.${table}`,
    `truncate fieldkeep.${table} cascade`,
  ];
}

async function refuse(pool: Pool, statement: string, expected: RegExp): Promise<void> {
  await assert.rejects(pool.query(statement), (error: Error) => expected.test(error.message), statement);
}

describe('audit tables', () => {
  let bench: Bench;

  before(async () => {
    bench = await openBench();
    const log = await openLog(bench);
    await log.append([{ ...makeLine('a'), items: '{"outcome":"ok"}' }], await getEpoch(bench));
    await log.close();
    await unfoldAcknowledged(bench.pool);
  });

  after(() => bench.close());

  it('have partitions for the next entry and beyond', async () => {
    const names = await listPartitions(bench);
    assert.deepEqual(names, ['audit_entries_0', 'audit_entries_1', 'audit_items_0', 'audit_items_1']);
  });

  it('let the service add and read, and nothing else', async () => {
    for (const table of [...tables, ...(await listPartitions(bench))]) {
      for (const statement of [
        ...changes(table),
        `alter table fieldkeep.${table} disable trigger all`,
        `drop table fieldkeep.${table}`,
        `create index on fieldkeep.${table} ((1))`,
      ]) {
        await refuse(bench.pool, statement, /permission denied|must be owner/);
      }
    }
    await refuse(bench.pool, `select fieldkeep.audit_guard('fieldkeep.epoch')`, /permission denied/);
    await refuse(bench.pool, 'create table fieldkeep.audit_entries_2 (index bigint)', /permission denied/);
    await refuse(bench.pool, 'set session_replication_role = replica', /permission denied/);
  });

  it('refuse the owner, on every partition, and as a replica too', async () => {
    for (const table of [...tables, ...(await listPartitions(bench))]) {
      for (const statement of changes(table)) await refuse(bench.owner, statement, refusal);
    }
    const client = await bench.owner.connect();
    try {
      await client.query('set session_replication_role = replica'); // the tests' owner is a superuser
      for (const table of tables) {
        for (const statement of changes(table)) {
          await assert.rejects(client.query(statement), (error: Error) => refusal.test(error.message), statement);
        }
      }
    } finally {
      client.release(true);
    }
  });

  it('refuse changes by insert … on conflict and by merge', async () => {
    const values = `insert into fieldkeep.audit_entries (index, line) values (0, 'x')`;
    await refuse(bench.owner, `${values} on conflict (index) do update set line = 'x'`, refusal);
    const merge = `merge into fieldkeep.audit_entries e using (select 0::bigint as i) s on e.index = s.i`;
    await refuse(bench.owner, `${merge} when matched then delete`, refusal);
  });

  it('grow over the end of a partition, and the new one is guarded', async () => {
    // As if the first partition were nearly full.
    await bench.owner.query(
      `insert into fieldkeep.audit_unfolded (stream, seq, first_index, entries) values (1000, 1, 9999990, 7)`,
    );
    const log = await openLog(bench);
    const records = Array.from({ length: 10 }, (_, i) => makeLine(`edge-${i}`));
    await log.append(records, await getEpoch(bench));
    await log.append([makeLine('beyond')], await getEpoch(bench));
    await unfoldAcknowledged(bench.pool);
    await log.append([makeLine('further')], await getEpoch(bench));
    await unfoldAcknowledged(bench.pool);
    const { rows } = await bench.owner.query<{ index: string; part: string }>(
      `select index, tableoid::regclass::text as part from fieldkeep.audit_entries where index > 0 order by 1`,
    );
    assert.deepEqual(
      rows.map(({ index }) => Number(index)),
      Array.from({ length: 12 }, (_, i) => 9_999_997 + i),
    );
    assert.equal(rows[2]!.part, 'fieldkeep.audit_entries_0');
    assert.equal(rows[3]!.part, 'fieldkeep.audit_entries_1');
    const names = await listPartitions(bench);
    assert.ok(names.includes('audit_entries_2') && names.includes('audit_items_2'));
    for (const table of ['audit_entries_2', 'audit_items_2']) {
      for (const statement of changes(table)) await refuse(bench.owner, statement, refusal);
      await refuse(bench.pool, `select from fieldkeep.${table}`, /permission denied/);
    }
    const indexes = await bench.owner.query(`select from pg_indexes where tablename = 'audit_entries_2'`);
    assert.equal(indexes.rowCount, 5);
    await log.close();
    await assert.rejects(checkOnce(bench, [])); // the gap that this test made would be noticed
  });
});
