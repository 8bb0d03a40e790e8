/**
 * Carries out what was agreed to: a key version is destroyed, and afterwards no copy of its wrapped data keys, from whatever
 * dump, opens by any means.
 *
 *     asked       the approval used and the destruction recorded, in one transaction (operations/destroy.ts)
 *     checked     once more, right before the end (evidence.ts): what is not so any more, a late envelope, refuses it for
 *                 good; the version goes on opening
 *     destroyed   at the keeper of root keys, which confirms it
 *     recorded    state, deleted data keys and audit entry in one transaction
 *     certified   copies elsewhere removed, the certificate made and signed
 *
 * Every step may be done by any process: the workers' tick, or an operator's command where only people may trim at Vault.
 * Root keys go first and the record follows: if we die between the two, whoever comes next finds the keeper done, and
 * records. From the keeper's yes on nothing is checked or refused any more.
 *
 * A refusal is final, also for a process that stood still meanwhile. The keeper takes two steps, and the first can be taken
 * back: raise the minimums → is this still ours, and not called off? → trim. Who refuses has the lease, lowers the minimums,
 * and looks once more. Whoever asked before that does not trim any more; who asks later is told no.
 */
import { randomUUID } from 'node:crypto';
import { waitOutIntake } from '../audit/store.ts';
import { formatEntry } from '../audit/entry.ts';
import { canonicalDigest } from '../crypto/canonical.ts';
import { FieldkeepError } from '../errors.ts';
import { listTargets, removeMirrored } from '../keys/mirror.ts';
import { RootKeyError, type RootKeys } from '../keys/root-keys.ts';
import { raiseEpoch, setDestroyed } from '../keys/store.ts';
import { transitKeyName } from '../keys/transit.ts';
import { makeCertificate, signCertificate } from './certificate.ts';
import * as store from './destroy-store.ts';
import type { Destruction } from './destroy-store.ts';
import { appendAlways, appendInForce } from '../rotation/entries.ts';
import { mustGoByIt, NotInForce } from '../rotation/in-force.ts';
import { checkTurn, examineVersion, findFloor, NotNow, type Evidence } from './evidence.ts';
import type { Workshop } from '../rotation/scan.ts';

const waitOutMaxMs = 10_000;
const leaseMs = 15_000;
/** An outage passes; what the keeper refuses to this process, a person has to do. */
const retryMs = 10_000;
const retryRefusedMs = 3_600_000;

export interface DestroyShop extends Workshop {
  readonly rootKeys: RootKeys;
}

/** Who carries it out, in the audit log: the worker where no person is named. */
export type By = { readonly person: string } | undefined;

/** Another process goes on with it. */
class LostLease extends Error {}

function line(
  { id, approval, family, version, reason }: Destruction,
  by: By,
  step: string,
  error?: FieldkeepError,
  requestId: string = randomUUID(),
): { line: string } {
  return {
    line: formatEntry({
      ...{ v: 1, time: new Date().toISOString(), requestId, action: 'destroy', class: family, keyVersion: version },
      ...(by === undefined ? { agent: 'fieldkeep-worker' } : { person: by.person }),
      purpose: `${step} of destruction ${id} under approval ${approval}: ${reason}`,
      decision: 'allow',
      outcome: error === undefined ? 'ok' : 'failed',
      ...(error !== undefined && { code: error.code }),
    }),
  };
}

/** Everything below this version of the root key goes. */
function floorOf({ keyring }: DestroyShop, { family, version }: Destruction): number {
  const known = keyring.state.families.get(family);
  return findFloor(known!, checkTurn(known, family, version));
}

/** Nothing below the floor can be there before the evidence is: then the keeper was asked, and has done it. */
async function isDone(shop: DestroyShop, destruction: Destruction): Promise<boolean> {
  if (destruction.evidence === undefined) return false;
  return (await shop.rootKeys.findOldest(destruction.family)) >= floorOf(shop, destruction);
}

/** The version unwraps again. */
async function keep({ keyring, rootKeys }: DestroyShop, { family, version }: Destruction): Promise<void> {
  await rootKeys.keepFrom(family, keyring.state.families.get(family)!.versions.get(version)!.transitVersion);
}

/** Errors: `conflict` for what is not as it was agreed to, or was called off: then nothing is destroyed. */
async function check(shop: DestroyShop, destruction: Destruction, by: By, driver: string): Promise<void> {
  if (destruction.calledOff !== undefined) throw new FieldkeepError('conflict', destruction.calledOff);
  const evidence = await examineVersion(shop, destruction, waitOutMaxMs, true);
  const agreed = destruction.details as Partial<Evidence>;
  const more = evidence.waived.find((each) => agreed.waived?.includes(each) !== true);
  if (more !== undefined) throw new FieldkeepError('conflict', `What was agreed to does not waive ${more}.`);
  for (const name of ['horizons', 'unregistered'] as const) {
    if (canonicalDigest(evidence[name]) === canonicalDigest(agreed[name])) continue;
    throw new FieldkeepError('conflict', `The policy has changed since it was agreed to: ${name}.`);
  }
  const oldestBefore = await shop.rootKeys.findOldest(destruction.family);
  await appendInForce(shop, [line(destruction, by, 'intent')], async (tx) => {
    if (!(await store.setEvidence(tx, destruction.id, driver, { ...evidence, oldestBefore }))) throw new LostLease();
  });
}

/** False when the keeper has done it after all. Errors: those of the keeper, for then nobody knows yet. */
async function refuse(shop: DestroyShop, destruction: Destruction, by: By, driver: string, error: FieldkeepError) {
  // Somebody may stand between the first step at the keeper and the final one: the version must open again, and stay.
  if (destruction.evidence !== undefined) {
    await keep(shop, destruction);
    if (await isDone(shop, destruction)) return false;
  }
  await appendAlways(shop, [line(destruction, by, 'refusal', error)], async (tx) => {
    if (!(await store.setRefused(tx, destruction.id, driver, error.message))) throw new LostLease();
  });
  return true;
}

async function record(shop: DestroyShop, destruction: Destruction, by: By): Promise<void> {
  const { id, family, version, evidence } = destruction;
  const { kind } = shop.rootKeys;
  const answer = {
    ...{ keeper: kind, key: kind === 'vault' ? transitKeyName(family) : family },
    ...{ oldestBefore: evidence!.oldestBefore, oldestAfter: await shop.rootKeys.findOldest(family) },
  };
  const entry = randomUUID();
  const told = { answer, entry, by: by?.person ?? 'fieldkeep-worker' };
  await appendAlways(shop, [line(destruction, by, 'result', undefined, entry)], async (tx) => {
    if (!(await store.setConfirmed(tx, id, told))) throw new LostLease();
    await setDestroyed(tx, family, version);
    await raiseEpoch(tx);
  });
}

/** The version's wrapped keys go from the mirrors of targets, too. Errors: NotNow naming one that is away. */
async function removeCopies({ targets, policy }: DestroyShop, family: string, version: number): Promise<void> {
  const mirrors = [...listTargets(policy)].filter(([, families]) => families.includes(family)).map(([name]) => name);
  const { left } = await removeMirrored((name) => targets.find(name), mirrors, { family, version });
  const [first] = left.values();
  if (first !== undefined) throw new NotNow(first);
}

/** Asks the keeper. Errors: its own; LostLease when somebody else decides, or it was called off, before the last step. */
async function giveUp(shop: DestroyShop, destruction: Destruction, driver: string): Promise<void> {
  const { id, family } = destruction;
  const mayGoOn = async () => {
    await mustGoByIt(shop);
    if (!(await store.claimLastStep(shop.pool, id, driver, leaseMs))) throw new LostLease();
  };
  try {
    await mayGoOn(); // not even the first step, where somebody else has decided by now
    await shop.rootKeys.destroyBelow(family, floorOf(shop, destruction), mayGoOn);
  } catch (error) {
    // Who may take the first step and not the last, or was told too late that it is over, must not leave the version shut.
    const isOver = async () => {
      const { refusedAt, calledOff } = await store.getDestruction(shop.pool, id);
      return (refusedAt ?? calledOff) !== undefined;
    };
    if (error instanceof NotInForce) await keep(shop, destruction);
    const isRefused = error instanceof RootKeyError && error.refused;
    if (isRefused || (error instanceof LostLease && (await isOver()))) await keep(shop, destruction);
    throw error;
  }
}

/** In the way now, and nothing that speaks against destroying. */
function isPassing(error: unknown): error is NotNow | NotInForce {
  return error instanceof NotNow || error instanceof NotInForce;
}

/** Errors: those of the keeper of root keys. False when it was refused. */
async function destroy(shop: DestroyShop, destruction: Destruction, by: By, driver: string): Promise<boolean> {
  const { id, family, version } = destruction;
  if (!(await isDone(shop, destruction))) {
    let problem: FieldkeepError | undefined;
    try {
      await check(shop, destruction, by, driver);
    } catch (error) {
      const isFinal = error instanceof FieldkeepError && error.code === 'conflict' && !isPassing(error);
      if (!isFinal) throw error;
      problem = error;
    }
    if (problem === undefined) await giveUp(shop, destruction, driver);
    else if (await refuse(shop, destruction, by, driver, problem)) return false;
  }
  await record(shop, await store.getDestruction(shop.pool, id), by);
  await waitOutIntake(shop.pool);
  await shop.keyring.refresh();
  return shop.keyring.state.families.get(family)?.versions.get(version)?.state === 'destroyed';
}

async function certify(shop: DestroyShop, id: string): Promise<void> {
  const destruction = await store.getDestruction(shop.pool, id);
  if (destruction.copiesRemovedAt === undefined) {
    await removeCopies(shop, destruction.family, destruction.version);
    await store.setCopiesRemoved(shop.pool, id);
  }
  const text = await makeCertificate(shop.pool, destruction);
  await signCertificate(shop.pool, shop.rootKeys, id, text);
}

/** What keeps it from its end, as people are told, and when it is worth another try. */
function describeHold({ family, version, destroyedAt, calledOff }: Destruction, error: RootKeyError) {
  if (!error.refused) return { problem: error.message, retryMs };
  const verb = calledOff === undefined ? 'destroy it' : 'call it off';
  const what =
    destroyedAt === undefined ? `Vault does not let the service ${verb}` : 'nobody has signed its certificate';
  const operator = `an operator finishes it with their own login: npm run keys -- destroy ${family} ${version}`;
  return { problem: `${what} (${error.message}); ${operator}`, retryMs: retryRefusedMs };
}

/**
 * Takes a destruction to its end, or as far as it gets. Answers how it stands then. Errors: those of the databases; what the
 * keeper of root keys says is written down as its `problem`.
 */
export async function carryOut(shop: DestroyShop, id: string, by?: By): Promise<Destruction> {
  const driver = randomUUID();
  if (!(await store.claimDestruction(shop.pool, id, driver, leaseMs))) return await store.getDestruction(shop.pool, id);
  const keep = () => void store.claimDestruction(shop.pool, id, driver, leaseMs).catch(() => undefined); // or it is lost
  const timer = setInterval(keep, leaseMs / 3);
  let held: { problem: string; retryMs: number } | undefined;
  try {
    await mustGoByIt(shop);
    await shop.keyring.refresh();
    const destruction = await store.getDestruction(shop.pool, id);
    const isGone = destruction.destroyedAt !== undefined || (await destroy(shop, destruction, by, driver));
    if (isGone) await certify(shop, id);
  } catch (error) {
    if (isPassing(error)) held = { problem: error.message, retryMs };
    else if (error instanceof RootKeyError) held = describeHold(await store.getDestruction(shop.pool, id), error);
    else if (!(error instanceof LostLease)) throw error;
  } finally {
    clearInterval(timer);
    await store.releaseDestruction(shop.pool, id, driver, held);
  }
  return await store.getDestruction(shop.pool, id);
}

/** Goes on with everything that was agreed to and is not at its end. An error of one is thrown when all had their turn. */
export async function carryOutOpen(shop: DestroyShop): Promise<void> {
  const errors: unknown[] = [];
  for (const id of await store.listOpen(shop.pool)) {
    await carryOut(shop, id).catch((error: unknown) => errors.push(error));
  }
  if (errors.length > 0) throw errors[0];
}
