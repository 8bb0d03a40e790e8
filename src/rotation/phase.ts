/**
 * The phase that a run is in, derived from what is stored; what it waits for, and how gently it works. Pure.
 *
 *     pending → active → re-encrypting → verifying → done
 *                                      ↘ blocked (rows that do not open; says what to do)
 *     paused, cancelled: by a person, from any of them
 */
import { freshMaxMs } from '../audit/log.ts';
import type { KeyFamily } from '../keys/version.ts';
import { joinLimits, liftLimits, type RotationLimits } from '../policy/limits.ts';
import type { Policy, RegisteredColumn } from '../policy/policy.ts';
import type { RunKind } from './work.ts';

/**
 * How long an answer of search-tokens holds. Re-encrypting waits this long after the new version's tokens are answered,
 * so that nobody searches with the old tokens alone while rows get new ones.
 */
export const searchTokenTtlMs = 10_000;

/** A census before the last answer has left could miss an envelope that is on its way. The second is for clocks. */
export const handOverMs = freshMaxMs + 1_000;

export type Phase = 'pending' | 'active' | 're-encrypting' | 'verifying' | 'blocked' | 'paused' | 'done' | 'cancelled';

export interface RunState {
  readonly kind: RunKind;
  readonly activatedAt?: Date;
  readonly plannedAt?: Date;
  readonly unfinishedRanges: number;
  readonly blocked?: string;
  readonly pausedAt?: Date;
  readonly doneAt?: Date;
  readonly cancelled?: string;
}

export function phaseOf(run: RunState): Phase {
  if (run.doneAt !== undefined) return run.cancelled === undefined ? 'done' : 'cancelled';
  if (run.pausedAt !== undefined) return 'paused';
  if (run.blocked !== undefined) return 'blocked';
  if (run.kind === 'rotation' && run.activatedAt === undefined) return 'pending';
  if (run.plannedAt === undefined) return 'active';
  return run.unfinishedRanges > 0 ? 're-encrypting' : 'verifying';
}

/** How gently the columns are worked on: as the strictest of their classes says, or as an emergency needs it. */
export function limitsOf(
  policy: Policy,
  run: { readonly compromised: boolean },
  columns: readonly RegisteredColumn[],
): RotationLimits {
  const names = [...new Set(columns.map((column) => column.class))];
  const limits = joinLimits(names.flatMap((name) => policy.classes.get(name)?.rotation ?? []));
  return run.compromised ? liftLimits(limits) : limits;
}

/** Whether rotating a family must wait for search tokens to expire. */
export function isSearchable(family: KeyFamily | undefined): boolean {
  return [...(family?.versions.values() ?? [])].some((version) => version.indexes.length > 0);
}
