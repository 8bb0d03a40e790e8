/**
 * Once a day a worker looks for envelopes of retired versions in columns that nobody registered, so that status can name
 * them long before a version is to be destroyed. It reads whole tables, so nobody waits for it.
 */
import { findUndeclaredSearch, setUndeclared } from './retire-store.ts';
import { mayWork } from '../rotation/in-force.ts';
import type { Workshop } from '../rotation/scan.ts';
import { findUndeclared, isFresh } from './undeclared.ts';

/** The newest version of a family that waits for its end; undefined where none does. */
function newestRetired({ keyring }: Workshop, family: string): number | undefined {
  const versions = [...(keyring.state.families.get(family)?.versions.values() ?? [])];
  return versions.findLast(({ state }) => state === 'decrypt-only' || state === 'compromised')?.version;
}

/** Searches for the families whose turn it is, one after the other. Errors: those of our own database. */
export async function searchDue(shop: Workshop): Promise<void> {
  if (!(await mayWork(shop))) return;
  for (const family of shop.policy.classes.keys()) {
    const version = newestRetired(shop, family);
    if (version === undefined) continue;
    const last = await findUndeclaredSearch(shop.pool, family);
    if (last !== undefined && isFresh(last) && last.upToVersion >= version) continue;
    await setUndeclared(shop.pool, family, version, await findUndeclared(shop, family, version));
  }
}
