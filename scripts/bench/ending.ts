/** What must not outlive a benchmark: processes and folders of its own are ended and removed however it ends, Ctrl-C included. */
import { existsSync, rmSync } from 'node:fs';

const endings = new Set<() => void>();

process.on('exit', () => {
  for (const end of [...endings].reverse()) {
    try {
      end();
    } catch {
      // It had gone by itself; the others are still to be ended.
    }
  }
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

/** Runs `end` when the process exits before the answer was called. `end` must do its work without a turn of the event loop. */
export function atExit(end: () => void): () => void {
  endings.add(end);
  return () => void endings.delete(end);
}

const tries = 40;
const pauseMs = 50;

/** Again and again while a process that is ending still writes there, or deletes: rmSync then stops half-way, in silence. */
export function removeFolder(path: string): void {
  for (let n = 0; n < tries && existsSync(path); n += 1) {
    try {
      rmSync(path, { recursive: true, force: true });
    } catch {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, pauseMs); // sleeps without a turn of the event loop
    }
  }
}
