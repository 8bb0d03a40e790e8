/**
 * Destroys a key version: afterwards no copy of its wrapped data keys, from whatever dump, opens by any means.
 *
 *     checked     the state, oldest first, no rotation under way, no root key that could have been copied out
 *     counted     writers waited out, then every registered column: one value of this version, or one that cannot be
 *                 counted, and nothing is destroyed
 *     destroyed   at the keeper of root keys, which confirms it
 *     recorded    state, deleted data keys and audit entry in one transaction
 *
 * Root keys go first and the record follows: if we die between the two, the same call finds the keeper done and records.
 */
import { randomUUID } from 'node:crypto';
import { formatEntry } from '../audit/entry.ts';
import { waitOutIntake } from '../audit/store.ts';
import { FieldkeepError } from '../errors.ts';
import type { RootKeys } from '../keys/root-keys.ts';
import { raiseEpoch, setDestroyed } from '../keys/store.ts';
import type { KeyFamily, KeyVersion } from '../keys/version.ts';
import { loadCatalog } from './catalog.ts';
import { countVersions, waitOutWriters } from './census.ts';
import { appendAlways } from './entries.ts';
import type { Workshop } from './scan.ts';
import { findUnfinished } from './store.ts';
import { databaseOf } from './targets.ts';

const waitOutMaxMs = 10_000;

export interface Destruction {
  readonly family: string;
  readonly version: number;
  /** Who asked, and why; both go to the audit log. */
  readonly by: string;
  readonly reason: string;
}

type DestroyShop = Pick<Workshop, 'pool' | 'targets' | 'keyring' | 'audit' | 'policy'> & {
  readonly rootKeys: RootKeys;
};

function conflict(detail: string): FieldkeepError {
  return new FieldkeepError('conflict', detail);
}

/** The version, if its turn has come. Errors: `class_unknown`, `version_unknown`, `conflict`. */
function checkTurn(found: KeyFamily | undefined, { family, version }: Destruction): KeyVersion {
  if (found === undefined) throw new FieldkeepError('class_unknown', `There is no key family ${family}.`);
  const asked = found.versions.get(version);
  if (asked === undefined) throw new FieldkeepError('version_unknown', `Family ${family} has no version ${version}.`);
  if (asked.state === 'active' || asked.state === 'pending') {
    throw conflict(`Version ${version} of family ${family} is ${asked.state}: rotate first.`);
  }
  // A compromised version may be the last one: nothing that follows says how far its root key may go.
  if (found.active === undefined) throw conflict(`Family ${family} has no active version: rotate first.`);
  const older = [...found.versions.values()].find((each) => each.version < version && each.state !== 'destroyed');
  if (older === undefined) return asked;
  throw conflict(`Versions are destroyed oldest first: version ${older.version} of family ${family} still stands.`);
}

/** Everything below the oldest root key version that a remaining version is wrapped under can go. */
function findFloor(family: KeyFamily, version: KeyVersion): number {
  const remaining = [...family.versions.values()].filter((each) => each.version > version.version);
  const floor = Math.min(...remaining.map((each) => each.transitVersion));
  if (floor > version.transitVersion) return floor;
  throw conflict(`A later version of family ${family.family} is wrapped under an older root key version.`);
}

/** Errors: `conflict` naming the first column that holds the version, or cannot be counted. */
async function mustBeUnused(shop: DestroyShop, { family, version }: Destruction): Promise<void> {
  const columns = shop.policy.columns.filter((column) => column.class === family);
  const catalog = await loadCatalog(shop.targets, columns);
  for (const { address, column } of columns) {
    const table = catalog.tables.get(address);
    if (table === undefined) throw conflict(catalog.problems.get(address) ?? `Table ${address} cannot be counted.`);
    const db = databaseOf(shop, table);
    if (!(await waitOutWriters(db, table, waitOutMaxMs))) {
      throw conflict(`A transaction that writes to ${address} is open: it may hold a value of version ${version}.`);
    }
    const { counts } = await countVersions(db, table, column);
    const held = counts.get(version) ?? 0;
    if (held > 0) throw conflict(`Column ${column} of ${address} holds ${held} values of version ${version}.`);
    const malformed = counts.get(-1) ?? 0;
    if (malformed > 0) {
      throw conflict(
        `Column ${column} of ${address} holds ${malformed} malformed envelopes, whose version nobody knows.`,
      );
    }
  }
}

function entryLine({ family, version, by, reason }: Destruction, error?: FieldkeepError): { line: string } {
  return {
    line: formatEntry({
      v: 1,
      time: new Date().toISOString(),
      requestId: randomUUID(),
      action: 'destroy',
      person: by,
      class: family,
      keyVersion: version,
      purpose: reason,
      decision: 'allow',
      outcome: error === undefined ? 'ok' : 'failed',
      ...(error !== undefined && { code: error.code }),
    }),
  };
}

/** Errors: `conflict` while it is in use, `vault_unavailable`; each leaves an entry, and nothing is recorded as destroyed. */
export async function destroyVersion(shop: DestroyShop, asked: Destruction): Promise<void> {
  await shop.keyring.refresh();
  const family = shop.keyring.state.families.get(asked.family);
  const version = checkTurn(family, asked);
  if (version.state === 'destroyed') return;
  try {
    const rotating = await findUnfinished(shop.pool, asked.family);
    if (rotating !== undefined) throw conflict(`Family ${asked.family} is rotating (${rotating.id}).`);
    const floor = findFloor(family!, version);
    await mustBeUnused(shop, asked);
    await shop.rootKeys.destroyBelow(asked.family, floor);
  } catch (error) {
    if (error instanceof FieldkeepError) await appendAlways(shop, [entryLine(asked, error)]);
    throw error;
  }
  await appendAlways(shop, [entryLine(asked)], async (tx) => {
    await setDestroyed(tx, asked.family, asked.version);
    await raiseEpoch(tx);
  });
  await waitOutIntake(shop.pool);
  await shop.keyring.refresh();
}
