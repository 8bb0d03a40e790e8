/** Following a run to its end, with a bar, its rate and the time that is left. */
import { setTimeout as sleep } from 'node:timers/promises';
import { formatCount, formatSeconds, mustBeOk, openProgress, operator, progressLine, type Api } from './support.ts';

export interface RunProgress {
  readonly id: string;
  readonly kind?: string;
  readonly family?: string;
  readonly version?: number;
  readonly phase: string;
  readonly columns: readonly {
    table: string;
    column: string;
    total: number;
    done: number;
    left: number;
    failed: number;
  }[];
  readonly rowsPerSecond?: number;
  readonly etaSeconds?: number;
  readonly waitingFor?: string;
  readonly blocked?: string;
  readonly throttle?: string;
  readonly retrying?: string;
  readonly predicted?: { readonly seconds: number; readonly walBytes: number };
  readonly actual?: { readonly seconds: number; readonly walBytes?: number };
  readonly createdAt: string;
  readonly doneAt?: string;
}

const pollMs = 250;

export function describeRun(run: RunProgress): string {
  const sum = (name: 'total' | 'done') => run.columns.reduce((n, column) => n + column[name], 0);
  const [done, total] = [sum('done'), sum('total')];
  const details = [
    total === 0 ? '' : `${formatCount(done)} of ${formatCount(total)} values`,
    run.rowsPerSecond === undefined ? '' : `${formatCount(run.rowsPerSecond)}/s`,
    run.etaSeconds === undefined ? '' : `${formatSeconds(run.etaSeconds)} left`,
    run.retrying === undefined ? '' : `trying again: ${run.retrying}`,
    run.throttle === undefined ? '' : `held back by ${run.throttle}`,
    run.waitingFor === undefined ? '' : `waits for ${run.waitingFor}`,
  ];
  const shown = run.phase === 'done' ? Math.max(done, total, 1) : done;
  return progressLine(
    run.phase.padEnd(13),
    shown,
    Math.max(total, 1),
    details.filter((text) => text !== '').join(', '),
  );
}

const mib = (bytes: number) => `${formatCount(Math.round(bytes / 2 ** 20))} MiB`;

/** What became of a run beside what its rehearsal said, if there was one. */
export function describeOutcome({ predicted, actual }: RunProgress): string | undefined {
  if (actual === undefined) return undefined;
  const took = `It took ${formatSeconds(actual.seconds)}`;
  const log = actual.walBytes === undefined ? '' : ` and ${mib(actual.walBytes)} of log (everybody's)`;
  if (predicted === undefined) return `${took}${log}.`;
  return `${took}${log}; predicted were ${formatSeconds(predicted.seconds)} and ${mib(predicted.walBytes)}.`;
}

/** Polls until the run is done or blocked; `also` adds to the line what else is going on. */
export async function followRun(
  api: Api,
  id: string,
  options: { quiet?: boolean; indent?: string; also?: () => string } = {},
): Promise<RunProgress> {
  const progress = openProgress();
  for (;;) {
    const path = `/v1/rotations/${id}`;
    const run = mustBeOk(await api.call(operator, 'GET', path)) as unknown as RunProgress;
    const line = `${options.indent ?? ''}${describeRun(run)}${options.also?.() ?? ''}`;
    if (run.phase === 'done' || run.phase === 'blocked' || run.phase === 'cancelled') {
      const last = run.blocked === undefined ? describeOutcome(run) : `Blocked: ${run.blocked}`;
      if (options.quiet !== true) progress.end(last === undefined ? line : `${line}\n${options.indent ?? ''}${last}`);
      return run;
    }
    if (options.quiet !== true) progress.show(line);
    await sleep(pollMs);
  }
}
