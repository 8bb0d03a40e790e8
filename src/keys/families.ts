/**
 * Key families follow the policy: one for every class, and the internal family `audit`, whose data keys make the row
 * digests of the audit log. A family begins with version 1, active.
 */
import { transaction, type Client, type Pool } from '../db.ts';
import { describeError } from '../errors.ts';
import type { Log } from '../log.ts';
import { addDuration } from '../policy/schedule.ts';
import type { Policy } from '../policy/policy.ts';
import { canaryTenant } from './instances.ts';
import type { Keyring } from './keyring.ts';
import { mustBeNew } from './mirror.ts';
import type { RootKeys } from './root-keys.ts';
import { insertFamily, insertVersion, raiseEpoch, type NewVersion } from './store.ts';
import { auditFamily, type KeyState } from './version.ts';

/** What a version made now records of the policy; the class may change later, the version keeps this. */
export function versionSettings(policy: Policy, family: string): Pick<NewVersion, 'bind' | 'normalise' | 'indexes'> {
  const fieldClass = policy.classes.get(family);
  if (fieldClass === undefined) return { bind: 'row', indexes: [] };
  const indexes = policy.columns
    .filter((column) => column.class === family)
    .flatMap(({ address, column, index }) => index.map(({ name, bits }) => ({ table: address, column, name, bits })));
  return {
    bind: fieldClass.bind,
    indexes,
    ...(fieldClass.normalise !== undefined && { normalise: fieldClass.normalise }),
  };
}

async function insertFirstVersion(tx: Client, policy: Policy, family: string, transitVersion: number): Promise<void> {
  const rotateEvery = policy.classes.get(family)?.rotateEvery;
  const next = rotateEvery === undefined ? undefined : addDuration(new Date(), rotateEvery);
  if (!(await insertFamily(tx, family, next))) return; // another process was first
  await insertVersion(tx, { family, version: 1, state: 'active', transitVersion, ...versionSettings(policy, family) });
  await raiseEpoch(tx);
}

/** Makes the families that the policy names and `state` lacks. Answers their names. */
export async function ensureFamilies(
  pool: Pool,
  rootKeys: RootKeys,
  policy: Policy,
  state: KeyState,
): Promise<string[]> {
  const missing = [...policy.classes.keys(), auditFamily].filter((family) => !state.families.has(family));
  for (const family of missing) {
    const transitVersion = await rootKeys.ensureFamily(family);
    await transaction(pool, (tx) => insertFirstVersion(tx, policy, family, transitVersion));
  }
  return missing;
}

/** Vault may be sealed or away when we start. */
const lookEveryMs = 1_000;

interface MakingShop {
  readonly pool: Pool;
  readonly rootKeys: RootKeys;
  readonly policy: Policy;
  readonly keyring: Pick<Keyring, 'state' | 'refresh' | 'getOrMake'>;
  readonly targets: { find(name: string): Pool | undefined };
  readonly log: Pick<Log, 'warn'>;
}

/** The key that calls to workers are sealed with, of the tenant that owns canaries (asked/ask.ts). */
async function makeCallKey(keyring: MakingShop['keyring']): Promise<void> {
  const version = keyring.state.families.get(auditFamily)?.active;
  if (version !== undefined) await keyring.getOrMake(canaryTenant, auditFamily, version);
}

/** Makes the families that the policy names and the database lacks: now, and whenever there are some. Answers how to stop. */
export async function keepFamilies(shop: () => MakingShop, mayMake: () => boolean): Promise<() => void> {
  let told: string | undefined;
  let making: Promise<void> | undefined;
  const make = async () => {
    const { pool, rootKeys, policy, keyring, log, targets } = shop();
    try {
      if (!mayMake()) return;
      if (keyring.state.families.size === 0) await mustBeNew((target) => targets.find(target), policy);
      const made = await ensureFamilies(pool, rootKeys, policy, keyring.state);
      if (made.length > 0) await keyring.refresh();
      await makeCallKey(keyring);
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
  const timer = setInterval(() => void (making ??= make()), lookEveryMs);
  return () => clearInterval(timer);
}
