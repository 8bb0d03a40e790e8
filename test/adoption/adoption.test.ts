/**
 * A live table of a customer's: a column of any type is adopted into another one beside it, compared, finished, and given
 * back, while the application goes on writing.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { openPool, roleOf, transaction, type Pool } from '../../src/db.ts';
import { setStarted, setUndone } from '../../src/rotation/adoption-store.ts';
import { formatTriggerDrops, formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { listWarnings, loadCatalog } from '../../src/targets/catalog.ts';
import { listFailures } from '../../src/rotation/failure-store.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { insertRun, type Run } from '../../src/rotation/store.ts';
import type { ColumnKind } from '../../src/rotation/work.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { changePolicy, drive, isSettled, openBench, openFor, rotate, type Bench } from '../rotation/support.ts';

const address = 'hr:public.people';
const of = { database: 'hr', table: 'public.people', key: ['id'], tenant: { column: 'tenant' }, adopt: true };
const index = [{ name: 'eq', column: 'ssn_eq', unique: true }];
const columns = [
  { ...of, column: 'salary_enc', class: 'salary', from: 'salary' },
  { ...of, column: 'ssn_enc', class: 'ssn', from: 'ssn', index },
];

const triggered = columns.map(({ column, from: source, ...rest }) => {
  const indexColumns = 'index' in rest ? rest.index.map((each) => each.column) : [];
  return { schema: 'public', name: 'people', column, source, indexColumns, bound: ['id', 'tenant'] };
});

interface Person {
  id: string;
  tenant: string;
  salary: string | null;
  salary_enc: string | null;
  ssn: string | null;
  ssn_enc: string | null;
  ssn_eq: string | null;
}

describe('adoption of a live table', () => {
  let target: TestDatabase;
  let owner: Pool;
  let bench: Bench;
  before(async () => {
    target = await createTarget();
    owner = openPool(target.ownerUrl, { max: 4, name: 'customer', statementTimeoutMs: 60_000 });
  });
  after(async () => {
    await owner.end();
    await target.drop();
  });

  const people = async () =>
    (await owner.query<Person>('select * from public.people order by id')).rows.map((row) => ({ ...row }));
  const value = (text: string | null, column: string, id: string) =>
    text === null ? null : openFor(bench.service, column, id, text, address);

  async function open(more: { tenants?: string[] } = {}) {
    const service = roleOf(target.workerUrl);
    await owner.query(`
      truncate fieldkeep.wrapped_keys;
      drop table if exists public.people;
      create table public.people (id bigint primary key, tenant text not null, salary numeric(12,2), salary_enc text,
        ssn varchar(11), ssn_enc text, ssn_eq text);
      insert into public.people (id, tenant, salary, ssn)
        select n, case n % 2 when 0 then 'acme' else 'globex' end, case when n % 7 > 0 then n * 1.10 end,
          case when n % 5 > 0 then lpad(n::text, 9, '0') end from generate_series(1, 500) n;
      grant select, update on public.people to ${service}`);
    for (const of of triggered) for (const statement of formatTriggers(of)) await owner.query(statement);
    const policy = changePolicy({ columns: columns.map((column) => ({ ...column, ...more })) });
    bench = await openBench({ policy, targets: new Map([['hr', target.workerUrl]]) });
  }

  /** Past the triggers, as a table restored from elsewhere might have it. */
  async function unheard(statement: string): Promise<void> {
    await transaction(owner, async (tx) => {
      await tx.query(`set local session_replication_role = 'replica'`);
      await tx.query(statement);
    });
  }
  const look = async () => {
    bench.service.catalog = await loadCatalog(bench.service.targets, bench.service.policy.columns);
  };
  async function start() {
    await transaction(bench.service.pool, async (tx) => {
      for (const { column } of columns) await setStarted(tx, address, column);
    });
    await look();
  }
  async function fill(): Promise<Run> {
    const id = await startAdoption(bench.service, true);
    assert.ok(id !== undefined, 'there is something to adopt');
    return await drive(bench.service, id, isSettled);
  }
  async function begin(kind: ColumnKind, column: string, source?: string): Promise<string> {
    const id = randomUUID();
    const family = columns.find((each) => each.column === column)!.class;
    const about = { table: address, column, ...(source !== undefined && { source }) };
    assert.ok(await insertRun(bench.service.pool, { id, kind, family, ...about, requestedBy: 'test' }));
    return id;
  }
  const work = async (kind: ColumnKind, column: string, source?: string) =>
    await drive(bench.service, await begin(kind, column, source), isSettled);

  afterEach(() => bench.close());

  it('waits until somebody begins it', async () => {
    await open();
    assert.equal(await startAdoption(bench.service, true), undefined);
    await start();
    assert.ok((await startAdoption(bench.service, true)) !== undefined);
  });

  it('does not begin, nor go on, while the triggers are missing', async () => {
    await open();
    await owner.query('alter table public.people disable trigger user');
    await start();
    assert.equal(await startAdoption(bench.service, true), undefined);
    const [warning] = listWarnings(bench.service.catalog, bench.service.policy.columns);
    assert.match(warning!, /^hr:public\.people\.salary_enc is not filled from salary: .*npm run adopt -- sql/);
    await owner.query('alter table public.people enable trigger user');
    await look();
    await fill();
  });

  it('fills both columns, finishes, and gives everything back as it was', async () => {
    await open();
    const shadow = await people();
    await start();
    const run = await fill();
    assert.equal(run.phase, 'done');
    for (const row of await people()) {
      if (row.tenant !== 'acme') continue;
      assert.equal(await value(row.salary_enc, 'salary_enc', row.id), row.salary);
      assert.equal(await value(row.ssn_enc, 'ssn_enc', row.id), row.ssn);
      assert.equal(row.ssn_eq === null, row.ssn === null);
    }
    assert.equal((await work('verification', 'salary_enc', 'salary')).failed, 0);

    await rotate(bench, 'salary');
    for (const { column, from } of columns) assert.equal((await work('finish', column, from)).phase, 'done');
    for (const row of await people()) assert.deepEqual([row.salary, row.ssn], [null, null]);

    await transaction(bench.service.pool, async (tx) => {
      for (const { column } of columns) await setUndone(tx, address, column);
    });
    for (const { column, from } of columns) assert.equal((await work('undo', column, from)).phase, 'done');
    for (const { column, from } of columns) assert.equal((await work('leave', column, from)).phase, 'done');
    assert.deepEqual(await people(), shadow);
    await look();
    assert.equal(await startAdoption(bench.service, true), undefined, 'what was undone is not adopted again');
  });

  it('takes only the tenants that are named', async () => {
    await open({ tenants: ['acme'] });
    await start();
    await fill();
    for (const row of await people()) {
      assert.equal(row.salary_enc !== null, row.tenant === 'acme' && row.salary !== null);
      assert.equal(row.ssn_enc !== null, row.tenant === 'acme' && row.ssn !== null);
    }
    await work('finish', 'salary_enc', 'salary');
    for (const row of await people())
      assert.equal(row.salary === null, row.tenant === 'acme' || Number(row.id) % 7 === 0);
  });

  it('finds an envelope that says something else than its source, and clears neither', async () => {
    await open();
    await start();
    await fill();
    await unheard('update public.people set salary = 1 where id in (2, 3)');
    const verified = await work('verification', 'salary_enc', 'salary');
    const failures = await listFailures(bench.service.pool, verified.id, 10, undefined);
    assert.deepEqual(
      failures.map(({ row, code }) => [row, code]),
      [
        ['2', 'source_differs'],
        ['3', 'source_differs'],
      ],
    );
    const finish = await work('finish', 'salary_enc', 'salary');
    assert.equal(finish.phase, 'blocked');
    const left = (await people()).filter(({ salary }) => salary !== null);
    assert.deepEqual(
      left.map(({ id }) => id),
      ['2', '3'],
    );
    // As ADOPTION.md says it is mended.
    await owner.query(`begin; set local fieldkeep.reencrypting = on;
      update public.people set salary_enc = null where id in (2, 3); commit`);
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch'`);
    assert.equal((await drive(bench.service, finish.id, (run) => run.phase === 'done')).failed, 0);
    const [, second] = await people();
    assert.deepEqual([second!.salary, await value(second!.salary_enc, 'salary_enc', '2')], [null, '1.00']);
  });

  it('finishes no row that holds plaintext beside what is no envelope', async () => {
    await open();
    await start();
    await fill();
    await unheard(`update public.people set salary_enc = '12.00' where id = 2`);
    const finish = await work('finish', 'salary_enc', 'salary');
    assert.equal(finish.phase, 'blocked');
    assert.match(finish.blocked!, /public\.people\.salary still holds 1 values/);
  });

  it('clears no envelope that is alone, and says that there are some', async () => {
    await open();
    await start();
    await fill();
    await transaction(bench.service.pool, (tx) => setUndone(tx, address, 'salary_enc'));
    await look();
    const id = await begin('leave', 'salary_enc', 'salary');
    await owner.query(`update public.people set salary_enc = 'fe1.salary.1.' || repeat('A', 99) where id = 2`);
    const leave = await drive(bench.service, id, isSettled);
    assert.equal(leave.phase, 'blocked');
    assert.match(leave.blocked!, /^1 envelopes of hr:public\.people\.salary_enc have no plaintext in salary/);
    const alone = (await people()).filter((row) => row.salary_enc !== null);
    assert.deepEqual(
      alone.map((row) => [row.id, row.salary]),
      [['2', null]],
    );
  });

  it('gives a value back only where the other column takes it as it is', async () => {
    await open();
    await start();
    await fill();
    await work('finish', 'ssn_enc', 'ssn');
    for (const statement of formatTriggerDrops(triggered[1]!)) await owner.query(statement);
    await owner.query(`update public.people set ssn_enc = null where id > 12;
                       alter table public.people alter ssn type varchar(8)`);
    const undo = await work('undo', 'ssn_enc', 'ssn');
    assert.equal(undo.phase, 'blocked');
    const failures = await listFailures(bench.service.pool, undo.id, 100, undefined);
    assert.deepEqual(new Set(failures.map(({ code }) => code)), new Set(['not_stored:22001']));
    assert.equal(failures.length, (await people()).filter(({ ssn_enc }) => ssn_enc !== null).length);
    assert.ok((await people()).every(({ ssn }) => ssn === null));
  });

  it('opens in place, too, and leaves no token behind', async () => {
    await open();
    await start();
    await fill();
    await work('finish', 'ssn_enc', 'ssn');
    for (const statement of formatTriggerDrops(triggered[1]!)) await owner.query(statement);
    await transaction(bench.service.pool, (tx) => setUndone(tx, address, 'ssn_enc'));
    assert.equal((await work('undo', 'ssn_enc')).phase, 'done');
    for (const { id, ssn_enc: text, ssn_eq: token } of await people()) {
      assert.equal(text, Number(id) % 5 === 0 ? null : id.padStart(9, '0'));
      assert.equal(token, null);
    }
  });

  it('lets every write of the application win, while it fills', async () => {
    await open();
    await start();
    const id = await startAdoption(bench.service, true);
    let writes = 0;
    const written = new Map<string, string | null>();
    const application = (async () => {
      for (; writes < 400; writes += 1) {
        const row = String(2 * (1 + Math.floor(Math.random() * 250)));
        const salary = writes % 3 === 0 ? null : `${writes}.25`;
        await owner.query('update public.people set salary = $2 where id = $1', [row, salary]);
        written.set(row, salary);
      }
    })();
    await drive(bench.service, id!, (run) => run.phase === 'done' && writes === 400, 60_000).catch(async (error) => {
      await application;
      throw error;
    });
    await application;
    const again = await startAdoption(bench.service, true);
    if (again !== undefined) await drive(bench.service, again, isSettled);
    for (const row of await people()) {
      if (written.has(row.id)) assert.equal(row.salary, written.get(row.id));
      if (row.tenant === 'acme') assert.equal(await value(row.salary_enc, 'salary_enc', row.id), row.salary);
    }
  });
});
