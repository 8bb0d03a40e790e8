/**
 * The processes of the service as the database sees them: each says every two seconds that it lives, and that it has
 * unwrapped the canary of a pending version itself. A version is activated when every living instance has.
 */
import type { Pool } from '../db.ts';
import { deleteInstance, insertReady, upsertHeartbeat } from './instance-store.ts';
import type { Keyring } from './keyring.ts';

const heartbeatEveryMs = 2_000;
/** The tenant that owns canaries; a credential's tenant is never empty. */
export const canaryTenant = '';

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

/** Says that this instance lives and what it can use, until stopped. Failures are told to `onError` and tried again. */
export function startHeartbeat(options: {
  pool: Pool;
  keyring: Keyring;
  id: string;
  families: readonly string[] | null;
  role?: 'api' | 'worker' | 'all';
  /** The version of the policy as it is now. */
  policy?: () => string;
  onError: (error: unknown) => void;
}): { beat: () => Promise<void>; stop: () => Promise<void> } {
  const { pool, keyring, id, families, role, policy, onError } = options;
  let under: Promise<void> | undefined;
  let stopped = false;

  async function beatOnce(): Promise<void> {
    try {
      const known = policy === undefined ? {} : { policy: policy() };
      await upsertHeartbeat(pool, id, { families, ...(role !== undefined && { role }), ...known });
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
