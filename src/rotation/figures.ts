/** Runs under way and dates to come as figures for metrics. Labels are names of the policy and phases: closed lists. */
import type { Queryable } from '../db.ts';
import type { KeyState } from '../keys/version.ts';
import { viewRun, type RunView } from './progress.ts';
import { listUnfinished } from './store.ts';

const column = ['run', 'table', 'column', 'state'] as const;
const run = ['run'] as const;

/** What there is to be seen; a run is named by its family, or `adoption`. */
export const rotationFigures = {
  rotation_phase: { text: '1 for the phase that a run is in.', labels: ['run', 'phase'] },
  rotation_values: { text: 'Values of a run by column: done, left, failed.', labels: column },
  rotation_values_per_second: { text: 'Values brought up to date per second, smoothed.', labels: run },
  rotation_eta_seconds: { text: 'Seconds until the values that are left are done, at this rate.', labels: run },
  rotation_throttled: { text: '1 while something slows the run down: status says what.', labels: run },
  rotation_next_seconds: {
    text: 'Seconds until the next rotation is due by schedule; negative: overdue.',
    labels: run,
  },
} as const;

export interface Figure {
  readonly name: keyof typeof rotationFigures;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

function figuresOf(view: RunView): Figure[] {
  const run = view.family ?? view.kind;
  const figures: Figure[] = [
    { name: 'rotation_phase', labels: { run, phase: view.phase }, value: 1 },
    { name: 'rotation_throttled', labels: { run }, value: view.throttle === undefined ? 0 : 1 },
    { name: 'rotation_values_per_second', labels: { run }, value: view.rowsPerSecond ?? 0 },
  ];
  if (view.etaSeconds !== undefined) {
    figures.push({ name: 'rotation_eta_seconds', labels: { run }, value: view.etaSeconds });
  }
  for (const { table, column, ...counts } of view.columns) {
    for (const state of ['done', 'left', 'failed'] as const) {
      figures.push({ name: 'rotation_values', labels: { run, table, column, state }, value: counts[state] });
    }
  }
  return figures;
}

/** Errors: those of the database. */
export async function readFigures(db: Queryable, state: KeyState): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const unfinished of await listUnfinished(db)) figures.push(...figuresOf(await viewRun(db, unfinished)));
  for (const { family, nextRotationAt } of state.families.values()) {
    if (nextRotationAt === undefined) continue;
    const value = Math.round((nextRotationAt.getTime() - Date.now()) / 1000);
    figures.push({ name: 'rotation_next_seconds', labels: { run: family }, value });
  }
  return figures;
}
