/** What is known of the versions of a family that may be retired, gathered from Fieldkeep's own database alone. */
import type { Queryable } from '../db.ts';
import type { Keyring } from '../keys/keyring.ts';
import { listLastUses } from '../keys/store.ts';
import type { Policy } from '../policy/policy.ts';
import { listKnownGuards, type KnownGuard } from './guard-store.ts';
import type { ColumnFact, RetireFacts } from './retire.ts';
import { findUndeclaredSearch, listProblems, readClock } from './retire-store.ts';
import { findUnfinished } from '../rotation/store.ts';

export interface FactShop {
  readonly pool: Queryable;
  readonly policy: Policy;
  readonly keyring: Pick<Keyring, 'state'>;
}

/** The guard against a version, with the moment since when one that is at least as strict has stood. */
function guardAgainst(known: readonly KnownGuard[], version: number): ColumnFact['guard'] | undefined {
  const standing = known.flatMap((each) =>
    each.version > version && each.validatedAt !== undefined ? [{ ...each, validatedAt: each.validatedAt }] : [],
  );
  const strictest = standing.at(-1);
  if (strictest === undefined) return undefined;
  const since = Math.min(...standing.map(({ validatedAt }) => validatedAt.getTime()));
  const { version: lowest, definition } = strictest;
  return { version: lowest, validatedAt: new Date(since), ...(definition !== undefined && { definition }) };
}

/** For each version of the family that is neither pending nor destroyed nor active; undefined where there is no such class. */
export async function readFacts(shop: FactShop, name: string): Promise<Map<number, RetireFacts>> {
  const family = shop.keyring.state.families.get(name);
  const rule = shop.policy.classes.get(name)?.retire;
  const facts = new Map<number, RetireFacts>();
  if (family === undefined || rule === undefined) return facts;
  const [clock, uses] = [await readClock(shop.pool, name), await listLastUses(shop.pool, name)];
  const [guards, problems] = [await listKnownGuards(shop.pool, name), await listProblems(shop.pool, name)];
  const undeclared = await findUndeclaredSearch(shop.pool, name);
  const rotation = (await findUnfinished(shop.pool, name))?.id;
  const registered = shop.policy.columns.filter((column) => column.class === name);
  for (const { version, state } of family.versions.values()) {
    if (state !== 'decrypt-only' && state !== 'compromised') continue;
    const columns = registered.map(({ address: table, column }): ColumnFact => {
      const of = (each: { table: string; column: string }) => each.table === table && each.column === column;
      const guard = guardAgainst(guards.filter(of), version);
      const problem = problems.find(of)?.problem;
      return { table, column, ...(guard !== undefined && { guard }), ...(problem !== undefined && { problem }) };
    });
    const lastUsedAt = uses.get(version);
    facts.set(version, {
      ...{ family, version, rule, columns, rotation, ...clock },
      ...(lastUsedAt !== undefined && { lastUsedAt }),
      ...(undeclared !== undefined && { undeclared }),
    });
  }
  return facts;
}
