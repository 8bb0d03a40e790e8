/**
 * The processes of the service as the database sees them: each says every two seconds that it lives, and that it has
 * unwrapped the canary of a pending version itself. A version is activated when every living instance has.
 */
import type { Pool, Queryable } from '../db.ts';
import type { Keyring } from './keyring.ts';
import { upsertLastUse } from './store.ts';

const heartbeatEveryMs = 2_000;
/** An instance without a heartbeat for this long is dead, by the database's clock. */
const deadAfterMs = 10_000;
/** The tenant that owns canaries; a credential's tenant is never empty. */
export const canaryTenant = '';

/** That the instance whose id an SQL expression names is alive. */
export function aliveSql(id: string): string {
  return `exists (select from fieldkeep.instances i where i.id = ${id} and i.heartbeat_at > now() - interval '${deadAfterMs} ms')`;
}

/** `families`: those that the process serves, null for all. */
export async function insertInstance(db: Queryable, id: string, families: readonly string[] | null): Promise<void> {
  await db.query('insert into fieldkeep.instances (id, families) values ($1, $2)', [id, families]);
}

async function deleteInstance(db: Queryable, id: string): Promise<void> {
  await db.query('delete from fieldkeep.instances where id = $1', [id]);
}

/** Also takes the dead away; an instance that was only asleep finds its row missing and inserts it again. */
export async function heartbeat(db: Queryable, id: string, families: readonly string[] | null): Promise<void> {
  await db.query(
    `insert into fieldkeep.instances (id, families) values ($1, $2) on conflict (id) do update set heartbeat_at = now()`,
    [id, families],
  );
  await db.query(
    `delete from fieldkeep.instances where heartbeat_at < now() - make_interval(secs => $1::float8 / 1000)`,
    [deadAfterMs],
  );
}

async function insertReady(db: Queryable, id: string, family: string, version: number): Promise<void> {
  await db.query(
    `insert into fieldkeep.instance_ready (instance, family, version)
     select id, $2, $3 from fieldkeep.instances where id = $1 on conflict do nothing`,
    [id, family, version],
  );
}

/** Living instances that serve the family and have not yet shown that they can use the version. */
export async function countUnready(db: Queryable, family: string, version: number): Promise<number> {
  const { rows } = await db.query<{ n: number }>(
    `select count(*)::int as n from fieldkeep.instances i
     where heartbeat_at >= now() - make_interval(secs => $3::float8 / 1000)
       and (i.families is null or $1 = any (i.families)) and not exists
       (select 1 from fieldkeep.instance_ready r where r.instance = i.id and r.family = $1 and r.version = $2)`,
    [family, version, deadAfterMs],
  );
  return rows[0]!.n;
}

/** Unwraps the canary of every pending version that has one and reports it. One family's trouble is no other's. */
async function reportReady(pool: Pool, keyring: Keyring, id: string, onError: (error: unknown) => void): Promise<void> {
  for (const { family, pending } of keyring.state.families.values()) {
    if (pending === undefined || !keyring.serves(family)) continue;
    try {
      const canary = await keyring.get(canaryTenant, family, pending);
      if (canary !== undefined) await insertReady(pool, id, family, pending);
    } catch (error) {
      onError(error);
    }
  }
}

/** Writes down when versions were last used by requests: retiring one waits until nobody reads it any more. */
async function noteUses(pool: Pool, keyring: Keyring): Promise<void> {
  const used = [...keyring.used];
  keyring.used.clear();
  for (const { family, version } of used) await upsertLastUse(pool, family, version);
}

/** Says that this instance lives and what it can use, until stopped. Failures are told to `onError` and tried again. */
export function startHeartbeat(options: {
  pool: Pool;
  keyring: Keyring;
  id: string;
  families: readonly string[] | null;
  onError: (error: unknown) => void;
}): { beat: () => Promise<void>; stop: () => Promise<void> } {
  const { pool, keyring, id, families, onError } = options;
  let under: Promise<void> | undefined;
  let stopped = false;

  async function beatOnce(): Promise<void> {
    try {
      await heartbeat(pool, id, families);
      await noteUses(pool, keyring);
      await reportReady(pool, keyring, id, onError);
    } catch (error) {
      onError(error);
    } finally {
      under = undefined;
    }
  }
  const beat = () => (stopped ? Promise.resolve() : (under ??= beatOnce()));
  const timer = setInterval(() => void beat(), heartbeatEveryMs);
  return {
    beat,
    async stop() {
      stopped = true;
      clearInterval(timer);
      await under;
      await deleteInstance(pool, id).catch(onError);
    },
  };
}
