/**
 * The parts of a running service as one plain object, built by hand in `openService` and handed to whoever needs it.
 * There is no container: what a function takes of it, its first lines say.
 */
import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import { AuditLog } from './audit/log.ts';
import { startSequencer, type Sequencer } from './audit/sequencer.ts';
import { waitOutIntake } from './audit/store.ts';
import { openPool, transaction, type Pool } from './db.ts';
import { describeError } from './errors.ts';
import { ensureFamilies } from './keys/families.ts';
import { insertInstance, startHeartbeat } from './keys/instances.ts';
import { Keyring } from './keys/keyring.ts';
import type { RootKeys } from './keys/root-keys.ts';
import { raiseEpoch } from './keys/store.ts';
import { watchKeyState } from './keys/watch.ts';
import type { Policy } from './policy/policy.ts';
import { loadCatalog, type Catalog } from './rotation/catalog.ts';

export interface Service {
  /** This process, in heartbeats, leases and the audit stream. */
  readonly instanceId: string;
  readonly log: Logger;
  /** Short statements of requests and timers. */
  readonly pool: Pool;
  /** The customer's tables. Sees every row or none, and waits for no lock longer than half a second. */
  readonly targetPool: Pool;
  readonly rootKeys: RootKeys;
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

export interface ServiceOptions {
  readonly databaseUrl: string;
  readonly rootKeys: RootKeys;
  readonly policy: Policy;
  readonly log: Logger;
}

/** Opens every part; afterwards the families of the policy exist and this instance is alive. */
export async function openService(options: ServiceOptions): Promise<Service> {
  const { databaseUrl, rootKeys, policy, log } = options;
  const instanceId = randomUUID();
  const warn = (what: string) => (error: unknown) => log.warn({ error: describeError(error) }, what);
  const pool = openPool(databaseUrl, { max: 10, name: 'api' });
  const targetPool = openPool(databaseUrl, {
    max: 6,
    name: 'worker',
    statementTimeoutMs: 300_000, // a census of a large table without a version index
    settings: { row_security: 'off', lock_timeout: '500ms' },
  });
  const keyring = await Keyring.open({ pool, rootKeys, onError: warn('A data key could not be refreshed.') });
  await ensureFamilies(pool, rootKeys, policy, keyring.state);
  await keyring.refresh();
  await insertInstance(pool, instanceId);
  const audit = await AuditLog.open(databaseUrl, pool, {
    instanceId,
    onError: warn('A group of audit entries is being sent again.'),
  });
  const sequencer = startSequencer(pool, warn('Audit entries could not be put in order; trying again.'));
  const heartbeat = startHeartbeat({ pool, keyring, id: instanceId, onError: warn('A heartbeat failed.') });
  const watch = watchKeyState(databaseUrl, warn('The notice channel of key state was lost; connecting again.'), () =>
    keyring.refresh().then(heartbeat.beat),
  );
  const service: Service = {
    instanceId,
    log,
    pool,
    targetPool,
    rootKeys,
    keyring,
    audit,
    sequencer,
    policy,
    catalog: await loadCatalog(targetPool, policy.columns),
    wake: () => undefined,
    draining: false,
    async close() {
      stopLooking();
      await watch.stop();
      await heartbeat.stop();
      await audit.close();
      await sequencer.stop();
      keyring.close();
      await targetPool.end();
      await pool.end();
    },
  };
  const stopLooking = keepCatalog(service, warn('The registered tables could not be looked at.'));
  return service;
}

/** Looks at the registered tables again every now and then. Answers how to stop. */
function keepCatalog(service: Service, onError: (error: unknown) => void): () => void {
  const look = async () => {
    const { policy } = service;
    const catalog = await loadCatalog(service.targetPool, policy.columns);
    if (service.policy === policy) service.catalog = catalog;
  };
  const timer = setInterval(() => void look().catch(onError), catalogEveryMs);
  return () => clearInterval(timer);
}

/**
 * Puts a policy in force: new requests see it at once, and every answer that was computed under the old one and is not
 * yet in the audit log is computed again, because the epoch has moved.
 */
export async function adoptPolicy(service: Service, policy: Policy): Promise<void> {
  await ensureFamilies(service.pool, service.rootKeys, policy, service.keyring.state);
  const catalog = await loadCatalog(service.targetPool, policy.columns);
  service.policy = policy;
  service.catalog = catalog;
  await transaction(service.pool, raiseEpoch);
  await waitOutIntake(service.pool);
  await service.keyring.refresh();
}

/** Why the service cannot take work now; empty when it can. */
export async function listObstacles(service: Service): Promise<string[]> {
  const obstacles: string[] = [];
  if (service.draining) obstacles.push('draining');
  for (const name of service.policy.classes.keys()) {
    if (service.keyring.state.families.get(name)?.active === undefined) obstacles.push(`no active key for ${name}`);
  }
  try {
    await service.pool.query('select 1');
  } catch {
    obstacles.push('the database does not answer');
  }
  return obstacles;
}
