/**
 * When a version that was followed may be given up for good. Pure: from what is known and the clock, what is still missing
 * and when it will be there.
 *
 *     successor active ── handoffMax ──▶ guard on every column ── backupHorizon ──▶ ┐
 *     last used ── unreadFor ─────────────────────────────────────────────────────▶ ┴ may be destroyed, oldest first
 *
 * Applications hold envelopes for up to handoffMax; what they store later a guard refuses. What backups hold of the rows
 * opens until backupHorizon after that.
 */
import type { RetireRule } from '../policy/limits.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { addDuration } from '../policy/schedule.ts';
import type { KeyFamily, KeyVersion } from '../keys/version.ts';
import type { StoredSearch } from './retire-store.ts';

/** A registered column, and the guard that stands on it. */
export interface ColumnFact {
  readonly table: string;
  readonly column: string;
  /** It lets in this version and later ones, and has stood since `validatedAt`. */
  readonly guard?: { readonly version: number; readonly validatedAt: Date; readonly definition?: string };
  /** What keeps it from being guarded, in a sentence. */
  readonly problem?: string;
}

export interface RetireFacts {
  readonly now: Date;
  readonly family: KeyFamily;
  readonly version: number;
  readonly rule: RetireRule;
  readonly columns: readonly ColumnFact[];
  /** By a request. */
  readonly lastUsedAt?: Date;
  /** When the last rotation of the family was done. */
  readonly doneAt?: Date;
  /** Of the family, the one that is under way: its id. */
  readonly rotation: string | undefined;
  /** What the last search for envelopes in unregistered columns came to; it is made anew right before the end. */
  readonly undeclared?: StoredSearch;
}

export interface Missing {
  readonly kind: 'turn' | 'rotation' | 'guard' | 'backups' | 'reads' | 'undeclared';
  /** In a few words. */
  readonly what: string;
  /** When it will be there, where time alone brings it. */
  readonly until?: Date;
}

/** A column that holds plaintext in its place of the envelope, rightly, until it is adopted. */
export function letsPlaintextIn({ adopt, from }: RegisteredColumn): boolean {
  return adopt && from === undefined;
}

/** The version that ended a version's life as the active one; undefined while it has not. */
function successorOf(family: KeyFamily, version: number): KeyVersion | undefined {
  return [...family.versions.values()].find((each) => each.version > version && each.activatedAt !== undefined);
}

/** When a version's columns are guarded: no application may hold an envelope of it any more. */
export function guardDate(family: KeyFamily, version: number, rule: RetireRule): Date | undefined {
  const sealedUntil = successorOf(family, version)?.activatedAt;
  return sealedUntil === undefined ? undefined : addDuration(sealedUntil, rule.handoffMax);
}

/** The version below which guards are due: the newest whose predecessors' time is over. Undefined when there is none. */
export function guardVersion(family: KeyFamily, rule: RetireRule, now: Date): number | undefined {
  const due = [...family.versions.values()].filter(({ version, activatedAt }) => {
    if (version < 2 || activatedAt === undefined || version > (family.active ?? 0)) return false;
    return addDuration(activatedAt, rule.handoffMax) <= now;
  });
  return due.at(-1)?.version;
}

const minute = (date: Date) => `${date.toISOString().slice(0, 16).replace('T', ' ')} UTC`;

function turn({ family, version, rotation }: RetireFacts): Missing[] {
  const older = [...family.versions.values()].find((each) => each.version < version && each.state !== 'destroyed');
  return [
    ...(older === undefined ? [] : [{ kind: 'turn', what: `version ${older.version} to be destroyed first` } as const]),
    ...(family.active === undefined ? [{ kind: 'turn', what: 'an active version' } as const] : []),
    ...(rotation !== undefined
      ? [{ kind: 'rotation', what: 'the end of the rotation that is under way' } as const]
      : []),
  ];
}

function guards({ columns, family, version, rule, now }: RetireFacts): Missing[] {
  const from = guardDate(family, version, rule);
  return columns.flatMap(({ table, column, guard, problem }): Missing[] => {
    if (guard !== undefined && guard.version > version) return [];
    const what = `a guard on ${table}.${column}`;
    if (problem !== undefined) return [{ kind: 'guard', what: `${what} (${problem})` }];
    if (from === undefined || from <= now) return [{ kind: 'guard', what }];
    return [{ kind: 'guard', what: `${what} (handoffMax ${rule.handoffMax})`, until: from }];
  });
}

/**
 * Since when no row of the version has been there: by the guards; without them, by the last rotation that counted none;
 * undefined where neither says so yet.
 */
export function goneSince({ columns, version, doneAt }: RetireFacts, withoutGuards: boolean): Date | undefined {
  const since = columns.map(({ guard }) =>
    guard !== undefined && guard.version > version ? guard.validatedAt : doneAt,
  );
  const known = since.filter((each) => each !== undefined);
  if (known.length < since.length) return undefined;
  const isGuarded = columns.every(({ guard }) => guard !== undefined && guard.version > version);
  if (!isGuarded && !withoutGuards) return undefined;
  return new Date(Math.max(...known.map((each) => each.getTime()), 0));
}

function backups(facts: RetireFacts, withoutGuards: boolean): Missing[] {
  const { now, rule, family, version } = facts;
  const due = guardDate(family, version, rule);
  const expected = due === undefined || due < now ? now : due;
  const until = addDuration(goneSince(facts, withoutGuards) ?? expected, rule.backupHorizon);
  if (until <= now) return [];
  return [
    { kind: 'backups', what: `the end of backups that hold its rows (backupHorizon ${rule.backupHorizon})`, until },
  ];
}

/** A version that was never used counts from when its successor became active. */
function reads({ family, version, rule, lastUsedAt, now }: RetireFacts): Missing[] {
  const followed = successorOf(family, version)?.activatedAt;
  const since = Math.max(lastUsedAt?.getTime() ?? 0, followed?.getTime() ?? 0);
  const until = addDuration(new Date(since), rule.unreadFor);
  if (since > 0 && until <= now) return [];
  const what = `nobody to use it for ${rule.unreadFor} (unreadFor)`;
  return [{ kind: 'reads', what, ...(since > 0 && { until }) }];
}

/** What a version lacks before it may be destroyed, but for what only counting shows. Empty: nothing. */
export function listMissing(facts: RetireFacts, withoutGuards = false): Missing[] {
  return [...turn(facts), ...guards(facts), ...backups(facts, withoutGuards), ...reads(facts)];
}

/** What a waiver covers: guards that are not there, and columns that nobody has looked through. */
export function isWaivable({ kind }: Missing): boolean {
  return kind === 'guard' || kind === 'undeclared';
}

export function describeMissing({ what, until }: Missing): string {
  return until === undefined ? what : `${what} by ${minute(until)}`;
}
