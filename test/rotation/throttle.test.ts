/** What holds a run back: a rate over all workers, hours, a person, a replica that is behind, how many ranges at once. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { toLimits } from '../../src/policy/limits.ts';
import { BatchSize } from '../../src/rotation/pace.ts';
import { viewRun } from '../../src/rotation/progress.ts';
import { workRange } from '../../src/rotation/range.ts';
import { claimRange, listFreeRanges } from '../../src/rotation/range-store.ts';
import { advance, listWorkable } from '../../src/rotation/run.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { findRun } from '../../src/rotation/store.ts';
import { reserveRate } from '../../src/rotation/throttle-store.ts';
import { Throttle } from '../../src/rotation/throttle.ts';
import { changePolicy, drive, fill, isSettled, openBench, type Bench } from './support.ts';

describe('rotation/throttle', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
  });
  afterEach(() => bench.close());

  const countAdopted = async () => {
    const { rows } = await bench.owner.query<{ n: number }>(
      'select count(*)::int as n from demo.employees where fieldkeep.fe_version(ssn) > 0',
    );
    return rows[0]!.n;
  };

  /** An adoption of `rows` rows with its ranges planned. */
  async function plan(rows: number, rotation: object): Promise<string> {
    bench.service.policy = changePolicy({ classes: { ssn: { rotation }, bank: { rotation }, salary: { rotation } } });
    await fill(bench.owner, rows, (id) => `536-22-${id}`);
    const id = (await startAdoption(bench.service, true))!;
    await advance(bench.service, id);
    return id;
  }

  it('keeps to a rate, one for all workers together', async () => {
    const id = await plan(3_000, { rowsPerSecondMax: 1_000, concurrency: 2 });
    const ranges = await listFreeRanges(bench.service.pool);
    assert.equal(ranges.length, 2);
    const started = performance.now();
    await Promise.all(ranges.map((range) => workRange(bench.service, range, () => false)));
    const seconds = (performance.now() - started) / 1000;
    assert.ok(seconds > 2, `3,000 rows at 1,000 rows/s took ${seconds} s`);
    assert.equal(await countAdopted(), 3_000);
    await drive(bench.service, id, isSettled);
  });

  it('hands out the time of a rate once, whoever asks', async () => {
    const id = await plan(1, {});
    const waits = await Promise.all(Array.from({ length: 10 }, () => reserveRate(bench.service.pool, id, 50, 100)));
    const sorted = waits.sort((a, b) => a - b);
    for (const [i, wait] of sorted.entries()) assert.ok(Math.abs(wait - i * 500) < 450, `${i}: ${wait} ms`);
  });

  it('works in its hours only, and says which they are', async () => {
    const hour = new Date().getUTCHours();
    const clock = (plus: number) => `${String((hour + plus + 24) % 24).padStart(2, '0')}:00`;
    const id = await plan(100, { hours: { from: clock(3), to: clock(5), zone: 'UTC' } });
    assert.deepEqual(await listWorkable(bench.service), []);
    for (const range of await listFreeRanges(bench.service.pool)) await workRange(bench.service, range, () => false);
    assert.equal(await countAdopted(), 0);
    const view = await viewRun(bench.service.pool, (await findRun(bench.service.pool, id))!);
    assert.match(view.throttle!, new RegExp(`the hours from ${clock(3)} to ${clock(5)}, UTC`));
    // An emergency does not wait for the night.
    await bench.owner.query('update fieldkeep.rotations set compromised = true where id = $1', [id]);
    assert.deepEqual(await listWorkable(bench.service), [id]);
    assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
  });

  it('stops within one batch when somebody pauses or cancels, and goes on where it was', async () => {
    const id = await plan(3_000, { rowsPerSecondMax: 1_000 });
    const hold = (sql: string) => bench.owner.query(`update fieldkeep.rotations set ${sql} where id = $1`, [id]);
    const [range] = await listFreeRanges(bench.service.pool);
    const working = workRange(bench.service, range!, () => false);
    while ((await countAdopted()) === 0) await sleep(5);
    await hold('paused_at = now()');
    const atPause = await countAdopted();
    await working;
    const written = (await countAdopted()) - atPause;
    assert.ok(written <= 500, `${written} rows were written after the pause`);
    assert.equal((await findRun(bench.service.pool, id))!.phase, 'paused');
    assert.deepEqual(await listWorkable(bench.service), []);
    await hold('paused_at = null');
    assert.deepEqual(await listWorkable(bench.service), [id]);
    const again = workRange(bench.service, range!, () => false);
    while ((await countAdopted()) <= atPause + written) await sleep(5);
    await hold(`done_at = now(), cancelled = 'by operator'`);
    await again;
    assert.ok((await countAdopted()) < 2_000, 'the rest of the range stays as it is');
    assert.equal((await findRun(bench.service.pool, id))!.phase, 'cancelled');
  });

  it('goes by a new policy from the next batch on', async () => {
    await plan(3_000, { rowsPerSecondMax: 200 });
    const [range] = await listFreeRanges(bench.service.pool);
    const slowly = workRange(bench.service, range!, () => false);
    while ((await countAdopted()) === 0) await sleep(5);
    bench.service.policy = changePolicy({});
    await slowly;
    assert.ok((await countAdopted()) < 1_000, 'the range was given back');
    const started = performance.now();
    await workRange(bench.service, range!, () => false);
    assert.ok(performance.now() - started < 3_000, 'and goes on without the rate');
  });

  it('has no more ranges of a run at work than its concurrency, over all instances', async () => {
    await plan(9_000, { concurrency: 2 });
    const { pool, instanceId } = bench.service;
    const ranges = await listFreeRanges(pool);
    assert.ok(ranges.length >= 4);
    const other = randomUUID();
    await bench.owner.query('insert into fieldkeep.instances (id) values ($1)', [other]);
    const claims = await Promise.all(
      ranges.map((range, i) => claimRange(pool, range, randomUUID(), i % 2 === 0 ? instanceId : other, 2)),
    );
    assert.equal(claims.filter((claim) => claim !== undefined).length, 2);
  });

  it('rests while a replica is behind, with half the batch, and goes on when it has caught up', async () => {
    const id = await plan(1, {});
    const { pool } = bench.service;
    let lag = 100;
    // What pg_stat_replication says of a real replica is tried in replica.test.ts; here it is said by hand.
    const target = { query: () => Promise.resolve({ rows: [{ mib: lag }] }) } as never;
    const size = new BatchSize(100);
    const before = size.rows;
    const options = { pool, target, run: id, limits: toLimits(), size, isStopping: () => false };
    const throttle = new Throttle(options);
    let waits = 0;
    const admitted = throttle.admit(10, () => Promise.resolve((waits += 1)));
    await sleep(700);
    assert.match(throttle.reason!, /a replica that is 100 MiB behind/);
    lag = 1;
    assert.equal(await admitted, true);
    assert.deepEqual([waits, size.rows], [1, before / 2]);
  });

  it('gives the range back when the process stops while it waits', async () => {
    const id = await plan(1, {});
    const { pool } = bench.service;
    const target = pool;
    let stopping = false;
    const limits = toLimits({ rowsPerSecondMax: 1 });
    const throttle = new Throttle({
      pool,
      target,
      run: id,
      limits,
      size: new BatchSize(100),
      isStopping: () => stopping,
    });
    assert.equal(await throttle.admit(60, () => Promise.resolve()), true);
    const waiting = throttle.admit(1, () => Promise.resolve());
    await sleep(100);
    stopping = true;
    assert.equal(await waiting, false);
  });
});
