/**
 * Clocks that jump. pg-boss is given a clock of its own, which its statements take for now, too. Ours is the database's, which
 * nobody can set here: its schedule moves the other way instead.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemClock, TestClock, type AttachableClock, type PgBoss } from 'pg-boss';
import { FieldkeepError } from '../../src/errors.ts';
import { openBoss, rangeQueue } from '../../src/jobs/queues.ts';
import { startWorkers, type Workers } from '../../src/jobs/workers.ts';
import { listFreeRanges, listProgress } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { findRun, listRuns, type Run } from '../../src/rotation/store.ts';
import { openService, type Service } from '../../src/service.ts';
import { withMoments } from '../rotation/intercept.ts';
import { activate, adopt, beReady, fill, openBench, openFor, skipWaits, type Bench } from '../rotation/support.ts';

const families = ['bank', 'salary', 'ssn'];
const hourMs = 3_600_000;
const quarterMs = 92 * 24 * hourMs;
/** What woken workers need to start what is due, and what is not, where they are wrong. */
const lookMs = 500;
const rows = 1_500;
const valueOf = (id: number) => `536-22-${id}`;

interface JumpingClock extends AttachableClock {
  jump(ms: number): Promise<void>;
}

/** What pg-boss takes for now, in its statements, too. Its timers are real: setting a machine's clock does not move them. */
function makeClock(): JumpingClock {
  const database = new TestClock();
  let offsetMs = 0;
  const now = () => Date.now() + offsetMs;
  return {
    ...systemClock,
    now,
    // Where pg-boss waits for its clock to come back from a jump, more would be none at all to Node.
    setTimeout: (act, ms) => systemClock.setTimeout(act, Math.min(ms, 2 ** 31 - 1)),
    attach: (target) => database.attach(target),
    jump(ms) {
      offsetMs += ms;
      return database.setTime(now());
    },
  };
}

describe('a clock that jumps', () => {
  let bench: Bench;
  let other: Service;
  let clock: JumpingClock;
  let errors: unknown[];
  let bosses: PgBoss[];
  let workers: Workers[];
  let wake: () => void;

  beforeEach(async () => {
    bench = await openBench();
    const { rootKeys, policy, log } = bench.service;
    other = await openService({
      databaseUrl: bench.database.workerUrl,
      rows: new Map([[undefined, bench.database.rowsUrl]]),
      rootKeys,
      policy,
      log,
    });
    clock = makeClock();
    [errors, bosses, workers] = [[], [], []];
    wake = () => undefined;
    await fill(bench.owner, rows, valueOf);
    await adopt(bench.service);
  });
  afterEach(async () => {
    wake();
    await Promise.all(workers.map((each) => each.stop()));
    await other.close();
    await bench.close();
    // An instance that is only taken for dead goes on ticking, and may find a run taken further.
    assert.deepEqual(
      errors.filter((error) => !(error instanceof FieldkeepError && error.code === 'conflict')),
      [],
    );
  });

  async function start(shop: Service): Promise<void> {
    const onError = (error: unknown) => errors.push(error);
    // The owner's connections: the clock is a function of the schema, which a service may not replace.
    const boss = await openBoss(bench.database.ownerUrl, onError, clock);
    bosses.push(boss);
    workers.push(await startWorkers(boss, () => shop, onError));
  }

  /** Time as every clock shows it. */
  async function elapse(ms: number): Promise<void> {
    await clock.jump(ms);
    await bench.owner.query(
      `update fieldkeep.key_families set next_rotation_at = next_rotation_at - make_interval(secs => $1::float8 / 1000)`,
      [ms],
    );
  }

  const listRotations = async () =>
    (await listRuns(bench.owner, { limit: 100 })).filter((run) => run.kind === 'rotation');

  /** All rotations, once there are so many and they are at their end. Nobody waits for what is only a wait. */
  async function settle(count: number): Promise<Run[]> {
    for (const each of workers) each.wake();
    await sleep(lookMs);
    const deadline = performance.now() + 30_000;
    for (;;) {
      const runs = await listRotations();
      const open = runs.filter((run) => run.phase !== 'done');
      if (open.length === 0 && runs.length >= count) return runs;
      await beReady(bench.owner);
      for (const { id } of open) await skipWaits(bench.owner, id);
      for (const each of workers) each.wake();
      assert.ok(
        performance.now() < deadline,
        `${runs.length} rotations, open: ${open.map((run) => run.family).join()}`,
      );
      await sleep(100);
    }
  }

  async function checkRows(version: number): Promise<void> {
    const found = await bench.owner.query<{ id: string; ssn: string }>('select id, ssn from demo.employees');
    for (const { id, ssn } of found.rows) {
      assert.ok(ssn.startsWith(`fe1.ssn.${version}.`), `row ${id}`);
      assert.equal(await openFor(bench.service, 'ssn', id, ssn), valueOf(Number(id)));
    }
  }

  it('starts one rotation a family in every quarter, and one when several have passed, and none when it goes back', async () => {
    await start(bench.service);
    await start(other);
    let rotated = 0;
    const check = async (what: string) => {
      const runs = await settle(families.length * rotated);
      const versions = (family: string) =>
        runs
          .filter((run) => run.family === family)
          .map((run) => run.version)
          .reverse();
      for (const family of families) {
        assert.deepEqual(
          versions(family),
          Array.from({ length: rotated }, (_, i) => i + 2),
          `${family}, ${what}`,
        );
      }
    };
    await check('nothing is due');
    for (let quarter = 1; quarter <= 4; quarter += 1) {
      await elapse(quarterMs);
      rotated += 1;
      await check(`quarter ${quarter}`);
    }
    await elapse(2 * quarterMs);
    rotated += 1;
    await check('two quarters at once');
    await elapse(-quarterMs);
    await check('a quarter back');
    await elapse(quarterMs);
    await check('and forward again, to the day it was');
    await elapse(quarterMs);
    rotated += 1;
    await check('the next quarter');
    await checkRows(rotated + 1);
  }).timeout(120_000);

  /** A rotation whose only range is being worked on by `holder`, who stops before the second batch until `wake`. */
  async function beginAndStop(holder: Service): Promise<string> {
    const id = await activate(bench);
    const { promise: awake, resolve } = Promise.withResolvers<void>();
    wake = resolve;
    const { promise: asleep, resolve: sleeping } = Promise.withResolvers<void>();
    let writes = 0;
    const beforeWrite = async () => {
      writes += 1;
      if (writes !== 2) return;
      sleeping();
      await awake;
    };
    await start(withMoments(holder, { beforeWrite }));
    await asleep;
    return id;
  }

  const listJobs = async () =>
    (await bench.owner.query<{ state: string }>('select state from fieldkeep_jobs.job where name = $1', [rangeQueue]))
      .rows;

  // Not so today: the job that comes in its place is another handler's of the same process, which finds the range held, and
  // leaves; the process then gives the range back as forgotten, and whoever takes it costs the first its lease.
  it('forward, so that a job counts as lost while it is worked on: its worker goes on and finishes', async () => {
    const id = await beginAndStop(bench.service);
    await clock.jump(30 * hourMs);
    await bosses[0]!.supervise();
    assert.deepEqual(await listJobs(), [{ state: 'retry' }]);
    await start(other); // gets the job, and finds the range in good hands
    await clock.jump(2_000);
    for (let jobs = await listJobs(); jobs.some(({ state }) => state === 'retry'); jobs = await listJobs())
      await sleep(50);
    assert.equal((await findRun(bench.owner, id))!.phase, 're-encrypting');
    wake();
    await settle(1);
    const [progress] = await listProgress(bench.owner, id);
    assert.deepEqual([progress!.total, progress!.done], [rows, rows]);
    await checkRows(2);
  }).timeout(60_000);

  it('forward, and the worker of the job is dead: another takes the range, and the dead one changes nothing any more', async () => {
    const id = await beginAndStop({ ...bench.service, instanceId: randomUUID() });
    await clock.jump(30 * hourMs);
    await bosses[0]!.supervise();
    await start(other);
    await clock.jump(2_000);
    await settle(1);
    const [progress] = await listProgress(bench.owner, id);
    assert.ok(progress!.done <= rows); // of what it stored last, the dead one told nobody
    wake();
    await sleep(500);
    assert.deepEqual(await listProgress(bench.owner, id), [progress]);
    await checkRows(2);
  }).timeout(60_000);

  // Not so today: a job is fetched once its startAfter has come, and until then nothing is sent in its place.
  it('backward while a job waits: its range is worked on all the same', async () => {
    const id = await activate(bench);
    await advance(bench.service, id);
    assert.equal((await listFreeRanges(bench.service.pool)).length, 1);
    await start(bench.service); // sends the range, and fetches it half a second later
    while ((await listJobs()).length === 0) await sleep(10);
    await clock.jump(-hourMs);
    await settle(1);
    assert.equal((await findRun(bench.owner, id))!.phase, 'done');
  }).timeout(60_000);
});
