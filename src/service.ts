/**
 * The parts of a running service as one plain object, built by hand in `openService` and handed to whoever needs it.
 * There is no container: what a function takes of it, its first lines say.
 */
import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import { AuditLog } from './audit/log.ts';
import { startSequencer, type Sequencer } from './audit/sequencer.ts';
import { waitOutIntake } from './audit/store.ts';
import { findRecentRefusal, findRefusal, openPool, transaction, type Pool } from './db.ts';
import { describeError } from './errors.ts';
import { ensureFamilies } from './keys/families.ts';
import { insertInstance } from './keys/instance-store.ts';
import { startHeartbeat } from './keys/instances.ts';
import { watchKeeper, type KeeperWatch } from './keys/keeper-watch.ts';
import { Keyring } from './keys/keyring.ts';
import { listMirrorWarnings, listTargets, mustBeNew } from './keys/mirror.ts';
import { MirrorKeeper } from './keys/mirror-keeper.ts';
import type { RootKeys } from './keys/root-keys.ts';
import { raiseEpoch, type Wanted } from './keys/store.ts';
import { findClosed } from './keys/version.ts';
import { watchKeyState } from './keys/watch.ts';
import type { Policy } from './policy/policy.ts';
import { loadCatalog, type Catalog } from './targets/catalog.ts';
import { Counts } from './rotation/counts.ts';
import { openSources, type Sources } from './rotation/sources.ts';
import { openReaders, openTargets, type Readers, type Targets } from './targets/targets.ts';

export interface Service {
  /** This process, in heartbeats, leases and the audit stream. */
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
  readonly sequencer: Sequencer;
  /** The policy in force; replaced as a whole by `adoptPolicy`. */
  policy: Policy;
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

/** Vault may be sealed or away when we start. */
const familiesEveryMs = 1_000;

export interface ServiceOptions {
  readonly databaseUrl: string;
  readonly rootKeys: RootKeys;
  readonly policy: Policy;
  readonly log: Logger;
  /** The customer's databases of their own, by the name that the policy has for them. */
  readonly targets?: ReadonlyMap<string, string>;
  /** What others have sealed with; absent, nothing of that kind opens. */
  readonly sources?: Sources;
  /** Roles that only read, by the name of the database; undefined names our own. */
  readonly readers?: ReadonlyMap<string | undefined, string>;
  /** `api` makes no keys and asks a worker for them; the others may. */
  readonly role?: 'api' | 'worker' | 'all';
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
  const { databaseUrl, rootKeys, policy, log, families } = options;
  const makes = options.role !== 'api';
  const instanceId = randomUUID();
  const warn = (what: string) => (error: unknown) => log.warn({ error: describeError(error) }, what);
  const pool = openPool(databaseUrl, { max: 10, name: 'api' });
  const targets = openTargets(databaseUrl, options.targets);
  const readers = openReaders(options.readers ?? new Map());
  const keyring = await Keyring.open({
    ...{ pool, rootKeys, makes, findTarget: (name) => targets.find(name) },
    onError: warn('A data key could not be used or refreshed.'),
    ...(families !== undefined && { families }),
    ...(options.now !== undefined && { now: options.now }),
  });
  await insertInstance(pool, instanceId, families ?? null);
  const audit = await AuditLog.open(databaseUrl, pool, {
    instanceId,
    onError: warn('A group of audit entries is being sent again.'),
  });
  const sequencer = startSequencer(pool, warn('Audit entries could not be put in order; trying again.'));
  const beating = { pool, keyring, id: instanceId, families: families ?? null };
  const heartbeat = startHeartbeat({ ...beating, onError: warn('A heartbeat failed.') });
  const keeper = await watchKeeper(rootKeys, log);
  const catalog = await loadCatalog(targets, policy.columns);
  const watch = watchKeyState(databaseUrl, warn('The notice channel of key state was lost; connecting again.'), {
    onChange: () => keyring.refresh().then(heartbeat.beat),
    ...(makes && { onWanted: (wanted: Wanted) => makeWanted(service, wanted) }),
  });
  const service: Service = {
    instanceId,
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
    sequencer,
    policy,
    catalog,
    wake: () => undefined,
    draining: false,
    async close() {
      stopLooking();
      stopMaking();
      keeper.stop();
      await watch.stop();
      await heartbeat.stop();
      await audit.close();
      await sequencer.stop();
      keyring.close();
      await targets.close();
      await readers.close();
      await pool.end();
      rootKeys.close();
    },
  };
  // Before any key is made: an older database, or a new one, must not make others under names that a mirror knows.
  if (makes) await new MirrorKeeper(warn('A mirror of wrapped keys could not be looked at.')).look(service);
  const stopMaking = makes ? await keepFamilies(service) : () => undefined;
  const stopLooking = keepCatalog(service, warn('The registered tables could not be looked at.'));
  return service;
}

/** Makes a data key that another process asked for. */
async function makeWanted(service: Service, { tenant, family, version, target }: Wanted): Promise<void> {
  const { keyring, targets, policy } = service;
  const find = () => keyring.state.families.get(family)?.versions.get(version);
  if (find() === undefined) await keyring.refresh();
  const state = find()?.state;
  if (state !== 'active' && state !== 'pending') return;
  // A mirror is written by a worker that is connected to it, and only where the policy has a column.
  const isOurs = target !== undefined && targets.find(target) !== undefined;
  const mirror = isOurs && listTargets(policy).get(target)?.includes(family) === true ? target : undefined;
  await keyring.getOrMake(tenant, family, version, mirror);
}

/** Makes the families that the policy names and the database lacks: now, and whenever there are some. Answers how to stop. */
async function keepFamilies(service: Service): Promise<() => void> {
  let told: string | undefined;
  let making: Promise<void> | undefined;
  const make = async () => {
    const { pool, rootKeys, policy, keyring, log, targets } = service;
    try {
      if (keyring.state.families.size === 0) await mustBeNew((target) => targets.find(target), policy);
      const made = await ensureFamilies(pool, rootKeys, policy, keyring.state);
      if (made.length > 0) await keyring.refresh();
    } catch (error) {
      const description = describeError(error);
      const text = JSON.stringify(description);
      if (text !== told)
        log.warn({ error: description }, 'Key families of the policy could not be made; trying again.');
      told = text; // once, not with every try
    } finally {
      making = undefined;
    }
  };
  await make();
  const timer = setInterval(() => void (making ??= make()), familiesEveryMs);
  return () => clearInterval(timer);
}

/** Looks at the registered tables again every now and then. Answers how to stop. */
function keepCatalog(service: Service, onError: (error: unknown) => void): () => void {
  const look = async () => {
    const { policy } = service;
    const catalog = await loadCatalog(service.targets, policy.columns);
    if (service.policy === policy) service.catalog = catalog;
  };
  const timer = setInterval(() => void look().catch(onError), catalogEveryMs);
  return () => clearInterval(timer);
}

/**
 * Puts a policy in force: new requests see it at once, and every answer that was computed under the old one and is not
 * yet in the audit log is computed again, because the epoch has moved. It does not wait for the keeper of root keys: a
 * right that was taken away must go while that is away, too; the keys of a new class come when it is back.
 */
export async function adoptPolicy(service: Service, policy: Policy): Promise<void> {
  const catalog = await loadCatalog(service.targets, policy.columns);
  service.policy = policy;
  service.catalog = catalog;
  await transaction(service.pool, raiseEpoch);
  await waitOutIntake(service.pool);
  await service.keyring.refresh();
}

export interface Health {
  /** Why the service cannot take work now; empty when it can. */
  readonly reasons: readonly string[];
  /** What is wrong and does not keep it from answering yet. */
  readonly warnings: readonly string[];
}

/** An outage of the keeper of root keys that is shorter than a key's life is a warning: every cached key still works. */
export async function examine(service: Service): Promise<Health> {
  const reasons: string[] = [];
  const warnings: string[] = [];
  if (service.draining) reasons.push('draining');
  const { problem, lost } = service.keeper.state();
  if (problem !== undefined) (lost ? reasons : warnings).push(problem);
  for (const name of service.policy.classes.keys()) {
    if (!service.keyring.serves(name)) continue;
    const family = service.keyring.state.families.get(name);
    if (family?.active !== undefined) continue;
    // A compromised version is followed within seconds, and all but encrypting for this one class works meanwhile.
    if (findClosed(family) === undefined) reasons.push(`no active key for ${name}`);
    else warnings.push(`no active key for ${name} until its next version is ready`);
  }
  try {
    await service.pool.query('select 1');
    const refused = findRecentRefusal(service.pool);
    if (refused !== undefined) reasons.push(`the database answers in ${refused.phrase}`);
    const told = await listMirrorWarnings(service.pool, service.policy.columns);
    // An empty database beside mirrors that are not empty is one that was lost.
    (service.keyring.state.families.size === 0 ? reasons : warnings).push(...told);
  } catch (error) {
    const refused = findRefusal(error);
    reasons.push(refused === undefined ? 'the database does not answer' : `the database answers in ${refused.phrase}`);
  }
  return { reasons, warnings };
}
