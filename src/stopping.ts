/**
 * Stopping within a time, whatever hangs. Steps are undone newest first; each has its limit, and one that does not end in it
 * is told and left behind, so that the ones after it get their turn.
 */
import { describeError } from './errors.ts';
import { within } from './within.ts';

export interface Step {
  /** As it is told when it does not end: "The jobs did not end in time." */
  readonly what: string;
  /** `signal`: why it stops; empty when a start failed. */
  readonly run: (signal: string) => Promise<unknown> | void;
  readonly maxMs?: number;
}

const maxMsDefault = 2_000;
/** What every step gets when the time is over: enough for one that only has to let go of something. */
const minMs = 100;

/** Undoes all of `steps` and empties it. Answers what did not end in time or failed. */
export async function undoAll(
  steps: Step[],
  signal: string,
  totalMs: number,
  tell: (sentence: string) => void,
): Promise<string[]> {
  const deadline = performance.now() + totalMs;
  const wrong: string[] = [];
  for (const { what, run, maxMs = maxMsDefault } of steps.splice(0).reverse()) {
    const ms = Math.max(minMs, Math.min(maxMs, deadline - performance.now()));
    try {
      if ((await within(ms, finish(run, signal))) === true) continue;
      tell(`${what} did not end in time; stopping without.`);
    } catch (error) {
      tell(`${what} could not be stopped properly: ${JSON.stringify(describeError(error))}.`);
    }
    wrong.push(what);
  }
  return wrong;
}

async function finish(run: Step['run'], signal: string): Promise<true> {
  await run(signal);
  return true;
}
