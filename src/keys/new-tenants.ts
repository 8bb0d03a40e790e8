/**
 * How many tenants that have no data key yet may get their first one in a while: a process that was taken over could
 * otherwise have keys made without end. Tenants that have one are not counted.
 */
import type { Queryable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { hasDataKey } from './store.ts';

const atOnceMax = 300;
const perSecond = 5;

export class NewTenants {
  readonly #now: () => number;
  #left = atOnceMax;
  #countedAt: number;

  /** `now`: milliseconds that only go forward; tests put their own here. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#countedAt = now();
  }

  /** Errors: `keys_not_ready` for a new tenant when there were too many. */
  async admit(db: Queryable, tenant: string): Promise<void> {
    if (await hasDataKey(db, tenant)) return;
    const now = this.#now();
    this.#left = Math.min(atOnceMax, this.#left + ((now - this.#countedAt) / 1000) * perSecond);
    this.#countedAt = now;
    if (this.#left < 1) {
      const detail = `More than ${atOnceMax} tenants have asked for their first data key in a short time. Try again later.`;
      throw new FieldkeepError('keys_not_ready', detail, { retryAfterSeconds: 2 });
    }
    this.#left -= 1;
  }
}
