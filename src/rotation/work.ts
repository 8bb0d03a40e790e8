/**
 * What a run does to the rows of a column, by its kind. Pure.
 *
 *     kind           rows that it is about                              what it makes of them
 *     rotation       the value is of an older version                   sealed under the active one
 *     adoption       plaintext; or the source is filled and the         sealed
 *                    column is null
 *     verification   source and column are filled                       compared, nothing is written
 *     finish         the source is filled                               sealed first if it is not, compared, source null
 *     undo           an envelope (and the source is null)               opened into the source
 *     leave          source and column are filled                       compared, column null
 *
 * The source of a column is where its plaintext stands: another column, or, in place, the column itself.
 */
import type { KeyFamily, KeyState } from '../keys/version.ts';
import type { RegisteredColumn } from '../policy/policy.ts';

/** About one column, begun by a person. */
export type ColumnKind = 'verification' | 'finish' | 'undo' | 'leave';
export type RunKind = 'rotation' | 'adoption' | ColumnKind;

/** Of a run, what says which columns it is about. */
export interface About {
  readonly kind: RunKind;
  readonly family?: string;
  readonly table?: string;
  readonly column?: string;
  readonly source?: string;
}

/** Rows of a column that something is to be done to: all of this is so. */
export interface Stale {
  readonly column: string;
  /** Versions of its value (0: plaintext), or that it is null, an envelope of whatever version, or anything. */
  readonly value: readonly number[] | 'null' | 'envelope' | 'any';
  readonly source?: { readonly column: string; readonly filled: boolean };
  readonly tenants?: readonly string[];
}

/** The columns that a run is about, as they are to be worked on: where `undo` puts the plaintext is their source. */
export function columnsOf(catalog: { readonly columns: readonly RegisteredColumn[] }, run: About): RegisteredColumn[] {
  if (run.kind === 'adoption') return catalog.columns.filter((column) => column.adopt);
  if (run.kind === 'rotation') return catalog.columns.filter((column) => column.class === run.family);
  return catalog.columns
    .filter(({ address, column }) => address === run.table && column === run.column)
    .map(({ from, sealed, ...column }) => ({
      ...column,
      ...(run.source !== undefined && { from: run.source }),
      ...(sealed !== undefined && run.source === from && { sealed }), // another source holds what we opened
    }));
}

/** Versions of a family that are to be brought up to the active one. */
export function staleVersions(state: KeyState, name: string): number[] {
  const family: KeyFamily | undefined = state.families.get(name);
  if (family?.active === undefined) return [];
  const { active } = family;
  const old = [...family.versions.values()].filter((each) => each.version < active && each.state !== 'destroyed');
  return old.map((each) => each.version);
}

/** Plaintext that waits to be adopted. */
export function unadopted({ column, adopt, from, tenants }: RegisteredColumn): Stale[] {
  if (!adopt) return [];
  const whose = tenants === undefined ? {} : { tenants };
  if (from === undefined) return [{ column, value: [0], ...whose }];
  return [{ column, value: 'null', source: { column: from, filled: true }, ...whose }];
}

/** Rows that a run has to do something to; of a verification, rows that it looks at. */
export function staleOf(state: KeyState, run: About, column: RegisteredColumn): Stale[] {
  const { column: name, from, tenants } = column;
  const whose = tenants === undefined ? {} : { tenants };
  switch (run.kind) {
    case 'rotation': {
      const versions = staleVersions(state, column.class);
      const old: Stale[] = versions.length === 0 ? [] : [{ column: name, value: versions }];
      return from === undefined ? [...unadopted(column), ...old] : old;
    }
    case 'adoption':
      return unadopted(column);
    case 'finish': {
      const both: Stale = { column: name, value: 'envelope', source: { column: from!, filled: true }, ...whose };
      return [...unadopted({ ...column, adopt: true }), both];
    }
    case 'verification':
    case 'leave':
      return [{ column: name, value: 'envelope', source: { column: from!, filled: true } }];
    case 'undo':
      if (from === undefined) return [{ column: name, value: 'envelope' }];
      return [unopened(column)];
  }
}

/** Rows whose source holds something, whatever stands beside it. */
export function sourced({ column, from, tenants }: RegisteredColumn): Stale {
  const whose = tenants === undefined ? {} : { tenants };
  return { column, value: 'any', source: { column: from!, filled: true }, ...whose };
}

/** Envelopes without plaintext beside them. */
export function unopened({ column, from }: RegisteredColumn): Stale {
  return { column, value: 'envelope', source: { column: from!, filled: false } };
}

/** The columns that a run changes of one that it is about; the others are only compared. */
export function writtenBy(kind: RunKind, { column, from, index }: RegisteredColumn): string[] {
  const own = [column, ...index.map((each) => each.column)];
  const source = from === undefined ? [] : [from];
  switch (kind) {
    case 'rotation':
    case 'adoption':
    case 'leave':
      return own;
    case 'finish':
      return [...own, ...source];
    case 'undo':
      return from === undefined ? own : source;
    case 'verification':
      return [];
  }
}
