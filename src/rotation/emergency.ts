/**
 * A family whose key is compromised. Whatever is under way, the active version is closed in the transaction that records
 * the run which replaces it, so nobody waits for an ordinary rotation to end first:
 *
 *     nothing under way        a run for v+1 begins
 *     v+1 not yet active       that run becomes the emergency
 *     v+1 active               its run ends, and one for v+2 begins: what is left of v is its work too
 *
 * Until the next version is active, nothing of the family is encrypted.
 */
import { StaleEpoch } from '../audit/log.ts';
import type { Client } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { raiseEpoch, setCompromised } from '../keys/store.ts';
import { nextVersionOf, type KeyFamily } from '../keys/version.ts';
import { closeRanges, setEmergency, setSuperseded } from './emergency-store.ts';
import { insertRun, type Run } from './store.ts';

/** What an emergency comes to, as things stand. */
export interface Emergency {
  /** Of the run that replaces the version. */
  readonly id: string;
  /** What it makes. */
  readonly version: number;
  /** The run `id` is under way already, and becomes the emergency. */
  readonly joins: boolean;
  /** The run that ends for it. */
  readonly supersedes?: string;
}

/** A rotation that cannot be begun, because another of the family is under way. */
export function inProgress(run: Pick<Run, 'id'>, family: string): FieldkeepError {
  return new FieldkeepError('rotation_in_progress', `Family ${family} is rotating already.`, { rotationId: run.id });
}

/** Errors: `rotation_in_progress` when an emergency of the family waits for its version already. */
export function planEmergency(family: KeyFamily, standing: Run | undefined, id: string): Emergency {
  if (standing === undefined) return { id, version: nextVersionOf(family), joins: false };
  const made = family.versions.get(standing.version!)?.state;
  if (made !== undefined && made !== 'pending') {
    return { id, version: nextVersionOf(family), joins: false, supersedes: standing.id };
  }
  if (standing.compromised) throw inProgress(standing, family.family);
  return { id: standing.id, version: standing.version!, joins: true };
}

/** Who asked, and what they take for compromised. */
interface Alarm {
  readonly family: string;
  readonly reason?: string;
  readonly requestedBy: string;
  /** The versions that were active when the call came and when it is recorded; mostly they are the same. */
  readonly closes: readonly number[];
}

/**
 * Records the emergency, in the transaction of its audit entry; from its commit on, the closed versions seal nothing
 * more. Errors: StaleEpoch when a run began or ended since it was planned: it is to be planned again.
 */
export async function recordEmergency(tx: Client, planned: Emergency, alarm: Alarm): Promise<void> {
  const { id, version, joins, supersedes } = planned;
  const { family, closes, ...asked } = alarm;
  for (const closed of closes) await setCompromised(tx, family, closed);
  await raiseEpoch(tx);
  if (joins) {
    if (!(await setEmergency(tx, id, asked))) throw new StaleEpoch();
    return;
  }
  if (supersedes !== undefined) {
    if (!(await setSuperseded(tx, supersedes, id))) throw new StaleEpoch();
    await closeRanges(tx, supersedes);
  }
  if (!(await insertRun(tx, { id, kind: 'rotation', family, version, compromised: true, ...asked }))) {
    throw new StaleEpoch();
  }
}
