/**
 * Takes runs further: every few seconds, and at once after start, a tick looks at what is stored (families that are due,
 * plaintext to adopt, envelopes that came late, guards and destructions, runs and ranges that are not finished) and does or
 * sends what comes next. Timers only wake it; a tick that was missed is made good by the next.
 */
import { CronTime } from 'cron';
import type { PgBoss } from 'pg-boss';
import { describeError } from '../errors.ts';
import { MirrorKeeper } from '../keys/mirror-keeper.ts';
import { carryOutOpen } from '../retirement/destroy.ts';
import { advance, listWorkable, type DriverShop } from '../rotation/run.ts';
import { startAdoption, startDue } from '../rotation/start.ts';
import { workRange } from '../rotation/range.ts';
import { LeaseLost, listFreeRanges, releaseForgotten, setRangeError } from '../rotation/range-store.ts';
import { listUnfinished } from '../rotation/store.ts';
import { searchDue } from '../retirement/undeclared-watch.ts';
import { watchDone } from '../retirement/watch.ts';
import { rangeQueue, type RangeJob } from './queues.ts';

const everyTwoSeconds = '*/2 * * * * *';
const pollSeconds = 0.5;
/**
 * Ranges that one process works on at the same time; how many of a run all processes may, the policy says. More than its
 * thread can do at once, for those that are held back by a rate only wait.
 */
const rangesAtOnce = 4;
/** Of a run, waiting in the queue. */
const rangesSentMax = 32;
/** Looking for plaintext without an index reads the whole table. */
const unindexedLookMs = 300_000;

/** A job is due also when the database's clock goes back: one that waits keeps others for its range from being sent. */
const longAgo = () => new Date(Date.now() - 86_400_000);

/** Only cron's sense of time: its own timer drops ticks that are late, and tells the console. Answers how to stop. */
function everyTick(tick: () => void): () => void {
  const time = new CronTime(everyTwoSeconds);
  let timer: NodeJS.Timeout;
  const arm = () => {
    timer = setTimeout(() => (tick(), arm()), Math.max(0, time.getTimeout()));
  };
  arm();
  return () => clearTimeout(timer);
}

export interface Workers {
  /** Looks now instead of at the next tick. */
  wake(): void;
  /** Jobs hand their ranges back within one batch. */
  stop(): Promise<void>;
}

export async function startWorkers(
  boss: PgBoss,
  shop: () => DriverShop,
  onError: (error: unknown) => void,
): Promise<Workers> {
  let stopping = false;
  let again = false;
  let ticking: Promise<void> | undefined;
  let searching: Promise<void> | undefined;
  let lookedUnindexedAt = -Infinity;
  /** Ranges that this process works on now. */
  const working = new Set<string>();
  const mirrors = new MirrorKeeper(onError);

  /** What goes wrong with one thing is told, and keeps no other from its turn. */
  async function attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      onError(error);
      return undefined;
    }
  }

  async function sendRanges(): Promise<void> {
    const { pool, instanceId } = shop();
    await releaseForgotten(pool, instanceId, [...working]);
    for (const rangeId of await listFreeRanges(pool, await listWorkable(shop()), rangesSentMax)) {
      await boss.send(rangeQueue, { rangeId } satisfies RangeJob, { singletonKey: rangeId, startAfter: longAgo() });
    }
  }

  async function lookForWork(): Promise<void> {
    const unindexed = performance.now() - lookedUnindexedAt >= unindexedLookMs;
    if (unindexed) lookedUnindexedAt = performance.now();
    await attempt(() => startDue(shop()));
    await attempt(() => startAdoption(shop(), unindexed));
    await attempt(() => watchDone(shop()));
    await attempt(() => carryOutOpen(shop()));
    searching ??= attempt(() => searchDue(shop())).finally(() => (searching = undefined)); // takes as long as it takes
  }

  async function look(): Promise<void> {
    mirrors.wake(shop());
    await lookForWork();
    for (const run of (await attempt(() => listUnfinished(shop().pool))) ?? []) {
      while (!stopping && (await attempt(() => advance(shop(), run.id))) === true);
    }
    await attempt(sendRanges);
  }

  async function tick(): Promise<void> {
    do {
      again = false;
      await look();
    } while (again && !stopping);
    ticking = undefined;
  }

  function wake(): void {
    if (stopping) return;
    again = true;
    ticking ??= tick();
  }

  async function work(rangeId: string): Promise<void> {
    if (working.has(rangeId)) return; // a second job for it: the first goes on
    working.add(rangeId);
    try {
      await workRange(shop(), rangeId, () => stopping);
    } catch (error) {
      if (error instanceof LeaseLost) return; // somebody else goes on with it
      onError(error);
      const described = describeError(error);
      await setRangeError(shop().pool, rangeId, described.detail ?? described.code ?? described.name).catch(onError);
      // pg-boss stores what is thrown with the job, and Postgres may quote a row in its errors.
      throw new Error(`The range failed: ${JSON.stringify(described)}`);
    } finally {
      working.delete(rangeId);
    }
  }

  await boss.work<RangeJob>(
    rangeQueue,
    { pollingIntervalSeconds: pollSeconds, heartbeatRefreshSeconds: 3, localConcurrency: rangesAtOnce },
    async (jobs) => {
      for (const { data } of jobs) await work(data.rangeId);
      wake(); // it may have been the last one
    },
  );
  const stopTicks = everyTick(wake);
  wake();
  return {
    wake,
    async stop() {
      stopping = true;
      stopTicks();
      shop().readers.end(); // a tick, too, may search: right before a version's end
      await boss.offWork(rangeQueue, { wait: true });
      await ticking;
      await searching;
      await mirrors.stop();
      await boss.stop({ graceful: true, timeout: 10_000 });
    },
  };
}
