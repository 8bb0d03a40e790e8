/** How far a run is, as the API and the commands show it. */
import type { Queryable } from '../db.ts';
import { searchTokenTtlMs } from './plan.ts';
import { findRangeError, listProgress, type ColumnProgress } from './range-store.ts';
import type { Run } from './store.ts';

export interface RunView {
  readonly id: string;
  readonly kind: 'rotation' | 'adoption';
  readonly family?: string;
  readonly version?: number;
  readonly phase: string;
  readonly columns: readonly (ColumnProgress & { readonly left: number })[];
  readonly rowsPerSecond?: number;
  readonly etaSeconds?: number;
  readonly waitingFor?: string;
  readonly blocked?: string;
  /** What failed last and is being tried again. */
  readonly retrying?: string;
  readonly pass: number;
  readonly reason?: string;
  readonly requestedBy: string;
  readonly createdAt: Date;
  readonly activatedAt?: Date;
  readonly doneAt?: Date;
}

function waitingFor(run: Run): string | undefined {
  if (run.phase === 'pending') return 'every instance to hold the new key';
  if (run.phase === 'active' && run.blocked !== undefined) return run.blocked;
  if (run.phase !== 'active' || run.pendingAt === undefined) return undefined;
  const ms = searchTokenTtlMs - (run.now.getTime() - run.pendingAt.getTime());
  return ms > 0 ? `search tokens of the old version to expire, ${Math.ceil(ms / 1000)} s` : undefined;
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
  const end = run.doneAt ?? run.now;
  const seconds = run.plannedAt === undefined ? 0 : (end.getTime() - run.plannedAt.getTime()) / 1000;
  const rate = seconds > 0 && done > 0 ? done / seconds : undefined;
  const waiting = waitingFor(run);
  const error = run.unfinishedRanges > 0 ? await findRangeError(db, run.id) : undefined;
  return {
    id: run.id,
    kind: run.kind,
    phase: run.phase,
    columns,
    pass: run.pass,
    requestedBy: run.requestedBy,
    createdAt: run.createdAt,
    ...(run.family !== undefined && { family: run.family }),
    ...(run.version !== undefined && { version: run.version }),
    ...(run.phase === 're-encrypting' && rate !== undefined && { rowsPerSecond: Math.round(rate) }),
    ...(run.phase === 're-encrypting' && rate !== undefined && { etaSeconds: Math.ceil(left / rate) }),
    ...(waiting !== undefined && { waitingFor: waiting }),
    ...(error !== undefined && { retrying: `a range of ${error.table} failed with ${error.error}` }),
    ...(run.blocked !== undefined && run.phase !== 'done' && { blocked: run.blocked }),
    ...(run.reason !== undefined && { reason: run.reason }),
    ...(run.activatedAt !== undefined && { activatedAt: run.activatedAt }),
    ...(run.doneAt !== undefined && { doneAt: run.doneAt }),
  };
}
