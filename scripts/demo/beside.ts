/** Work that goes on beside something else: an application that writes, for as long as it is let. */
import { setTimeout as sleep } from 'node:timers/promises';

export interface Beside {
  /** What it did so far. */
  readonly written: () => number;
  /** Errors of the work come out of here. */
  stop(): Promise<void>;
}

/** Calls `work` again and again, `pauseMs` apart, until stopped; it answers how much it did. An error ends it. */
export function goOn(pauseMs: number, work: () => Promise<number>): Beside {
  let written = 0;
  let stopping = false;
  const running = (async () => {
    while (!stopping) {
      written += await work();
      await sleep(pauseMs);
    }
  })();
  running.catch(() => undefined); // told by stop()
  return {
    written: () => written,
    async stop() {
      stopping = true;
      await running;
    },
  };
}

const stepMs = 20;

/** The same at an even pace: `work` is told how much is due, and does as much of it as it likes at once. */
export function keepPace(perSecond: number, work: (due: number) => Promise<number>): Beside {
  const started = performance.now();
  let written = 0;
  return goOn(stepMs, async () => {
    const due = Math.floor(((performance.now() - started) * perSecond) / 1000) - written;
    const done = due > 0 ? await work(due) : 0;
    written += done;
    return done;
  });
}
