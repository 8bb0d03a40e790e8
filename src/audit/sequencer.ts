/**
 * Unfolds what is waiting, as long as the process runs. Every instance has one; a lock lets one work at a time. Nobody
 * depends on it for correctness: whoever reads entries has them unfolded first.
 */
import type { Pool } from '../db.ts';
import { recordStandingGaps, type Loss } from './loss-store.ts';
import { unfold } from './store.ts';

const lookEveryMs = 500;
const linesMax = 5_000;
const gapsEveryMs = 5_000;

export interface Sequencer {
  /** A hint that there is something to unfold. */
  wake(): void;
  /** Resolves once it no longer uses the pool. */
  stop(): Promise<void>;
}

/** Failures are told to `onError` and tried again; `onLoss` hears of gaps that were found and recorded as lost. */
export function startSequencer(
  pool: Pool,
  onError: (error: unknown) => void,
  onLoss: (loss: Loss) => void = () => undefined,
): Sequencer {
  let lookedForGapsAt = performance.now();
  let stopped = false;
  let woken = false;
  let rouse: () => void = () => undefined;

  function wake(): void {
    woken = true;
    rouse();
  }

  /** Until woken or the time is up. */
  async function rest(): Promise<void> {
    if (!woken) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, lookEveryMs);
        rouse = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    woken = false;
  }

  async function passGaps(): Promise<void> {
    if (performance.now() - lookedForGapsAt < gapsEveryMs) return;
    lookedForGapsAt = performance.now();
    (await recordStandingGaps(pool)).forEach(onLoss);
  }

  async function run(): Promise<void> {
    while (!stopped) {
      let unfolded = 0;
      try {
        unfolded = await unfold(pool, linesMax);
        await passGaps();
      } catch (error) {
        onError(error);
      }
      if (unfolded < linesMax / 2) await rest(); // entries gather: a few at a time would cost as much as many
    }
  }

  const running = run();
  return {
    wake,
    async stop() {
      stopped = true;
      wake();
      await running;
    },
  };
}
