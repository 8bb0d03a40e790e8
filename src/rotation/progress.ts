/** How far a run is, as the API, the commands and the metrics show it. */
import type { Queryable } from '../db.ts';
import { handOverMs, searchTokenTtlMs } from './phase.ts';
import { findRangeError, listProgress, type ColumnProgress } from './range-store.ts';
import { present } from '../present.ts';
import type { Prediction, Run } from './store.ts';
import type { RunKind } from './work.ts';

export interface RunView {
  readonly id: string;
  readonly kind: RunKind;
  readonly family?: string;
  readonly version?: number;
  /** The column that gets or loses the plaintext, where that is another one. */
  readonly source?: string;
  readonly phase: string;
  readonly columns: readonly (ColumnProgress & { readonly left: number })[];
  readonly compromised?: true;
  readonly rowsPerSecond?: number;
  readonly etaSeconds?: number;
  readonly waitingFor?: string;
  /** What slows it down, in words. */
  readonly throttle?: string;
  /** What a person has to do. */
  readonly blocked?: string;
  readonly cancelled?: string;
  /** What failed last and is being tried again. */
  readonly retrying?: string;
  readonly waived?: number;
  readonly pass: number;
  readonly policyVersion?: string;
  readonly reason?: string;
  readonly requestedBy: string;
  readonly createdAt: Date;
  readonly activatedAt?: Date;
  readonly doneAt?: Date;
  /** What the last rehearsal before it said. */
  readonly predicted?: Prediction;
  /** What became of it; once it is done. `walBytes`: everybody's writing included. */
  readonly actual?: { readonly values: number; readonly seconds: number; readonly walBytes?: number };
}

function waitingFor(run: Run): string | undefined {
  if (run.phase === 'paused') return 'somebody to resume it';
  const left = (since: Date | undefined, ms: number) =>
    since === undefined ? 0 : Math.ceil((ms - (run.now.getTime() - since.getTime())) / 1000);
  if (run.phase === 'pending' || run.phase === 'active') {
    const seconds = left(run.pendingAt, searchTokenTtlMs);
    if (seconds > 0 && run.searchable) return `search tokens without the new version to expire, ${seconds} s`;
    return run.phase === 'pending' ? 'every instance to hold the new key' : undefined;
  }
  if (run.phase !== 'verifying') return undefined;
  const seconds = left(run.activatedAt, handOverMs);
  return seconds > 0
    ? `answers under the old version to expire, ${seconds} s`
    : 'transactions that write to its tables';
}

function secondsBetween(from: Date | undefined, to: Date): number {
  return from === undefined ? 0 : (to.getTime() - from.getTime()) / 1000;
}

function actualOf(run: Run, values: number): RunView['actual'] {
  if (run.phase !== 'done') return undefined;
  const { walBytes } = run;
  const seconds = Math.round(secondsBetween(run.activatedAt ?? run.createdAt, run.doneAt!));
  return { values, seconds, ...(walBytes !== undefined && { walBytes }) };
}

export async function viewRun(db: Queryable, run: Run): Promise<RunView> {
  const progress = await listProgress(db, run.id);
  // Rows that came after the first pass was planned are done too.
  const columns = progress.map((column) => ({
    ...column,
    total: Math.max(column.total, column.done + column.failed),
    left: run.phase === 'done' ? 0 : Math.max(0, column.total - column.done - column.failed),
  }));
  const done = columns.reduce((sum, column) => sum + column.done, 0);
  const left = columns.reduce((sum, column) => sum + column.left, 0);
  const working = run.phase === 're-encrypting';
  // Before the rate is known, the average since the first pass was planned stands for it.
  const seconds = secondsBetween(run.plannedAt, run.now);
  const rate = working ? (run.rate ?? (seconds > 0 && done > 0 ? done / seconds : undefined)) : undefined;
  const error = run.unfinishedRanges > 0 ? await findRangeError(db, run.id) : undefined;
  return {
    id: run.id,
    kind: run.kind,
    phase: run.phase,
    columns,
    pass: run.pass,
    requestedBy: run.requestedBy,
    createdAt: run.createdAt,
    ...present({
      family: run.family,
      version: run.version,
      source: run.source,
      compromised: run.compromised ? (true as const) : undefined,
      rowsPerSecond: rate === undefined ? undefined : Math.round(rate),
      etaSeconds: rate === undefined || rate === 0 ? undefined : Math.ceil(left / rate),
      waitingFor: waitingFor(run),
      throttle: working ? run.throttle : undefined,
      retrying: error && `a range of ${error.table} failed: ${error.error}`,
      blocked: run.phase === 'blocked' ? run.blocked : undefined,
      cancelled: run.cancelled,
      waived: run.waived === 0 ? undefined : run.waived,
      reason: run.reason,
      policyVersion: run.policy,
      activatedAt: run.activatedAt,
      doneAt: run.doneAt,
      predicted: run.predicted,
      actual: actualOf(run, done),
    }),
  };
}
