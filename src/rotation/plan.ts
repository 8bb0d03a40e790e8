/**
 * What a run has to do, derived from what is stored. Pure.
 *
 *     pending → active → re-encrypting → verifying → done
 *                                      ↘ blocked (rows that do not open; says what to do)
 */
import type { KeyFamily, KeyState } from '../keys/version.ts';
import type { Policy, RegisteredColumn } from '../policy/policy.ts';

/**
 * How long an answer of search-tokens holds. Re-encrypting waits this long after the new version's tokens are answered,
 * so that nobody searches with the old tokens alone while rows get new ones.
 */
export const searchTokenTtlMs = 10_000;

/** An answer leaves at most 5 s after its entry; a census before that could miss an envelope that is on its way. */
export const handOverMs = 6_000;

export type Phase = 'pending' | 'active' | 're-encrypting' | 'verifying' | 'blocked' | 'done';

export interface RunState {
  readonly kind: 'rotation' | 'adoption';
  readonly activatedAt?: Date;
  readonly plannedAt?: Date;
  readonly unfinishedRanges: number;
  readonly blocked?: string;
  readonly doneAt?: Date;
}

export function phaseOf(run: RunState): Phase {
  if (run.doneAt !== undefined) return 'done';
  if (run.kind === 'rotation' && run.activatedAt === undefined) return 'pending';
  if (run.plannedAt === undefined) return 'active';
  if (run.unfinishedRanges > 0) return 're-encrypting';
  return run.blocked === undefined ? 'verifying' : 'blocked';
}

/** The registered columns that a run brings up to date. */
export function columnsOf(policy: Policy, run: { kind: 'rotation' | 'adoption'; family?: string }): RegisteredColumn[] {
  return policy.columns.filter((column) => (run.kind === 'adoption' ? column.adopt : column.class === run.family));
}

/** Versions of a column that are to be brought up to the active one, 0 (plaintext) where that is adopted. */
export function staleVersions(state: KeyState, column: RegisteredColumn, kind: 'rotation' | 'adoption'): number[] {
  const family: KeyFamily | undefined = state.families.get(column.class);
  const plaintext = column.adopt ? [0] : [];
  if (kind === 'adoption' || family?.active === undefined) return plaintext;
  const { active } = family;
  const old = [...family.versions.values()].filter((each) => each.version < active && each.state !== 'destroyed');
  return [...plaintext, ...old.map((each) => each.version)];
}

/** Whether rotating a family must wait for search tokens to expire. */
export function isSearchable(family: KeyFamily | undefined): boolean {
  return [...(family?.versions.values() ?? [])].some((version) => version.indexes.length > 0);
}
