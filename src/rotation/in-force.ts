/**
 * One policy is in force, for all processes: it says which columns there are, and so what a run has to count. A process that
 * goes by another one plans, drives, counts and ends nothing: no run, no guard, no destruction, no search.
 *
 *     a running process reads a changed file, or is sent SIGHUP    its policy is put in force: a person has said so
 *     a process starts, or finds another policy in force           it waits as long as a living process goes by that one, or
 *                                                                  workers beside it by a third; then its own is put in force
 *
 * So a process that starts with an old or a wrong file changes nothing for the others, and a deployment that replaces one
 * process after the other changes the policy with the last. Only workers put a policy in force; api processes say theirs.
 *
 * What is decided is checked twice: before the work, and in the transaction that writes it down, which a policy that comes
 * meanwhile waits for.
 */
import { lockEpoch } from '../keys/epoch-store.ts';
import { transaction, type Client, type Pool, type Queryable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Policy } from '../policy/policy.ts';
import { findInForce, holdInForce, insertInForce, isSuperseded, listPolicies, type InForce } from './policy-store.ts';

export interface PolicyShop {
  readonly instanceId: string;
  readonly pool: Pool;
  readonly policy: Pick<Policy, 'version' | 'columns'>;
}

/** Thrown where something goes by the policy and another one is in force. */
export class NotInForce extends FieldkeepError {
  constructor(version: string, inForce: InForce | undefined) {
    const since = inForce === undefined ? '' : `: ${inForce.version} is, since ${minute(inForce.since)}`;
    super('conflict', `This process goes by policy ${version}, which is not in force${since}.`);
    this.name = 'NotInForce';
  }
}

function minute(at: Date): string {
  return `${at.toISOString().slice(0, 16).replace('T', ' ')} UTC`;
}

/** Puts a policy in force because a person has said so. The epoch must have been raised in the same transaction. */
export async function putInForce(tx: Client, { version, columns }: PolicyShop['policy']): Promise<void> {
  await insertInForce(tx, version, columns);
}

/** Whether nobody goes by the policy in force any more, and no worker by a third. */
async function isFree(db: Queryable, { instanceId, policy }: PolicyShop, inForce: InForce): Promise<boolean> {
  const others = (await listPolicies(db)).filter(({ id }) => id !== instanceId);
  return others.every((other) => {
    if (other.policy === inForce.version) return false;
    return other.policy === policy.version || other.role === 'api';
  });
}

async function offer(shop: PolicyShop): Promise<boolean> {
  const { pool, policy } = shop;
  const inForce = await findInForce(pool);
  if (inForce?.version === policy.version) return true;
  if (inForce !== undefined && !(await isFree(pool, shop, inForce))) return false;
  return await transaction(pool, async (tx) => {
    await lockEpoch(tx); // one at a time, and in the order of those who raise it
    const now = await findInForce(tx);
    if (now?.version === policy.version) return true;
    if (now !== undefined && !(await isFree(tx, shop, now))) return false;
    await insertInForce(tx, policy.version, policy.columns);
    return true;
  });
}

/** Whether this worker may plan, drive, count and end: its policy is in force, or can be put in force now. */
export async function mayWork(shop: PolicyShop): Promise<boolean> {
  return await offer(shop);
}

/** Errors: NotInForce. Puts nothing in force. */
export async function mustGoByIt({ pool, policy }: Pick<PolicyShop, 'pool' | 'policy'>): Promise<void> {
  const { state, inForce } = await readStanding(pool, policy.version);
  if (state !== 'in-force') throw new NotInForce(policy.version, inForce);
}

/** To be called in the transaction that writes down what goes by the policy. Errors: NotInForce. */
export async function mustBeInForce(tx: Queryable, version: string): Promise<void> {
  if (!(await holdInForce(tx, version))) throw new NotInForce(version, await findInForce(tx));
}

/** How the policy of a process stands to the one in force. */
export interface Standing {
  readonly state: 'in-force' | 'superseded' | 'other';
  readonly inForce?: InForce;
}

async function readStanding(db: Queryable, version: string): Promise<Standing> {
  const inForce = await findInForce(db);
  if (inForce === undefined || inForce.version === version) return { state: 'in-force', ...(inForce && { inForce }) };
  return { state: (await isSuperseded(db, version)) ? 'superseded' : 'other', inForce };
}

const lookEveryMs = 1_000;

interface StandingShop extends PolicyShop {
  readonly role: 'api' | 'worker' | 'all';
  readonly log: Pick<Log, 'warn'>;
}

/**
 * Knows how the policy of this process stands, looks every second, and tells the log when that changes. A process that starts
 * with a policy that was superseded might give back a right that was taken away: it answers nobody until its policy is in
 * force. One that has gone by its policy since before, because its file is changed later than others, goes on answering.
 */
export class PolicyStanding {
  /** Why this process answers nobody. */
  outdated: string | undefined;
  /** Policies that were in force while we went by them, or that a running process was given. */
  readonly #accepted = new Set<string>();
  #told = '';

  accept(version: string): void {
    this.#accepted.add(version);
  }

  /** Puts the policy of a worker in force where nothing speaks against it. Errors: those of the database. */
  async look(shop: StandingShop): Promise<void> {
    const { pool, role, log, policy } = shop;
    const before = await readStanding(pool, policy.version);
    if (before.state !== 'in-force' || before.inForce === undefined) {
      if (role !== 'api' && (await offer(shop)) && before.state === 'superseded') {
        log.warn(
          { policyVersion: policy.version },
          'A policy that was superseded is in force again: nobody goes by another.',
        );
      }
    }
    const { state, inForce } = await readStanding(pool, policy.version);
    if (shop.policy.version !== policy.version) return; // there is a new one: the next look
    if (state === 'in-force') this.accept(policy.version);
    const isOutdated = state === 'superseded' && !this.#accepted.has(policy.version);
    this.outdated = isOutdated ? describeOutdated(policy.version, inForce!) : undefined;
    const told = state === 'in-force' ? '' : `${state} ${inForce!.version}`;
    if (told === this.#told) return;
    this.#told = told;
    if (told === '') return log.warn({ policyVersion: policy.version }, 'The policy of this process is in force.');
    const where = { policyVersion: policy.version, inForce: inForce!.version, since: inForce!.since };
    log.warn(where, 'Another policy is in force: this process plans, drives, counts and ends nothing.');
  }

  /** Looks until stopped; failures are told to `onError`. Answers how to stop. */
  keep(shop: () => StandingShop, onError: (error: unknown) => void): () => void {
    let looking: Promise<void> | undefined;
    const look = () =>
      this.look(shop())
        .catch(onError)
        .finally(() => (looking = undefined));
    const timer = setInterval(() => void (looking ??= look()), lookEveryMs);
    return () => clearInterval(timer);
  }
}

function describeOutdated(version: string, inForce: InForce): string {
  return (
    `policy ${version} was superseded: ${inForce.version} has been in force since ${minute(inForce.since)}. ` +
    'Give this process that file; to return to this one, change the file of a running worker to it, or send the worker SIGHUP'
  );
}

/** Which living processes go by another policy than the one in force, in sentences. */
export async function describeSkew(db: Queryable): Promise<string[]> {
  const [inForce, all] = [await findInForce(db), await listPolicies(db)];
  if (inForce === undefined) return [];
  const told = `${inForce.version} has been in force since ${minute(inForce.since)}`;
  const skewed = all.filter(({ policy }) => policy !== inForce.version);
  const sentences = skewed.map(({ id, role, policy, since }) => {
    const effect = role === 'api' ? 'it decides by its own' : 'it plans, drives, counts and ends nothing';
    return `${role === 'all' ? 'process' : role} ${id} has had policy ${policy} since ${minute(since)}; ${told}: ${effect}. Give it the same file.`;
  });
  const works = all.some(({ policy, role }) => policy === inForce.version && role !== 'api');
  if (skewed.length > 0 && !works) {
    sentences.push(
      `No worker goes by the policy in force (${inForce.version}), so no run goes on: give the workers one file, or send SIGHUP to one whose file is right.`,
    );
  }
  return sentences;
}
