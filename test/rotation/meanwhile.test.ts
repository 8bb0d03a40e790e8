/**
 * What an application does to a table while a run is on it, between the reading of a batch and its writing above all:
 * the application always wins, nothing of it is lost, and what it leaves behind is found by the count.
 */
import assert from 'node:assert/strict';
import { connect } from '../../src/db.ts';
import { describeError } from '../../src/errors.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { viewRun } from '../../src/rotation/progress.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges, listProgress, setRangeError } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { findRun } from '../../src/rotation/store.ts';
import { adoptPolicy } from '../../src/service.ts';
import { once, withMoments } from './intercept.ts';
import {
  activate,
  adopt,
  drive,
  fill,
  isSettled,
  openBench,
  openFor,
  policyText,
  sealFor,
  type Bench,
} from './support.ts';

const valueOf = (id: number | string) => `536-22-${id}`;

interface Row {
  readonly id: string;
  readonly ssn: string | null;
  readonly ssn_eq: string | null;
}

describe('what an application does meanwhile', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
  });
  afterEach(() => bench.close());

  async function plan(id: string): Promise<string[]> {
    await advance(bench.service, id);
    return await listFreeRanges(bench.service.pool);
  }

  async function lookAgain(id: string): Promise<void> {
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = blocked_at - interval '1 min' where id = $1`, [
      id,
    ]);
  }

  async function sealed(version: number, row: number, value: string): Promise<string> {
    const key = await bench.service.keyring.getOrMake('acme', 'ssn', version);
    return sealFor(key, version, 'ssn', String(row), value);
  }

  async function listRows(): Promise<Map<number, Row>> {
    const { rows } = await bench.owner.query<Row>('select id, ssn, ssn_eq from demo.employees order by id');
    return new Map(rows.map((row) => [Number(row.id), row]));
  }

  async function checkRow(row: Row | undefined, version: number, value: string): Promise<void> {
    assert.ok(row !== undefined && row.ssn !== null);
    assert.ok(row.ssn.startsWith(`fe1.ssn.${version}.`), `row ${row.id} is of version ${version}`);
    assert.equal(await openFor(bench.service, 'ssn', row.id, row.ssn), value);
    assert.ok(row.ssn_eq?.startsWith(`b${version}.`), `the token of row ${row.id}`);
  }

  const moments = [
    ['between reading a batch and renewing it', 'afterRead'],
    ['between renewing a batch and writing it', 'beforeWrite'],
  ] as const;
  for (const [when, moment] of moments) {
    it(`every change wins: ${when}`, async () => {
      await fill(bench.owner, 12, valueOf);
      await adopt(bench.service);
      const before = await listRows();
      const id = await activate(bench);
      const theirs = await sealed(2, 5, 'theirs');
      const unaware = await sealed(1, 8, 'unaware');
      const act = once(async () => {
        const statements: [string, ...unknown[]][] = [
          ['delete from demo.employees where id = 1'],
          ['update demo.employees set id = 102 where id = 2'],
          ['update demo.employees set ssn = null, ssn_eq = null where id = 3'],
          [`update demo.employees set ssn = 'plain', ssn_eq = null where id = 4`],
          [`update demo.employees set ssn = $1, ssn_eq = 'b2.AAA' where id = 5`, theirs],
          [`update demo.employees set tenant = 'globex' where id = 6`],
          [`update demo.employees set ssn_eq = 'b1.AAA' where id = 7`],
          ['update demo.employees set ssn = $1 where id = 8', unaware],
          [`update demo.employees set name = 'else' where id = 9`],
        ];
        for (const [text, ...values] of statements) await bench.owner.query(text, values);
      });
      const run = await drive(withMoments(bench.service, { [moment]: act }), id, isSettled);
      assert.match(run.blocked ?? '', /^2 values do not open/);
      const { rows: failures } = await bench.owner.query(
        'select row, code from fieldkeep.rotation_failures order by row',
      );
      const code = 'decryption_failed';
      assert.deepEqual(failures, [
        { row: '102', code },
        { row: '6', code },
      ]);
      const rows = await listRows();
      assert.ok(!rows.has(1) && !rows.has(2));
      assert.equal(rows.get(102)!.ssn, before.get(2)!.ssn, 'a row under another name is left as it is');
      assert.deepEqual([rows.get(3)!.ssn, rows.get(3)!.ssn_eq], [null, null]);
      assert.equal(await openFor(bench.service, 'ssn', '4', rows.get(4)!.ssn!), 'plain');
      assert.equal(rows.get(5)!.ssn, theirs, 'what is new already is not touched');
      assert.equal(rows.get(6)!.ssn, before.get(6)!.ssn);
      assert.equal(await openFor(bench.service, 'ssn', '8', rows.get(8)!.ssn!), 'unaware');
      for (const row of [7, 9, 10, 11, 12]) await checkRow(rows.get(row), 2, valueOf(row));
      await bench.owner.query('update demo.employees set id = 2 where id = 102');
      await bench.owner.query(`update demo.employees set tenant = 'acme' where id = 6`);
      await lookAgain(id);
      assert.equal((await drive(bench.service, id, (each) => each.phase === 'done')).failed, 0);
      const mended = await listRows();
      for (const row of [2, 6]) await checkRow(mended.get(row), 2, valueOf(row));
    });
  }

  it('an instance that has not heard of the new version writes behind the pass: another one takes it', async () => {
    await fill(bench.owner, 50, valueOf);
    await adopt(bench.service);
    const id = await activate(bench);
    for (const range of await plan(id)) await workRange(bench.service, range, () => false);
    assert.equal((await findRun(bench.owner, id))!.phase, 'verifying');
    await bench.owner.query('update demo.employees set ssn = $1 where id = 3', [await sealed(1, 3, 'unaware')]);
    await bench.owner.query(`insert into demo.employees (id, tenant, name, ssn) values (60, 'acme', 'n', $1)`, [
      await sealed(1, 60, 'late'),
    ]);
    const run = await drive(bench.service, id, isSettled);
    assert.deepEqual([run.phase, run.pass], ['done', 2]);
    const rows = await listRows();
    for (const [row, { ssn }] of rows) {
      const want = row === 3 ? 'unaware' : row === 60 ? 'late' : valueOf(row);
      assert.match(ssn!, /^fe1\.ssn\.2\./);
      assert.equal(await openFor(bench.service, 'ssn', String(row), ssn!), want);
    }
  });

  it('rows that it holds locked are passed over, and taken once it lets go', async () => {
    await fill(bench.owner, 500, valueOf);
    await adopt(bench.service);
    const id = await activate(bench);
    const application = await connect(bench.database.ownerUrl, { name: 'application' });
    try {
      await application.query('begin');
      await application.query('select from demo.employees where id <= 200 for update');
      for (let pass = 1; pass <= 2; pass += 1) {
        const began = performance.now();
        for (const range of await plan(id)) await workRange(bench.service, range, () => false);
        const waited = performance.now() - began;
        assert.ok(waited < 3_000, `pass ${pass} waits for nobody: ${Math.round(waited)} ms`);
        const left = await bench.owner.query<{ lowest: string; highest: string; n: number }>(
          `select min(id) as lowest, max(id) as highest, count(*)::int as n from demo.employees
           where fieldkeep.fe_version(ssn) = 1`,
        );
        assert.deepEqual(left.rows, [{ lowest: '1', highest: '200', n: 200 }]);
      }
      await application.query('commit');
    } finally {
      await application.end();
    }
    assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
    const [progress] = await listProgress(bench.service.pool, id);
    assert.deepEqual([progress!.total, progress!.done, progress!.failed], [500, 500, 0]);
    for (const [row, found] of await listRows()) await checkRow(found, 2, valueOf(row));
  });

  const roleName = () => new URL(bench.database.rowsUrl).username;

  /** The run after a few rounds of the workers, who note why a range failed and try again. */
  async function tryAgain(id: string): Promise<Awaited<ReturnType<typeof viewRun>>> {
    for (let n = 0; n < 3; n += 1) {
      await advance(bench.service, id);
      for (const range of await listFreeRanges(bench.service.pool)) {
        await workRange(bench.service, range, () => false).catch(async (error: unknown) => {
          const { name, code } = describeError(error);
          await setRangeError(bench.service.pool, range, code ?? name);
        });
      }
    }
    return await viewRun(bench.service.pool, (await findRun(bench.service.pool, id))!);
  }

  for (const [what, alter, mend] of [
    ['renamed', 'rename column ssn to number', 'rename column number to ssn'],
    ['dropped', 'drop column ssn_eq', 'add column ssn_eq text'],
  ] as const) {
    async function loseColumn(): Promise<string> {
      await fill(bench.owner, 30, valueOf);
      await adopt(bench.service);
      const id = await activate(bench);
      const act = once(async () => void (await bench.owner.query(`alter table demo.employees ${alter}`)));
      const shop = withMoments(bench.service, { beforeWrite: act });
      for (const range of await plan(id))
        await assert.rejects(
          workRange(shop, range, () => false),
          { code: '42703' },
        );
      return id;
    }

    it(`a column is ${what} half-way: the run is in trouble with the table, and goes on when it is back`, async () => {
      const id = await loseColumn();
      const view = await tryAgain(id);
      assert.match(view.blocked ?? view.retrying ?? '', /demo\.employees/);
      assert.notEqual(view.phase, 'done');
      await bench.owner.query(`alter table demo.employees ${mend}`);
      await bench.owner.query(`grant select (ssn_eq), update (ssn_eq) on demo.employees to ${roleName()}`);
      await lookAgain(id);
      assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
      for (const [row, found] of await listRows()) await checkRow(found, 2, valueOf(row));
    });

    it(`a column is ${what} half-way: a sentence names it`, async () => {
      const view = await tryAgain(await loseColumn());
      assert.equal(view.phase, 'blocked');
      assert.match(view.blocked!, /demo\.employees has no column ssn/);
    });
  }

  it('a column that is registered half-way joins the run', async () => {
    await bench.owner.query('create table demo.contractors (like demo.employees including all)');
    await bench.owner.query(`grant select, update on demo.contractors to ${roleName()}`);
    await fill(bench.owner, 30, valueOf);
    await adopt(bench.service);
    // Its values are of a version that is old by then: sealed while unregistered columns were allowed.
    const key = await bench.service.keyring.getOrMake('acme', 'ssn', 1);
    const place = (row: number) => sealFor(key, 1, 'ssn', String(row), valueOf(row), 'ssn', 'demo.contractors');
    const id = await activate(bench);
    const [range] = await plan(id);
    for (let row = 1; row <= 20; row += 1) {
      await bench.owner.query(`insert into demo.contractors (id, tenant, name, ssn) values ($1, 'acme', 'n', $2)`, [
        row,
        place(row),
      ]);
    }
    const policy = JSON.parse(policyText) as { columns: object[] };
    policy.columns.push({ ...policy.columns[0], table: 'demo.contractors' });
    const act = once(() => adoptPolicy(bench.service, parsePolicy(JSON.stringify(policy))));
    await workRange(withMoments(bench.service, { beforeWrite: act }), range!, () => false);
    const run = await drive(bench.service, id, isSettled);
    assert.equal(run.phase, 'done');
    const { rows } = await bench.owner.query<Row>('select id, ssn, ssn_eq from demo.contractors order by id');
    assert.equal(rows.length, 20);
    for (const { id: row, ssn } of rows) {
      assert.match(ssn!, /^fe1\.ssn\.2\./);
      assert.equal(await openFor(bench.service, 'ssn', row, ssn!, 'demo.contractors'), valueOf(row));
    }
    for (const [row, found] of await listRows()) await checkRow(found, 2, valueOf(row));
  });
});
