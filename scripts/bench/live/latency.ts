/** Latencies with the moment that each belongs to, so that they can be told apart afterwards by what went on then. */

/** From and to, in ms of the system's clock, as in the database. */
export type Span = readonly [from: number, to: number];

interface Latencies {
  readonly count: number;
  readonly failed: number;
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

interface Entry {
  readonly at: number;
  /** Undefined when it failed. */
  readonly ms: number | undefined;
}

/** The system's clock, finer than Date.now(). */
export const clock = () => performance.timeOrigin + performance.now();

export function secondsOf(spans: readonly Span[]): number {
  return spans.reduce((sum, [from, to]) => sum + to - from, 0) / 1000;
}

export class Recorder {
  readonly #entries: Entry[] = [];

  add(at: number, ms: number | undefined): void {
    this.#entries.push({ at, ms });
  }

  summarise(spans: readonly Span[]): Latencies {
    const within = this.#entries.filter(({ at }) => spans.some(([from, to]) => at >= from && at < to));
    const sorted = within.flatMap(({ ms }) => (ms === undefined ? [] : [ms])).sort((a, b) => a - b);
    const at = (share: number) => sorted[Math.floor(sorted.length * share)] ?? NaN;
    return {
      count: within.length,
      failed: within.length - sorted.length,
      perSecond: sorted.length / secondsOf(spans),
      p50Ms: at(0.5),
      p99Ms: at(0.99),
    };
  }
}
