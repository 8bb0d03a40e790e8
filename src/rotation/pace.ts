/**
 * How many rows the next UPDATE takes, by how long the last ones took: small at first, growing while a statement stays
 * under its target, shrinking at once when one does not. Pure.
 */
export const batchRowsMin = 10;
export const batchRowsMax = 2_000;
const batchRowsFirst = 200;
/** Aimed at below the target, so that it is passed rarely and not every other time. */
const aim = 0.8;
const growthMax = 2;

export class BatchSize {
  readonly #targetMs: number;
  #rows = batchRowsFirst;

  /** `targetMs`: what a statement may take. */
  constructor(targetMs: number) {
    this.#targetMs = targetMs;
  }

  get rows(): number {
    return this.#rows;
  }

  /** A statement of `rows` rows took `ms`. One that was cut short by the end of the data says nothing of larger ones. */
  observe(rows: number, ms: number): void {
    const wanted = (rows * aim * this.#targetMs) / Math.max(ms, 0.1);
    if (wanted < this.#rows) this.#set(wanted);
    else if (rows >= this.#rows / 2) this.#set(Math.min(wanted, this.#rows * growthMax));
  }

  /** Somebody was in the way: a lock, a timeout, a replica that is behind. */
  halve(): void {
    this.#set(this.#rows / 2);
  }

  #set(rows: number): void {
    this.#rows = Math.max(batchRowsMin, Math.min(batchRowsMax, Math.floor(rows)));
  }
}

const backoffFirstMs = 50;
const backoffMaxMs = 5_000;

/** How long to wait before try `n` (1, 2, …): doubling, with half of it left to chance, so that those who met part ways. */
export function backoffMs(n: number, random: () => number = Math.random): number {
  const ms = Math.min(backoffMaxMs, backoffFirstMs * 2 ** (n - 1));
  return ms / 2 + (ms / 2) * random();
}
