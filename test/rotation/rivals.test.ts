/** Workers that meet on one range, and one that slept while others finished: every row is done once, by whoever holds it. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { workRange } from '../../src/rotation/range.ts';
import { claimRange, LeaseLost, listFreeRanges, listProgress } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { openBoss } from '../../src/jobs/queues.ts';
import { startWorkers, type Workers } from '../../src/jobs/workers.ts';
import { findRun, type Run } from '../../src/rotation/store.ts';
import { adoptPolicy, openService, type Service } from '../../src/service.ts';
import { once, withMoments } from './intercept.ts';
import {
  activate,
  adopt,
  beginRotation,
  changePolicy,
  drive,
  fill,
  isSettled,
  openBench,
  openFor,
  policyText,
  rotate,
  skipTokens,
  skipWaits,
  type Bench,
} from './support.ts';

const valueOf = (id: number) => `536-22-${id}`;

describe('rival workers', () => {
  let bench: Bench;
  let other: Service;
  beforeEach(async () => {
    bench = await openBench();
    const { service, database } = bench;
    const { rootKeys, policy, log } = service;
    other = await openService({
      databaseUrl: database.workerUrl,
      rows: new Map([[undefined, database.rowsUrl]]),
      rootKeys,
      policy,
      log,
    });
  });
  afterEach(async () => {
    await other.close();
    await bench.close();
  });

  /** From now on every UPDATE of a row is written down. */
  async function countUpdates(...tables: readonly string[]): Promise<void> {
    await bench.owner.query(`create table demo.touched (place text not null, id bigint not null)`);
    await bench.owner.query(`create function demo.touch() returns trigger language plpgsql security definer as
      $$ begin insert into demo.touched values (tg_table_name, new.id); return null; end $$`);
    for (const table of tables) {
      await bench.owner.query(
        `create trigger touch after update on ${table} for each row execute function demo.touch()`,
      );
    }
  }

  async function listUpdates(): Promise<{ rows: number; most: number }> {
    const { rows } = await bench.owner.query<{ rows: number; most: number }>(
      `select count(*)::int as rows, max(n)::int as most from (select count(*) as n from demo.touched group by place, id) each`,
    );
    return rows[0]!;
  }

  async function checkAll(version: number): Promise<void> {
    const { rows } = await bench.owner.query<{ id: string; ssn: string }>('select id, ssn from demo.employees');
    for (const { id, ssn } of rows) {
      assert.ok(ssn.startsWith(`fe1.ssn.${version}.`));
      assert.equal(await openFor(bench.service, 'ssn', id, ssn), valueOf(Number(id)));
    }
  }

  it('two that are given the same range do every row once', async () => {
    await fill(bench.owner, 4_000, valueOf);
    await adopt(bench.service);
    await countUpdates('demo.employees');
    const id = await activate(bench);
    await advance(bench.service, id);
    const [range] = await listFreeRanges(bench.service.pool);
    const both = [bench.service, other, bench.service, other];
    await Promise.all(both.map((service) => workRange(service, range!, () => false)));
    assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
    assert.deepEqual(await listUpdates(), { rows: 4_000, most: 1 });
    const [progress] = await listProgress(bench.service.pool, id);
    assert.deepEqual([progress!.total, progress!.done], [4_000, 4_000]);
    await checkAll(2);
  });

  it('two that hold the same range, each for a while, do every row once', async () => {
    await fill(bench.owner, 4_000, valueOf);
    await adopt(bench.service);
    await countUpdates('demo.employees');
    const id = await activate(bench);
    await advance(bench.service, id);
    const [range] = await listFreeRanges(bench.service.pool);
    // The first one is no living instance: before its second batch is written, the other takes its range over.
    const first = { ...bench.service, instanceId: randomUUID() };
    let writes = 0;
    let theirs: Promise<void> | undefined;
    const beforeWrite = async () => {
      writes += 1;
      if (writes === 2) theirs = workRange(other, range!, () => false);
      if (writes === 2) await new Promise((resolve) => setTimeout(resolve, 20));
    };
    await assert.rejects(
      workRange(withMoments(first, { beforeWrite }), range!, () => false),
      LeaseLost,
    );
    await theirs;
    assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
    assert.deepEqual(await listUpdates(), { rows: 4_000, most: 1 });
    const [progress] = await listProgress(bench.service.pool, id);
    assert.ok(progress!.done <= 4_000);
    await checkAll(2);
  });

  it('two services with workers share the ranges of a run, and do every row once', async () => {
    const tables = ['demo.employees', 'demo.a', 'demo.b', 'demo.c', 'demo.d'];
    const { columns } = JSON.parse(policyText) as { columns: object[] };
    const more = tables.slice(1).map((table) => ({ ...columns[0], table }));
    const classes = { ssn: { rotation: { concurrency: 4 } } };
    const policy = changePolicy({ columns: [...columns, ...more], classes });
    for (const table of tables.slice(1)) {
      await bench.owner.query(`create table ${table} (like demo.employees including all)`);
      await bench.owner.query(`grant select, update on ${table} to ${new URL(bench.database.rowsUrl).username}`);
    }
    for (const service of [bench.service, other]) await adoptPolicy(service, policy);
    await fill(bench.owner, 1_500, valueOf);
    for (const table of tables.slice(1)) await bench.owner.query(`insert into ${table} select * from demo.employees`);
    await adopt(bench.service);
    await countUpdates(...tables);
    const holders = new Set<string>();
    const errors: unknown[] = [];
    const workers: Workers[] = [];
    for (const service of [bench.service, other]) {
      const shop = withMoments(service, {
        beforeWrite: () => Promise.resolve(void holders.add(service.instanceId)),
      });
      const boss = await openBoss(bench.database.workerUrl, (error) => errors.push(error));
      workers.push(
        await startWorkers(
          boss,
          () => shop,
          (error) => errors.push(error),
        ),
      );
    }
    try {
      const id = await beginRotation(bench.service);
      const until = async (what: (run: Run) => boolean) => {
        for (let run = await findRun(bench.owner, id); !what(run!); run = await findRun(bench.owner, id)) {
          if (run!.phase === 'pending') await skipTokens(bench.owner, id);
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
      };
      await until((run) => run.activatedAt !== undefined);
      await skipWaits(bench.owner, id);
      await until((run) => run.phase === 'done');
      const progress = await listProgress(bench.owner, id);
      assert.deepEqual(
        progress.map(({ total, done }) => [total, done]),
        tables.map(() => [1_500, 1_500]),
      );
      assert.deepEqual(await listUpdates(), { rows: tables.length * 1_500, most: 1 });
      await checkAll(2);
      assert.deepEqual(errors, []);
      console.log(`      ${holders.size} of 2 services wrote`);
    } finally {
      await Promise.all(workers.map((each) => each.stop()));
    }
  }).timeout(60_000);

  it('one that slept before its UPDATE, while others finished and rotated again, changes nothing and writes no checkpoint', async () => {
    await fill(bench.owner, 2_500, valueOf);
    await adopt(bench.service);
    const id = await activate(bench);
    await advance(bench.service, id);
    const [range] = await listFreeRanges(bench.service.pool);
    const sleeper = { ...bench.service, instanceId: randomUUID() };
    const read = () =>
      bench.owner.query('select id, tenant, name, ssn, ssn_eq, xmin::text from demo.employees order by id');
    const readRun = () =>
      bench.owner.query(`select to_jsonb(g) as kept from fieldkeep.rotation_ranges g
        union all select to_jsonb(c) from fieldkeep.rotation_columns c
        union all select to_jsonb(f) from fieldkeep.rotation_failures f order by 1`);
    let [rows, run]: unknown[] = [];
    const sleep = once(async () => {
      assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
      const again = await rotate(bench);
      assert.deepEqual([again.phase, again.version], ['done', 3]);
      [rows, run] = [(await read()).rows, (await readRun()).rows];
    });
    await assert.rejects(
      workRange(withMoments(sleeper, { beforeWrite: sleep }), range!, () => false),
      LeaseLost,
    );
    assert.deepEqual((await read()).rows, rows);
    assert.deepEqual((await readRun()).rows, run);
    assert.equal(await claimRange(bench.service.pool, range!, randomUUID(), other.instanceId), undefined);
    await checkAll(3);
  });
});
