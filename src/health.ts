/**
 * Whether this process can take work now. A reason is something that keeps it from answering anybody; what touches one class,
 * or will matter later, is a warning.
 */
import { findBacklog } from './audit/backlog-store.ts';
import { storeWithin } from './audit/stream.ts';
import { findRecentRefusal, findRefusal, sqlState, transaction, type Pool } from './db.ts';
import type { DiskWatch } from './disk.ts';
import { listMirrorWarnings } from './keys/mirror.ts';
import { findClosed } from './keys/version.ts';
import { describeSkew } from './rotation/in-force.ts';
import type { Service } from './service.ts';
import { within } from './within.ts';

export interface Health {
  /** Why the service cannot take work now; empty when it can. */
  readonly reasons: readonly string[];
  /** What is wrong and does not keep it from answering yet. */
  readonly warnings: readonly string[];
}

type Parts = Pick<Service, 'keeper' | 'policy' | 'keyring' | 'pool' | 'audit' | 'draining' | 'standing'>;

interface Findings {
  readonly reasons: string[];
  readonly warnings: string[];
}

const databaseMaxMs = 2_000;
/** A failure of the audit log that nothing was tried after counts for so long. */
const failureMs = 5_000;
const fillMax = 0.8;
/** Entries are put in order twice a second. */
const backlogSecondsMax = 15;
const backlogGroupsMax = 5_000;
const diskFull = '53100';
const mib = 1_048_576;

/** An outage of the keeper of root keys that is shorter than a key's life is a warning: every cached key still works. */
function examineKeys({ keeper, policy, keyring }: Parts, { reasons, warnings }: Findings): void {
  const { problem, lost } = keeper.state();
  if (problem !== undefined) (lost ? reasons : warnings).push(problem);
  for (const name of policy.classes.keys()) {
    if (!keyring.serves(name)) continue;
    const family = keyring.state.families.get(name);
    if (family?.active !== undefined) continue;
    // A compromised version is followed within seconds, and all but encrypting for this one class works meanwhile.
    if (findClosed(family) === undefined) reasons.push(`no active key for ${name}`);
    else warnings.push(`no active key for ${name} until its next version is ready`);
  }
}

class Undone extends Error {}

/** Writes a group to the intake and takes it back. Answers the SQLSTATE that it failed with. */
async function tryIntake({ pool }: Parts): Promise<string | undefined> {
  try {
    await transaction(pool, async (tx) => {
      await storeWithin(tx, '{}');
      throw new Undone();
    });
  } catch (error) {
    if (!(error instanceof Undone)) return sqlState(error) ?? 'no connection';
  }
  return undefined;
}

/** Without its entry nothing is answered. When nobody asks any more, a trial finds out whether it works again. */
async function examineAudit(parts: Parts, { reasons }: Findings): Promise<void> {
  const { failed, fill } = parts.audit.state;
  if (fill > fillMax) reasons.push('the queue of the audit log is nearly full: the database is too slow');
  if (failed === undefined) return;
  const code = performance.now() - failed.at < failureMs ? failed.code : await tryIntake(parts);
  if (code === diskFull) reasons.push('the disk of the database is full: make room there');
  else if (code !== undefined) reasons.push(`audit entries cannot be made durable (${code})`);
}

async function examineDatabase(parts: Parts, findings: Findings): Promise<true> {
  const { pool, policy, keyring } = parts;
  const { reasons, warnings } = findings;
  try {
    if (await keyring.isAhead()) reasons.push('the database was replaced: key state is being loaded again');
    const refused = findRecentRefusal(pool);
    if (refused !== undefined) reasons.push(`the database answers in ${refused.phrase}`);
    const told = await listMirrorWarnings(pool, policy.columns);
    // An empty database beside mirrors that are not empty is one that was lost.
    (keyring.state.families.size === 0 ? reasons : warnings).push(...told);
    warnings.push(...(await describeSkew(pool)));
    const { groups, seconds } = await findBacklog(pool);
    if (seconds > backlogSecondsMax || groups > backlogGroupsMax) {
      const behind = `${groups} ${groups === 1 ? 'group' : 'groups'}, the oldest for ${Math.round(seconds)} s`;
      warnings.push(`audit entries wait to be put in order (${behind}): look for errors in the log of the workers`);
    }
    await examineAudit(parts, findings);
  } catch (error) {
    const refused = findRefusal(error);
    reasons.push(refused === undefined ? 'the database does not answer' : `the database answers in ${refused.phrase}`);
  }
  return true;
}

export async function examine(parts: Parts, watch?: DiskWatch): Promise<Health> {
  const findings: Findings = { reasons: [], warnings: [] };
  const { reasons, warnings } = findings;
  if (parts.draining) reasons.push('draining');
  examineKeys(parts, findings);
  if (parts.standing.outdated !== undefined) reasons.push(parts.standing.outdated);
  const disk = watch?.disk();
  if (disk !== undefined && disk.state !== 'ok') {
    const left = `${Math.floor(disk.freeBytes / mib)} MiB are left on the disk of the state folder`;
    (disk.state === 'full' ? reasons : warnings).push(`${left}: make room there`);
  }
  const asked: Findings = { reasons: [], warnings: [] };
  if ((await within(databaseMaxMs, examineDatabase(parts, asked))) === undefined) {
    return { reasons: [...reasons, 'the database does not answer'], warnings };
  }
  return { reasons: [...reasons, ...asked.reasons], warnings: [...warnings, ...asked.warnings] };
}

const knownMs = 500;

/**
 * Answers what was found at most half a second ago: probes without a credential cost the database no more than that. That the
 * process drains is told at once.
 */
export function shareHealth(parts: Parts, watch?: DiskWatch): () => Promise<Health> {
  let found: Promise<Health> | undefined;
  let until = 0;
  let draining = parts.draining;
  return () => {
    if (found !== undefined && performance.now() < until && parts.draining === draining) return found;
    until = Infinity; // while it is looked, all who ask wait for the same answer
    draining = parts.draining;
    found = examine(parts, watch).finally(() => (until = performance.now() + knownMs));
    return found;
  };
}

/** Of a process with several services: what one lacks, the process lacks. */
export function joinHealth(asks: readonly (() => Promise<Health>)[]): () => Promise<Health> {
  return async () => {
    const found = await Promise.all(asks.map((ask) => ask()));
    const join = (what: keyof Health) => [...new Set(found.flatMap((each) => each[what]))];
    return { reasons: join('reasons'), warnings: join('warnings') };
  };
}

/** Of the metrics. */
export const backlogFigures = {
  audit_unfolded_lag_groups: { text: 'Groups of audit entries that are not put in order yet.', labels: [] },
  audit_unfolded_lag_seconds: { text: 'Since when the oldest of them waits.', labels: [] },
} as const;

export async function readBacklog(
  pool: Pool,
): Promise<{ name: string; labels: Record<string, string>; value: number }[]> {
  const { groups, seconds } = await findBacklog(pool);
  return [
    { name: 'audit_unfolded_lag_groups', labels: {}, value: groups },
    { name: 'audit_unfolded_lag_seconds', labels: {}, value: seconds },
  ];
}
