/**
 * Takes runs further: every few seconds, and at once after start, a tick looks at what is stored (families that are due,
 * plaintext to adopt, envelopes that came late, guards and destructions, runs and ranges that are not finished) and does or
 * sends what comes next. Timers only wake it; a tick that was missed is made good by the next.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { CronTime } from 'cron';
import type { PgBoss } from 'pg-boss';
import { describeError } from '../errors.ts';
import { MirrorKeeper } from '../keys/mirror-keeper.ts';
import { carryOutOpen } from '../retirement/destroy.ts';
import { mayWork } from '../rotation/in-force.ts';
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
/** A target that does not answer keeps no process from its end. */
const stopMaxMs = 10_000;
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

/**
 * What is done again and again, each thing beside the others: one that waits for a target keeps none of them waiting. What goes
 * wrong is told to `onError`, and comes with the next tick again.
 */
class Chores {
  readonly #onError: (error: unknown) => void;
  readonly #under = new Map<string, Promise<void>>();
  readonly #again = new Set<string>();
  #stopped = false;

  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** Does it now, or once more after it has ended. */
  do(name: string, work: () => Promise<unknown>): void {
    if (this.#stopped) return;
    if (this.#under.has(name)) this.#again.add(name);
    else this.#under.set(name, this.#run(name, work));
  }

  async #run(name: string, work: () => Promise<unknown>): Promise<void> {
    do {
      this.#again.delete(name);
      await work().catch(this.#onError);
    } while (this.#again.has(name) && !this.#stopped);
    this.#under.delete(name);
  }

  /** Waits for what is under way, no longer than `maxMs`. */
  async stop(maxMs: number): Promise<void> {
    this.#stopped = true;
    await Promise.race([Promise.all(this.#under.values()), sleep(maxMs, undefined, { ref: false })]);
  }
}

export async function startWorkers(
  boss: PgBoss,
  shop: () => DriverShop,
  onError: (error: unknown) => void,
): Promise<Workers> {
  let stopping = false;
  let ticking: Promise<void> | undefined;
  let tickAgain = false;
  let lookedUnindexedAt = -Infinity;
  /** Whether the policy of this process is in force, as the last tick has found. */
  let mayDrive = false;
  /** Ranges that this process works on now. */
  const working = new Set<string>();
  const mirrors = new MirrorKeeper(onError);
  const chores = new Chores(onError);

  async function sendRanges(): Promise<void> {
    const { pool, instanceId } = shop();
    await releaseForgotten(pool, instanceId, [...working]);
    for (const rangeId of await listFreeRanges(pool, await listWorkable(shop()), rangesSentMax)) {
      await boss.send(rangeQueue, { rangeId } satisfies RangeJob, { singletonKey: rangeId, startAfter: longAgo() });
    }
  }

  async function takeFurther(id: string): Promise<void> {
    while (!stopping && (await advance(shop(), id)));
    chores.do('ranges', sendRanges);
  }

  async function lookAtRuns(): Promise<void> {
    for (const { id } of await listUnfinished(shop().pool)) chores.do(`run ${id}`, () => takeFurther(id));
    chores.do('ranges', sendRanges);
  }

  /** Starts runs, then looks at them. */
  function start(name: string, begin: () => Promise<unknown>): void {
    chores.do(name, async () => {
      try {
        await begin();
      } finally {
        if (!stopping) chores.do('runs', lookAtRuns);
      }
    });
  }

  function lookForWork(): void {
    const unindexed = performance.now() - lookedUnindexedAt >= unindexedLookMs;
    if (unindexed) lookedUnindexedAt = performance.now();
    start('due', () => startDue(shop()));
    const databases = new Set([...shop().catalog.tables.values()].map(({ database }) => database));
    for (const database of databases) {
      start(`adoption in ${database ?? 'own'}`, () => startAdoption(shop(), unindexed, { database }));
    }
    start('watch', () => watchDone(shop()));
    chores.do('destructions', () => carryOutOpen(shop()));
    chores.do('search', () => searchDue(shop())); // takes as long as it takes
  }

  /** A process whose policy is not in force takes no jobs: others can do them. */
  async function subscribe(): Promise<void> {
    const may = await mayWork(shop());
    if (may === mayDrive || stopping) return;
    mayDrive = may;
    if (!may) return void (await boss.offWork(rangeQueue, { wait: false }));
    await boss.work<RangeJob>(
      rangeQueue,
      { pollingIntervalSeconds: pollSeconds, heartbeatRefreshSeconds: 3, localConcurrency: rangesAtOnce },
      async (jobs) => {
        for (const { data } of jobs) await work(data.rangeId);
        wake(); // it may have been the last one
      },
    );
  }

  async function tick(): Promise<void> {
    do {
      tickAgain = false;
      mirrors.wake(shop());
      await subscribe().catch(onError);
      if (!mayDrive || stopping) continue;
      lookForWork();
      chores.do('runs', lookAtRuns);
    } while (tickAgain && !stopping);
    ticking = undefined;
  }

  function wake(): void {
    if (stopping) return;
    tickAgain = true;
    ticking ??= tick();
  }

  async function work(rangeId: string): Promise<void> {
    if (working.has(rangeId)) return; // a second job for it: the first goes on
    working.add(rangeId);
    try {
      await workRange(shop(), rangeId, () => stopping || !mayDrive);
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

  await subscribe().catch(onError);
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
      await chores.stop(stopMaxMs);
      await mirrors.stop();
      await boss.stop({ graceful: true, timeout: 10_000 });
    },
  };
}
