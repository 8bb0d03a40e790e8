/**
 * Key versions and what their state allows (the words of NIST SP 800-57):
 *
 *     pending → active → decrypt-only → destroyed,   compromised from active or decrypt-only
 *
 * A KeyState is one consistent picture of all families, read in one statement together with its epoch: whatever is
 * answered from it commits only while that epoch stands. Pure.
 */
import { FieldkeepError } from '../errors.ts';
import type { Normalise } from '../crypto/blind-index.ts';
import type { Epoch } from './epoch.ts';

/** The internal family of digest keys; no class may use the name. */
export const auditFamily = 'audit';

export type VersionState = 'pending' | 'active' | 'decrypt-only' | 'compromised' | 'destroyed';

/** A blind index as it was registered when the version was made. `table` is the address that contexts use. */
export interface VersionIndex {
  readonly table: string;
  readonly column: string;
  readonly name: string;
  readonly bits: number;
}

export interface KeyVersion {
  readonly family: string;
  readonly version: number;
  readonly state: VersionState;
  /** The root key version that this version's data keys are wrapped under. */
  readonly transitVersion: number;
  readonly bind: 'row' | 'column';
  readonly normalise?: Normalise;
  readonly indexes: readonly VersionIndex[];
  readonly createdAt: Date;
  readonly activatedAt?: Date;
}

export interface KeyFamily {
  readonly family: string;
  readonly active?: number;
  readonly pending?: number;
  readonly versions: ReadonlyMap<number, KeyVersion>;
  readonly nextRotationAt?: Date;
}

export interface KeyState {
  readonly epoch: Epoch;
  readonly families: ReadonlyMap<string, KeyFamily>;
}

/** The version that a rotation of the family makes: one that is pending already is taken up again. */
export function nextVersionOf(family: KeyFamily | undefined): number {
  return family?.pending ?? Math.max(0, ...(family?.versions.keys() ?? [])) + 1;
}

/** Whether the version is compromised: only grants that say so open its values then, and nothing is sealed under it. */
export function isCompromised(state: KeyState, family: string, version: number): boolean {
  return state.families.get(family)?.versions.get(version)?.state === 'compromised';
}

/** The version whose compromise left the family without an active one; undefined when there is one, or never was. */
export function findClosed(family: KeyFamily | undefined): KeyVersion | undefined {
  if (family === undefined || family.active !== undefined) return undefined;
  return [...family.versions.values()].findLast((each) => each.state === 'compromised');
}

/** The family's active version; `keys_not_ready` when there is none yet, or none since the last one was compromised. */
export function getActive(state: KeyState, family: string): KeyVersion {
  const found = state.families.get(family);
  const version = found?.active === undefined ? undefined : found.versions.get(found.active);
  if (version !== undefined) return version;
  const closed = findClosed(found);
  const detail =
    closed === undefined
      ? `Family ${family} has no active key version yet.`
      : `Version ${closed.version} of family ${family} is compromised; version ${nextVersionOf(found)} is on its way.`;
  throw new FieldkeepError('keys_not_ready', detail, { retryAfterSeconds: 1 });
}

/**
 * A version that may still open envelopes; who may, where it is compromised, is the policy's to say. Errors:
 * `version_unknown`, `version_destroyed`.
 */
export function getReadable(state: KeyState, family: string, version: number): KeyVersion {
  const found = state.families.get(family)?.versions.get(version);
  if (found === undefined || found.state === 'pending') {
    throw new FieldkeepError('version_unknown', `Family ${family} has no version ${version}.`);
  }
  if (found.state === 'destroyed') {
    throw new FieldkeepError('version_destroyed', `Version ${version} of family ${family} was destroyed.`);
  }
  return found;
}

/** Versions whose rows a search must still find: everything not destroyed, the pending one included, newest first. */
export function listSearchable(state: KeyState, family: string): KeyVersion[] {
  const versions = [...(state.families.get(family)?.versions.values() ?? [])];
  return versions.filter((each) => each.state !== 'destroyed').sort((a, b) => b.version - a.version);
}

/** The version's index `name` of a column, as it was when the version was made. */
export function findIndexes(version: KeyVersion, table: string, column: string): VersionIndex[] {
  return version.indexes.filter((each) => each.table === table && each.column === column);
}
