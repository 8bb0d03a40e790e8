/** How the benchmarks wait for what others do, and say meanwhile where they are. */
import { setTimeout as sleep } from 'node:timers/promises';
import { mustBeOk, operator, type Api } from '../support.ts';

/** Where a run of minutes is; not on stdout, where the figures go. */
export const say = (text: string) => void process.stderr.write(`  ${text} …\n`);

const everyMs = 250;

/** Asks until the answer is one that `holds`. */
export async function until<T>(ask: () => Promise<T>, holds: (answer: T) => boolean, maxMs: number): Promise<T> {
  const deadline = performance.now() + maxMs;
  for (;;) {
    const answer = await ask();
    if (holds(answer)) return answer;
    if (performance.now() > deadline) throw new Error(`It took too long: ${JSON.stringify(answer)}`);
    await sleep(everyMs);
  }
}

export interface RunState {
  readonly id: string;
  readonly kind: string;
  readonly phase: string;
  readonly pass: number;
  readonly blocked?: string;
  readonly columns: readonly { failed: number; done: number }[];
}

/** Follows a run to its end. Errors: one that is blocked. */
export async function untilDone(api: Api, id: string, maxMs: number): Promise<RunState> {
  const ask = async () => mustBeOk(await api.call(operator, 'GET', `/v1/rotations/${id}`)) as unknown as RunState;
  const run = await until(ask, ({ phase }) => phase === 'done' || phase === 'blocked', maxMs);
  if (run.phase === 'blocked') throw new Error(`A ${run.kind} is blocked: ${run.blocked}`);
  return run;
}
