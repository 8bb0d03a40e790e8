/**
 * Holds a range back before its next batch: for good when the run was paused or ended or its hours are over, for a while
 * when it is faster than its rate or a replica of the target is behind. Everything it goes by stands in a database, so all
 * workers of a run keep to one rate, and a person's pause takes effect within one batch.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Pool } from '../db.ts';
import { findClosed, type RotationLimits } from '../policy/limits.ts';
import type { BatchSize } from './pace.ts';
import { setThrottle } from './store.ts';
import { findLagMib, findControl, reserveRate } from './throttle-store.ts';

const lookEveryMs = 500;
const lagEveryMs = 1_000;

interface ThrottleOptions {
  /** Our own database. */
  readonly pool: Pool;
  /** The table's. */
  readonly target: Pool;
  readonly run: string;
  readonly limits: RotationLimits;
  readonly size: BatchSize;
  readonly isStopping: () => boolean;
}

export class Throttle {
  readonly #options: ThrottleOptions;
  #lagAskedAt = -Infinity;
  #lagMib = 0;
  /** What slows the range down now, in words. */
  reason: string | undefined;

  constructor(options: ThrottleOptions) {
    this.#options = options;
  }

  /** Rows that the next batch may have: no more than half a second of the rate. */
  get rowsMax(): number {
    const { size, limits } = this.#options;
    return Math.max(1, Math.min(size.rows, Math.ceil((limits.rowsPerSecondMax ?? Infinity) / 2)));
  }

  /**
   * Waits until `rows` more rows may be written. False when the range has to be given back. `beforeWaiting` is called once,
   * before a wait that may be long.
   */
  async admit(rows: number, beforeWaiting: () => Promise<unknown>): Promise<boolean> {
    this.reason = undefined;
    if (!(await this.#mayGoOn())) return false;
    const rate = this.#options.limits.rowsPerSecondMax;
    const waitMs = rate === undefined ? 0 : await reserveRate(this.#options.pool, this.#options.run, rows, rate);
    if (rate !== undefined && waitMs > 0) this.reason = `rowsPerSecondMax ${rate.toLocaleString('en-US')}`;
    if (waitMs > lookEveryMs || (await this.#isBehind())) await beforeWaiting();
    return (await this.#sleep(waitMs)) && (await this.#waitForReplicas());
  }

  async #mayGoOn(): Promise<boolean> {
    const { pool, run, limits, isStopping } = this.#options;
    if (isStopping()) return false;
    const { held, now } = await findControl(pool, run);
    return !held && findClosed(limits, now) === undefined;
  }

  async #sleep(ms: number): Promise<boolean> {
    for (let left = ms; left > 0; left -= lookEveryMs) {
      await sleep(Math.min(left, lookEveryMs));
      if (left > lookEveryMs && !(await this.#mayGoOn())) return false;
    }
    return true;
  }

  async #isBehind(): Promise<boolean> {
    if (performance.now() - this.#lagAskedAt >= lagEveryMs) {
      this.#lagAskedAt = performance.now();
      this.#lagMib = await findLagMib(this.#options.target);
    }
    return this.#lagMib > this.#options.limits.lagMibMax;
  }

  async #waitForReplicas(): Promise<boolean> {
    if (!(await this.#isBehind())) return true;
    this.#options.size.halve();
    while (await this.#isBehind()) {
      this.reason = `a replica that is ${Math.round(this.#lagMib)} MiB behind`;
      await setThrottle(this.#options.pool, this.#options.run, this.reason); // no checkpoint tells it meanwhile
      if (!(await this.#sleep(2 * lookEveryMs))) return false;
    }
    return await this.#mayGoOn();
  }
}
