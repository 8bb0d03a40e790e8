/** What must not outlive a benchmark: processes and folders of its own are ended and removed however it ends, Ctrl-C included. */

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
