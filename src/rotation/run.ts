/**
 * Takes runs further. `advance` may be called at any moment, by any process, as often as one likes: it looks at what is
 * stored, does what comes next, and returns. Nothing is remembered between calls.
 *
 *     pending        root key rotated, version v+1 and its data keys made, every living instance can use them, and every
 *                    search knows its tokens
 *     active         v+1 active and v decrypt-only in one transaction; answers under the old epoch are refused from here
 *     re-encrypting  ranges planned (pass.ts), worked through by jobs (range.ts)
 *     verifying      writers waited out, then counted (pass.ts): nothing left is done, what cannot be proven is blocked
 */
import { waitOutIntake } from '../audit/store.ts';
import { findRefusal, sqlState, type Client } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { versionSettings } from '../keys/families.ts';
import { countUnready } from '../keys/instance-store.ts';
import { canaryTenant } from '../keys/instances.ts';
import { mirrorVersion, mustBeKnown } from '../keys/mirror.ts';
import type { RootKeys } from '../keys/root-keys.ts';
import {
  activateVersion,
  insertVersion,
  listTenantsLacking,
  raiseEpoch,
  setCompromised,
  setNextRotation,
} from '../keys/store.ts';
import { findClosed } from '../policy/limits.ts';
import { addDuration } from '../policy/schedule.ts';
import { loadCatalog } from '../targets/catalog.ts';
import { appendInForce, phaseLine } from './entries.ts';
import { mayWork, NotInForce } from './in-force.ts';
import { mustGoOn } from './control-store.ts';
import { block, findProblem, listTables, planPass, verify } from './pass.ts';
import { handOverMs, isSearchable, limitsOf, searchTokenTtlMs } from './phase.ts';
import { findRangeError, listUnfinishedTables } from './range-store.ts';
import type { Workshop } from './scan.ts';
import {
  claimRun,
  clearBlocked,
  findRun,
  listUnfinished,
  releaseRun,
  setActivated,
  setBlocked,
  setPending,
  setThrottle,
  type Run,
} from './store.ts';
import { columnsOf } from './work.ts';

export interface DriverShop extends Workshop {
  readonly rootKeys: RootKeys;
}

const claimMs = 60_000;
/** A blocked run is looked at again this often: somebody may have mended the rows. Without version indexes that costs more. */
const lookAgainMs = 30_000;
const lookAgainUnindexedMs = 300_000;
/** While an application goes on writing plaintext, an adoption comes back for it this often. */
const trickleMs = 5_000;
const uniqueViolation = '23505';

/** Rotates the root key and records v+1. A crash in between costs an unused root key version, nothing else. */
async function makeVersion(shop: DriverShop, run: Run, family: string, version: number): Promise<void> {
  await mustBeKnown(shop.pool, family);
  const transitVersion = await shop.rootKeys.rotate(family);
  const made = { family, version, state: 'pending', transitVersion, ...versionSettings(shop.policy, family) } as const;
  try {
    await appendInForce(shop, [phaseLine(run, 'pending')], async (tx: Client) => {
      await mustGoOn(tx, run.id);
      await insertVersion(tx, made);
      await raiseEpoch(tx);
    });
  } catch (error) {
    if (sqlState(error) !== uniqueViolation) throw error; // another process was first
  }
}

/**
 * Whether nobody searches any more with tokens that lack the version: else what an application writes under it, or a row
 * that is re-encrypted, would be missed. An emergency does not wait to activate, for until then nothing is encrypted; it
 * waits to re-encrypt.
 */
function areTokensKnown(shop: DriverShop, run: Run, family: string): boolean {
  if (!isSearchable(shop.keyring.state.families.get(family))) return true;
  return run.pendingAt !== undefined && msSince(run, run.pendingAt) >= searchTokenTtlMs;
}

/**
 * Into the mirrors of the family's targets, so that sealing goes on there after the activation. An emergency does not wait
 * for a target that is away: what is sealed there meanwhile waits for its mirror.
 */
async function mirrorKeys(shop: DriverShop, run: Run, made: { family: string; version: number }): Promise<void> {
  try {
    await mirrorVersion(shop.pool, (target) => shop.targets.find(target), shop.policy, made);
  } catch (error) {
    if (!run.compromised || !(error instanceof FieldkeepError) || error.code !== 'keys_not_ready') throw error;
  }
}

/** Makes v+1 ready everywhere and activates it; comes back early while somebody is not ready. */
async function prepareVersion(shop: DriverShop, run: Run, family: string, version: number): Promise<void> {
  await shop.keyring.refresh();
  const known = shop.keyring.state.families.get(family)?.versions.get(version);
  if (known?.state === 'active') {
    // A process died in the middle of it; or the run only brings up to date what came late (watch.ts).
    if (run.pendingAt === undefined) await setPending(shop.pool, run.id);
    return await finishActivation(shop, run);
  }
  if (known === undefined) await makeVersion(shop, run, family, version);
  if (run.pendingAt === undefined) {
    await waitOutIntake(shop.pool);
    await setPending(shop.pool, run.id);
  }
  await shop.keyring.refresh();
  await shop.keyring.getOrMake(canaryTenant, family, version);
  const tenants = await listTenantsLacking(shop.pool, family, version - 1, version);
  for (const tenant of tenants) await shop.keyring.getOrMake(tenant, family, version);
  await mirrorKeys(shop, run, { family, version });
  if ((await countUnready(shop.pool, family, version)) > 0) return;
  if (!run.compromised && !areTokensKnown(shop, run, family)) return;
  await activate(shop, run, family, version);
}

async function activate(shop: DriverShop, run: Run, family: string, version: number): Promise<void> {
  const rotateEvery = shop.policy.classes.get(family)?.rotateEvery;
  await appendInForce(shop, [phaseLine(run, 'activation')], async (tx) => {
    await mustGoOn(tx, run.id);
    if (await activateVersion(tx, family, version)) await raiseEpoch(tx);
    if (run.compromised) await setCompromised(tx, family, version - 1); // mostly the call that asked for it did
    if (rotateEvery !== undefined) await setNextRotation(tx, family, addDuration(new Date(), rotateEvery));
  });
  await finishActivation(shop, run);
}

/**
 * Only now is the version before past: commits that were under way at the activation have ended. What comes later counts
 * from this moment, also when the process that activated did not live to see it.
 */
async function finishActivation(shop: DriverShop, run: Run): Promise<void> {
  await waitOutIntake(shop.pool);
  await setActivated(shop.pool, run.id);
  await shop.keyring.refresh();
}

function msSince(run: Run, at: Date | undefined): number {
  return at === undefined ? 0 : run.now.getTime() - at.getTime();
}

/** With the tables as they are at this moment: a count must not overlook one that is gone. */
async function lookAgain(shop: DriverShop, run: Run): Promise<DriverShop> {
  const { columns } = shop.policy;
  const tables = new Set(columnsOf({ columns }, run).map(({ address }) => address));
  const here = columns.filter(({ address }) => tables.has(address)); // no other target is waited for
  return { ...shop, catalog: await loadCatalog(shop.targets, here) };
}

/** A run of which nothing is left but ranges of tables that cannot be worked on waits for a person. */
async function checkTables(shop: DriverShop, run: Run): Promise<void> {
  const left = await listUnfinishedTables(shop.pool, run.id);
  const isSuspect = left.some((address) => shop.catalog.problems.has(address));
  if (!isSuspect && (await findRangeError(shop.pool, run.id)) === undefined) return;
  const { problems } = (await lookAgain(shop, run)).catalog;
  if (left.length === 0 || left.some((address) => !problems.has(address))) return;
  await block(shop, run, `${problems.get(left[0]!)} It goes on by itself when that is mended.`);
}

async function unblock(shop: DriverShop, run: Run): Promise<void> {
  const tables = listTables(shop, run);
  const isQuick = tables.every(({ table, columns }) => columns.every(({ column }) => table.indexed.has(column)));
  if (msSince(run, run.blockedAt) < (isQuick ? lookAgainMs : lookAgainUnindexedMs)) return;
  const now = await lookAgain(shop, run);
  if (run.unfinishedRanges === 0) return await planPass(now, run);
  if (findProblem(now, run) === undefined) return await clearBlocked(shop.pool, run.id);
  await setBlocked(shop.pool, run.id, run.blocked!); // and is looked at again later
}

async function step(shop: DriverShop, run: Run): Promise<void> {
  const { family, version } = run;
  switch (run.phase) {
    case 'pending':
      await prepareVersion(shop, run, family!, version!);
      return;
    case 'active': {
      if (run.kind === 'rotation' && !areTokensKnown(shop, run, family!)) return;
      await shop.keyring.refresh();
      return await planPass(await lookAgain(shop, run), run);
    }
    case 're-encrypting':
      return await checkTables(shop, run); // the jobs do the rest
    case 'verifying':
      if (run.kind === 'rotation' && msSince(run, run.activatedAt) < handOverMs) return;
      if (run.kind === 'adoption' && run.pass > 2 && msSince(run, run.rateAt) < trickleMs) return;
      return await verify(await lookAgain(shop, run), run);
    case 'blocked':
      return await unblock(shop, run);
    case 'paused':
    case 'done':
    case 'cancelled':
      return;
  }
}

/** What the customer's database is asked in a session that is not fit for it, a person has to mend. */
async function stepOrBlock(shop: DriverShop, run: Run): Promise<void> {
  try {
    await step(shop, run);
  } catch (error) {
    const refused = findRefusal(error);
    if (refused === undefined) throw error;
    const sentence = `${refused.message} It goes on by itself when that is mended.`;
    if (run.blocked === sentence) await setBlocked(shop.pool, run.id, sentence);
    else await block(shop, run, sentence);
  }
}

/**
 * Takes a run one step further, unless another process does or another policy is in force. Answers whether its phase has
 * changed.
 */
export async function advance(shop: DriverShop, id: string): Promise<boolean> {
  if (!(await mayWork(shop))) return false;
  const { version: policy } = shop.policy;
  if (!(await claimRun(shop.pool, id, shop.instanceId, { ms: claimMs, policy }))) return false;
  try {
    const run = await findRun(shop.pool, id);
    if (run === undefined) return false;
    await stepOrBlock(shop, run);
    const after = await findRun(shop.pool, id);
    return after?.phase !== run.phase || after.pass !== run.pass;
  } catch (error) {
    if (error instanceof NotInForce) return false; // whoever has the policy in force goes on
    throw error;
  } finally {
    await releaseRun(shop.pool, id, shop.instanceId);
  }
}

/** Runs whose ranges may be worked on now; of the others it is written down what they wait for. */
export async function listWorkable(shop: Workshop): Promise<string[]> {
  const workable: string[] = [];
  if (!(await mayWork(shop))) return workable;
  for (const run of await listUnfinished(shop.pool)) {
    if (run.phase !== 're-encrypting') continue;
    const closed = findClosed(limitsOf(shop.policy, run, columnsOf(shop.catalog, run)), run.now);
    if (closed === undefined) workable.push(run.id);
    else await setThrottle(shop.pool, run.id, `the hours from ${closed.from} to ${closed.to}, ${closed.zone}`);
  }
  return workable;
}
