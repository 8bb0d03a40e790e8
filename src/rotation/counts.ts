/**
 * Counts that people look at: how many values a column holds, by version or in some state. On a large table that takes
 * longer than a call may, so a call waits for a while, and the count goes on without it:
 *
 *     done in time   → the count as it is now
 *     otherwise      → what was counted last, and when; nothing at first. Who asks again later has it
 *
 * One count at a time in a database, however many ask, and one that took long is made again only after it has rested: looking at a
 * rotation must not slow it down. What decides anything is counted by whoever decides it (pass.ts), not here.
 */
import { columnId, type RegisteredColumn } from '../policy/policy.ts';
import type { TableShape } from '../targets/catalog.ts';
import { rowsOf, type Targets } from '../targets/targets.ts';
import { countStale, countVersions } from './census.ts';
import type { Stale } from './work.ts';

/** How long a call waits for all that it shows. */
export const countMaxMs = 2_000;
const longMs = 1_000;
/** Of the time that the last count took. */
const restFactor = 10;

export interface Counted<T> {
  readonly value: T;
  /** When the count began. */
  readonly at: Date;
}

interface Known {
  counted?: Counted<unknown>;
  tookMs: number;
  endedAt: number;
  running?: Promise<void>;
}

export class Counts {
  readonly #known = new Map<string, Known>();
  readonly #onError: (error: unknown) => void;
  /** By database: one that does not answer keeps no other waiting. */
  readonly #last = new Map<string, Promise<void>>();

  /** `onError` hears of counts that failed; whoever asked is then answered with the one before. */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** `name` is one for the same count by the same means; `deadline` as performance.now() has it. */
  async get<T>(
    name: string,
    count: () => Promise<T>,
    deadline: number,
    database = '',
  ): Promise<Counted<T> | undefined> {
    let known = this.#known.get(name);
    if (known === undefined) this.#known.set(name, (known = { tookMs: 0, endedAt: -Infinity }));
    const isResting = known.tookMs >= longMs && performance.now() - known.endedAt < restFactor * known.tookMs;
    if (!isResting) known.running ??= this.#start(known, count, database);
    if (known.running !== undefined) await settledBy(known.running, deadline);
    return known.counted as Counted<T> | undefined;
  }

  /** Never rejects. */
  #start(known: Known, count: () => Promise<unknown>, database: string): Promise<void> {
    const run = async () => {
      const [at, startedAt] = [new Date(), performance.now()];
      try {
        known.counted = { value: await count(), at };
      } catch (error) {
        this.#onError(error);
      }
      known.endedAt = performance.now();
      known.tookMs = known.endedAt - startedAt;
      delete known.running;
    };
    const next = (this.#last.get(database) ?? Promise.resolve()).then(run);
    this.#last.set(database, next);
    return next;
  }
}

async function settledBy(work: Promise<void>, deadline: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, Math.max(0, deadline - performance.now()));
  });
  await Promise.race([work, late]);
  clearTimeout(timer);
}

interface CountShop {
  readonly targets: Targets;
  readonly counts: Counts;
}

/** How many values of a column there are, by version. */
export function lookUpVersions(
  shop: CountShop,
  table: TableShape,
  column: RegisteredColumn,
  deadline: number,
): Promise<Counted<ReadonlyMap<number, number>> | undefined> {
  const count = () => countVersions(rowsOf(shop, table), table, column.column);
  return shop.counts.get(`versions of ${columnId(column)}`, count, deadline, table.database);
}

/** In how many rows one of these is so; `what` says of which kind they are. */
export function lookUpStale(
  shop: CountShop,
  table: TableShape,
  column: RegisteredColumn,
  what: string,
  stale: readonly Stale[],
  deadline: number,
): Promise<Counted<number> | undefined> {
  const count = () => countStale(rowsOf(shop, table), table, stale);
  return shop.counts.get(`${what} of ${columnId(column)}`, count, deadline, table.database);
}
