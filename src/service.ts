/**
 * The parts of a running service as one plain object, built by hand in `openService` and handed to whoever needs it.
 * There is no container: what a function takes of it, its first lines say.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { ask, toError, type Answer, type AskedCall } from './asked/ask.ts';
import { askedChannel } from './asked/store.ts';
import { startTaking, type Taker } from './asked/take.ts';
import type { Setback } from './audit/compare.ts';
import { AuditLog } from './audit/log.ts';
import { startSequencer } from './audit/sequencer.ts';
import { unfoldChannel, waitOutIntake } from './audit/store.ts';
import { openPool, transaction, type Pool } from './db.ts';
import { describeError, FieldkeepError } from './errors.ts';
import { keepFamilies } from './keys/families.ts';
import { upsertHeartbeat } from './keys/instance-store.ts';
import { startHeartbeat } from './keys/instances.ts';
import { watchKeeper, type KeeperWatch } from './keys/keeper-watch.ts';
import { Keyring } from './keys/keyring.ts';
import { listTargets } from './keys/mirror.ts';
import { MirrorKeeper } from './keys/mirror-keeper.ts';
import { NewTenants } from './keys/new-tenants.ts';
import type { RootKeys } from './keys/root-keys.ts';
import { raiseEpoch, type Wanted } from './keys/store.ts';
import { watchKeyState } from './keys/watch.ts';
import type { Policy } from './policy/policy.ts';
import { present } from './present.ts';
import { loadCatalog, loadPublished, type Catalog } from './targets/catalog.ts';
import { Counts } from './rotation/counts.ts';
import { mayWork, PolicyStanding, putInForce } from './rotation/in-force.ts';
import { openSources, type Sources } from './rotation/sources.ts';
import { noTargets, openReaders, openTargets, type Readers, type TargetName, type Targets } from './targets/targets.ts';
import { within } from './within.ts';

/** What a service does: answers agents, or works on keys, runs and rows; a service in a test does both. */
export type ServiceRole = 'api' | 'worker' | 'all';

export interface Service {
  /** This service, in heartbeats, leases and the audit stream. */
  readonly instanceId: string;
  readonly log: Logger;
  /** Short statements of requests and timers. */
  readonly pool: Pool;
  /** The databases of the customer's tables. */
  readonly targets: Targets;
  /** Opens what others have sealed, so that it can be adopted. */
  readonly sources: Sources;
  /** The same databases, and our own, to look for envelopes in columns that nobody registered. */
  readonly readers: Readers;
  /** What people were last told of how much the columns hold. */
  readonly counts: Counts;
  readonly rootKeys: RootKeys;
  /** How the keeper of root keys is. */
  readonly keeper: KeeperWatch;
  readonly keyring: Keyring;
  readonly audit: AuditLog;
  readonly role: ServiceRole;
  /** The policy that this process goes by; replaced as a whole by `adoptPolicy`. */
  policy: Policy;
  /** Looks at its file; absent where nobody does. */
  policyWatch: { isFresh(): boolean; look(): Promise<void> } | undefined;
  /** How that one stands to the policy in force. */
  readonly standing: PolicyStanding;
  /** What the registered tables look like in the database. */
  catalog: Catalog;
  /** Has the workers look at once instead of at their next tick; does nothing in a process without workers. */
  wake: () => void;
  /** Set while the process drains: not ready for new work. */
  draining: boolean;
  /** Stops timers and closes connections, in the order that loses nothing. */
  close(): Promise<void>;
}

/** Tables are made, altered and indexed while we run. */
const catalogEveryMs = 15_000;
const waitingEveryMs = 1_000;

/** A start waits this long for the mirrors of the targets. */
const startMaxMs = 2_000;

/** Each step of closing. */
const endMaxMs = 1_500;

export interface ServiceOptions {
  readonly databaseUrl: string;
  readonly rootKeys: RootKeys;
  readonly policy: Policy;
  readonly log: Logger;
  /** The customer's databases of their own, by the name that the policy has for them. */
  readonly targets?: ReadonlyMap<string, string>;
  /** Logins for rows alone, by the name of the database; undefined names our own. */
  readonly rows?: ReadonlyMap<TargetName, string>;
  /** What others have sealed with; absent, nothing of that kind opens. */
  readonly sources?: Sources;
  /** Roles that only read, by the name of the database; undefined names our own. */
  readonly readers?: ReadonlyMap<string | undefined, string>;
  /** `api` makes no keys, is connected to no target and asks a worker for what needs either. */
  readonly role?: ServiceRole;
  /** Does what an api process asks, as operations do it; absent: only keys are made. */
  readonly operate?: (service: Service, call: AskedCall) => Promise<Answer>;
  /** False where somebody else closes `rootKeys`. */
  readonly ownsRootKeys?: boolean;
  /** The classes that this process serves, where not all. */
  readonly families?: readonly string[];
  /** The clock of the key cache, milliseconds that only go forward; tests put their own here. */
  readonly now?: () => number;
}

/**
 * Opens every part; afterwards this instance is alive, and the families of the policy exist unless the keeper of root keys
 * is away: then they are made when it is back.
 */
export async function openService(options: ServiceOptions): Promise<Service> {
  const { databaseUrl, rootKeys, policy, log, families, role = 'all' } = options;
  const isWorker = role !== 'api';
  const instanceId = randomUUID();
  const warn = (what: string) => (error: unknown) => log.warn({ error: describeError(error) }, what);
  const pool = openPool(databaseUrl, { max: 10, name: role });
  const targets = isWorker ? openTargets(databaseUrl, options.targets, { rows: options.rows }) : noTargets;
  const readers = openReaders(options.readers ?? new Map());
  const keyring = await Keyring.open({
    ...{ pool, rootKeys, findTarget: (name) => targets.find(name) },
    ...(!isWorker && { askForKey: (wanted: Wanted, waitMs: number) => askForKey(service, wanted, waitMs) }),
    onError: warn('A data key could not be used or refreshed.'),
    ...(families !== undefined && { families }),
    ...(options.now !== undefined && { now: options.now }),
  });
  await upsertHeartbeat(pool, instanceId, { families: families ?? null, role, policy: policy.version });
  const audit = await AuditLog.open(databaseUrl, pool, {
    instanceId,
    onError: warn('A group of audit entries is being sent again.'),
    onSetback: (setback) => tellSetback(log, setback),
  });
  const sequencer = isWorker
    ? startSequencer(pool, warn('Audit entries could not be put in order; trying again.'), ({ stream, first, last }) =>
        log.error({ stream, first, last }, 'Groups of audit entries are missing; they were recorded as lost.'),
      )
    : undefined;
  const beating = {
    pool,
    keyring,
    id: instanceId,
    families: families ?? null,
    role,
    policy: () => service.policy.version,
  };
  const heartbeat = startHeartbeat({ ...beating, onError: warn('A heartbeat failed.') });
  const keeper = await watchKeeper(rootKeys, log);
  const catalog = await readTables({ role, pool, targets }, policy);
  let wakeTaker = (): void => undefined;
  const standing = new PolicyStanding();
  const watch = watchKeyState(databaseUrl, warn('The notice channel of key state was lost; connecting again.'), {
    onChange: () => keyring.refresh().then(heartbeat.beat),
    ...(isWorker && { others: { [askedChannel]: () => wakeTaker(), [unfoldChannel]: () => sequencer?.wake() } }),
  });
  const service: Service = {
    instanceId,
    role,
    log,
    pool,
    targets,
    sources: options.sources ?? openSources(),
    readers,
    counts: new Counts(warn('The values of a column could not be counted.')),
    rootKeys,
    keeper,
    keyring,
    audit,
    policy,
    policyWatch: undefined,
    standing,
    catalog,
    wake: () => undefined,
    draining: false,
    async close() {
      stopLooking();
      stopStanding();
      stopMaking();
      await taker?.stop();
      keeper.stop();
      // What a database that does not answer would hold up goes on without it.
      await Promise.all([watch.stop(), heartbeat.stop(), audit.close()].map((end) => within(endMaxMs, end)));
      await within(endMaxMs, sequencer?.stop());
      keyring.close();
      await Promise.all([targets.close(), readers.close(), pool.end()].map((end) => within(endMaxMs, end)));
      if (options.ownsRootKeys !== false) rootKeys.close();
    },
  };
  await standing.look(service);
  const stopStanding = standing.keep(() => service, warn('It could not be found out which policy is in force.'));
  const stopMaking = isWorker ? await beginMaking(service, warn) : () => undefined;
  const newTenants = new NewTenants();
  // A worker with another policy than the one in force leaves a call to one that goes by it.
  const mayTake = async (call: AskedCall) => call.name === makeKeyCall || (await mayWork(service));
  const perform = async (call: AskedCall): Promise<Answer> => {
    if (call.name === makeKeyCall) return await makeWanted(service, newTenants, call.content as Wanted);
    if (options.operate !== undefined) return await options.operate(service, call);
    throw new FieldkeepError('internal', 'This worker takes no calls.');
  };
  const taker: Taker | undefined = isWorker
    ? startTaking(
        service,
        { mayTake, perform },
        warn('A call that an api process asked could not be taken; trying again.'),
      )
    : undefined;
  wakeTaker = () => taker?.wake();
  const stopLooking = keepCatalog(service, warn('The registered tables could not be looked at.'));
  return service;
}

/** A target that does not answer delays the making of keys, which its mirror may know, and not the start. */
async function beginMaking(service: Service, warn: (what: string) => (error: unknown) => void): Promise<() => void> {
  let stopped = false;
  let stop: () => void = () => undefined;
  const begin = async () => {
    // Before any key is made: an older database, or a new one, must not make others under names that a mirror knows.
    await new MirrorKeeper(warn('A mirror of wrapped keys could not be looked at.')).look(service);
    if (stopped) return;
    const mayMake = () => service.standing.outdated === undefined;
    stop = await keepFamilies(() => service, mayMake);
    if (stopped) stop();
  };
  await Promise.race([begin(), sleep(startMaxMs, undefined, { ref: false })]);
  return () => {
    stopped = true;
    stop();
  };
}

/** The database lacks, or has otherwise, what it had acknowledged: it failed over to a standby that was behind. */
function tellSetback(log: Logger, { kind, stream, again, moved, lost, diverged }: Setback): void {
  const facts = { stream, resent: again.length + moved.length, ...present({ lost, diverged }) };
  if (kind === 'behind')
    return log.warn(facts, 'The database had lost acknowledged groups of audit entries; all were stored again.');
  if (kind === 'lost')
    return log.error(
      facts,
      'The database has lost acknowledged groups of audit entries for good; a new stream begins.',
    );
  log.error(facts, 'The database has other audit entries than were acknowledged to this process; a new stream begins.');
}

/** What the call is named that asks for a data key. */
const makeKeyCall = 'makeKey';

/** Errors: what keeps the worker from it, `keys_not_ready` when no worker took it. */
async function askForKey(service: Service, wanted: Wanted, waitMs: number): Promise<void> {
  const answer = await ask(service, { id: randomUUID(), name: makeKeyCall, content: wanted, waitMs });
  if (answer?.error !== undefined) throw toError(answer.error);
  if (answer === undefined) {
    throw new FieldkeepError('keys_not_ready', `No worker made the data key of family ${wanted.family} in time.`, {
      retryAfterSeconds: 2,
    });
  }
}

/** Makes a data key that an api process was asked for, by a call of a principal of that tenant. */
async function makeWanted(
  service: Service,
  newTenants: NewTenants,
  { tenant, family, version, target }: Wanted,
): Promise<Answer> {
  const { keyring, targets, policy, pool } = service;
  const find = () => keyring.state.families.get(family)?.versions.get(version);
  if (find() === undefined) await keyring.refresh();
  const state = find()?.state;
  if (state !== 'active' && state !== 'pending') return {};
  await newTenants.admit(pool, tenant);
  // A mirror is written by a worker that is connected to it, and only where the policy has a column.
  const isOurs = target !== undefined && targets.find(target) !== undefined;
  const mirror = isOurs && listTargets(policy).get(target)?.includes(family) === true ? target : undefined;
  await keyring.getOrMake(tenant, family, version, mirror);
  return {};
}

/** The registered tables: as they are, where this process is connected to them, else as workers have seen them. */
function readTables(
  { role, pool, targets }: Pick<Service, 'role' | 'pool' | 'targets'>,
  { columns }: Policy,
): Promise<Catalog> {
  return role === 'api' ? loadPublished(pool, columns) : loadCatalog(targets, columns);
}

/** Looks at the registered tables now. Errors: those of our own database. */
async function lookAtTables(service: Service): Promise<void> {
  const { policy } = service;
  const catalog = await readTables(service, policy);
  if (service.policy === policy) service.catalog = catalog;
}

/**
 * Looks at the registered tables again every now and then, one look at a time; soon where no worker had published some.
 * Answers how to stop.
 */
function keepCatalog(service: Service, onError: (error: unknown) => void): () => void {
  let looking: Promise<void> | undefined;
  let lookedAt = performance.now();
  const isDue = () => {
    const { role, policy, catalog } = service;
    const isWaiting = role === 'api' && policy.columns.some(({ address }) => !catalog.keyTypes.has(address));
    return isWaiting || performance.now() - lookedAt >= catalogEveryMs;
  };
  const look = () => {
    lookedAt = performance.now();
    return lookAtTables(service)
      .catch(onError)
      .finally(() => (looking = undefined));
  };
  const timer = setInterval(() => {
    if (isDue()) looking ??= look();
  }, waitingEveryMs);
  return () => clearInterval(timer);
}

/**
 * Has this process go by a policy. In this order, so that a right that was taken away goes whatever hangs:
 *
 *     at once      new requests, and answers that are under way, are decided by it (operations/perform.ts)
 *     database     the epoch is raised; what was computed before is not stored any more. A worker's policy is in force
 *     then         the tables of the customer's are looked at, each target for a while at most
 *
 * It does not wait for the keeper of root keys; the keys of a new class come when that is back. Errors: those of our own
 * database; to be called again then.
 */
export async function adoptPolicy(service: Service, policy: Policy): Promise<void> {
  service.policy = policy;
  service.standing.accept(policy.version);
  await transaction(service.pool, async (tx) => {
    await raiseEpoch(tx);
    if (service.role !== 'api' && service.policy === policy) await putInForce(tx, policy);
  });
  await waitOutIntake(service.pool);
  await service.keyring.refresh();
  await service.standing.look(service);
  await lookAtTables(service);
}
