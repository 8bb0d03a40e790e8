/** Following a run to its end, with a bar, its rate and the time that is left. */
import { formatSeconds, mustBeOk, openProgress, progressLine, type Api } from './support.ts';

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
  readonly retrying?: string;
  readonly createdAt: string;
  readonly doneAt?: string;
}

const pollMs = 250;

export function describeRun(run: RunProgress): string {
  const sum = (name: 'total' | 'done') => run.columns.reduce((n, column) => n + column[name], 0);
  const [done, total] = [sum('done'), sum('total')];
  const format = (n: number) => n.toLocaleString('en-US');
  const details = [
    total === 0 ? '' : `${format(done)} of ${format(total)} values`,
    run.rowsPerSecond === undefined ? '' : `${format(run.rowsPerSecond)}/s`,
    run.etaSeconds === undefined ? '' : `${formatSeconds(run.etaSeconds)} left`,
    run.retrying === undefined ? '' : `trying again: ${run.retrying}`,
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

/** Polls until the run is done or blocked; `also` adds to the line what else is going on. */
export async function followRun(
  api: Api,
  id: string,
  options: { quiet?: boolean; indent?: string; also?: () => string } = {},
): Promise<RunProgress> {
  const progress = openProgress();
  for (;;) {
    const path = `/v1/rotations/${id}`;
    const run = mustBeOk(await api.call({ name: 'operator' }, 'GET', path)) as unknown as RunProgress;
    const line = `${options.indent ?? ''}${describeRun(run)}${options.also?.() ?? ''}`;
    if (run.phase === 'done' || run.phase === 'blocked') {
      if (options.quiet !== true) progress.end(run.blocked === undefined ? line : `${line}\nBlocked: ${run.blocked}`);
      return run;
    }
    if (options.quiet !== true) progress.show(line);
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}
