import assert from 'node:assert/strict';
import { randomInt, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { PgBoss } from 'pg-boss';
import type { Pool } from '../../src/db.ts';
import type { FieldkeepError } from '../../src/errors.ts';
import { openBoss } from '../../src/jobs/queues.ts';
import { startWorkers, type Workers } from '../../src/jobs/workers.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { advance } from '../../src/rotation/run.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { claimRange, listFreeRanges } from '../../src/rotation/range-store.ts';
import { findRun, type Run } from '../../src/rotation/store.ts';
import {
  adopt,
  beginRotation,
  drive,
  fill,
  openBench,
  openFor,
  skipTokens,
  skipWaits,
  type Bench,
} from '../rotation/support.ts';

describe('the workers', () => {
  let bench: Bench;
  let boss: PgBoss;
  let workers: Workers | undefined;
  let errors: unknown[];
  beforeEach(async () => {
    bench = await openBench();
    errors = [];
    boss = await openBoss(bench.database.workerUrl, (error) => errors.push(error));
  });
  afterEach(async () => {
    await workers?.stop();
    workers = undefined;
    await bench.close();
  });

  async function start(): Promise<void> {
    workers = await startWorkers(
      boss,
      () => bench.service,
      (error) => errors.push(error),
    );
  }

  async function waitFor(id: string, until: (run: Run) => boolean, maxMs = 20_000): Promise<Run> {
    const deadline = performance.now() + maxMs;
    for (;;) {
      const run = (await findRun(bench.service.pool, id))!;
      if (until(run)) return run;
      if (run.phase === 'pending') await skipTokens(bench.owner, id);
      assert.ok(performance.now() < deadline, `the run is still ${run.phase}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** As waitFor, with the owner's connections, which nobody cuts. */
  async function waitForCalm(id: string, until: (run: Run) => boolean): Promise<void> {
    const deadline = performance.now() + 90_000;
    while (!until((await findRun(bench.owner, id))!)) {
      assert.ok(performance.now() < deadline, 'it comes to its end');
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  it('adopt and rotate by themselves', async () => {
    await fill(bench.owner, 2000, (id) => `536-22-${id}`);
    await start();
    const id = await beginRotation(bench.service);
    workers!.wake();
    await waitFor(id, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, id);
    await waitFor(id, (run) => run.phase === 'done');
    const { rows } = await bench.owner.query('select distinct fieldkeep.fe_version(ssn) as v from demo.employees');
    assert.deepEqual(rows, [{ v: 2 }]);
  }).timeout(60_000);

  it('end a search that takes its time before they are stopped', async () => {
    await bench.owner.query(
      `insert into fieldkeep.key_versions (family, version, state, transit_version, bind, indexes)
       values ('ssn', 7, 'decrypt-only', 7, 'row', '[]')`,
    );
    await bench.service.keyring.refresh();
    const ending = new AbortController();
    let [begun, over] = [false, false];
    const query = () => {
      begun = true;
      const cancelled = new Error('canceling statement due to user request');
      return new Promise((_, reject) => {
        ending.signal.addEventListener('abort', () => setTimeout(() => reject(cancelled), 200));
      }).finally(() => (over = true));
    };
    const find = () => ({ query }) as unknown as Pool;
    const readers = { find, ending: ending.signal, end: () => ending.abort(), close: () => Promise.resolve() };
    workers = await startWorkers(
      boss,
      () => ({ ...bench.service, readers }),
      (error) => errors.push(error),
    );
    while (!begun) await new Promise((resolve) => setTimeout(resolve, 20));
    await workers.stop();
    workers = undefined;
    assert.ok(over);
    assert.deepEqual(
      errors.map((error) => (error as FieldkeepError).code),
      ['database_unavailable'],
    );
  });

  it('go on with a range of their own process that a lost connection kept them from giving back', async () => {
    await fill(bench.owner, 500, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const id = await beginRotation(bench.service);
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, id);
    await advance(bench.service, id);
    const [range] = await listFreeRanges(bench.service.pool);
    assert.ok(await claimRange(bench.service.pool, range!, randomUUID(), bench.service.instanceId));
    await start();
    await waitFor(id, (run) => run.phase === 'done');
  }).timeout(60_000);

  it('are not kept from other runs by a table that is in trouble', async () => {
    const policy = JSON.parse(readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8')) as {
      columns: object[];
    };
    policy.columns.unshift({ ...policy.columns[1]!, table: 'demo.a' });
    await bench.owner.query('create table demo.a (like demo.employees including all)');
    await bench.owner.query(`grant select, update on demo.a to ${new URL(bench.database.rowsUrl).username}`);
    bench.service.policy = parsePolicy(JSON.stringify(policy));
    bench.service.catalog = await loadCatalog(bench.service.targets, bench.service.policy.columns);
    assert.ok(bench.service.catalog.tables.has('demo.a'));
    await bench.owner.query('drop table demo.a');
    await fill(bench.owner, 500, (id) => `536-22-${id}`);
    const id = await beginRotation(bench.service);
    await start();
    // Sooner than the service looks at the registered tables again by itself.
    await waitFor(id, (run) => run.activatedAt !== undefined, 8_000);
    await skipWaits(bench.owner, id);
    await waitFor(id, (run) => run.phase === 'done');
    const { rows } = await bench.owner.query<{ id: string }>(
      `select id from fieldkeep.rotations where kind = 'adoption'`,
    );
    const adoption = await waitFor(rows[0]!.id, (run) => run.phase === 'blocked');
    assert.match(adoption.blocked!, /demo\.a /, 'the trouble is told');
  }).timeout(60_000);

  it('finish, and lose and mix nothing, while connections are cut all the time', async () => {
    const count = 20_000;
    await fill(bench.owner, count, (id) => `536-22-${id}`);
    await start();
    const adoption = async () => {
      const { rows } = await bench.owner.query<{ id: string }>(
        `select id from fieldkeep.rotations where kind = 'adoption'`,
      );
      return rows[0]?.id;
    };
    const cut = () =>
      bench.owner.query(
        `select pg_terminate_backend(pid) from pg_stat_activity
         where usename = $1 and datname = current_database() and random() < 0.7`,
        [new URL(bench.database.rowsUrl).username],
      );
    let cutting = true;
    const trouble = (async () => {
      for (let cuts = 0; cutting && cuts < 20; cuts += 1) {
        await new Promise((resolve) => setTimeout(resolve, randomInt(30, 250)));
        await cut();
      }
    })();
    let id: string | undefined;
    while (id === undefined) id = await adoption().catch(() => undefined);
    await waitForCalm(id, (run) => run.phase === 'done');
    cutting = false;
    await trouble;
    assert.ok(errors.length > 0, 'connections were cut');
    const { rows } = await bench.owner.query<{ id: string; ssn: string }>('select id, ssn from demo.employees');
    assert.equal(rows.length, count);
    for (const row of rows) assert.equal(await openFor(bench.service, 'ssn', row.id, row.ssn), `536-22-${row.id}`);
  }).timeout(120_000);
});
