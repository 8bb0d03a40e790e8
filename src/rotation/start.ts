/**
 * Begins runs that nobody asked for: rotations that are due, adoptions of plaintext that was found. What is stored holds that
 * a family has one at a time, so any process may look, and as many as there are.
 */
import { randomUUID } from 'node:crypto';
import type { Client } from '../db.ts';
import { nextVersionOf } from '../keys/version.ts';
import type { TableShape } from '../targets/catalog.ts';
import { rowsOf, type TargetName } from '../targets/targets.ts';
import { hasStale } from './census.ts';
import { appendInForce, phaseLine } from './entries.ts';
import { mayWork, NotInForce } from './in-force.ts';
import { isIndexed, type Workshop } from './scan.ts';
import { insertRun, isAdopting, listDue, type NewRun } from './store.ts';
import { unadopted } from './work.ts';

/** Thrown in the transaction that begins a run: something stands in its way, and its entry goes too. */
export class InTheWay extends Error {}

/**
 * Records the run, its entry and what `also` writes, in one transaction. Answers its id; undefined, and nothing is written,
 * where another run stands in the way.
 */
export async function begin(
  shop: Workshop,
  run: NewRun,
  told: string,
  also?: (tx: Client) => Promise<void>,
): Promise<string | undefined> {
  try {
    await appendInForce(shop, [phaseLine(run, told)], async (tx) => {
      if (!(await insertRun(tx, run))) throw new InTheWay();
      await also?.(tx);
    });
    return run.id;
  } catch (error) {
    if (error instanceof InTheWay || error instanceof NotInForce) return undefined;
    throw error;
  }
}

/** The version that a rotation of the family would make now; one that a cancelled run left pending is taken up again. */
export function nextVersion(shop: Pick<Workshop, 'keyring'>, family: string): number {
  return nextVersionOf(shop.keyring.state.families.get(family));
}

/** Starts a rotation of every family whose time has come; once, however many processes look. */
export async function startDue(shop: Workshop): Promise<string[]> {
  const started: string[] = [];
  if (!(await mayWork(shop))) return started;
  for (const family of await listDue(shop.pool)) {
    if (!shop.policy.classes.has(family)) continue;
    await shop.keyring.refresh();
    const asked = { requestedBy: 'schedule', reason: 'scheduled' };
    const run = { id: randomUUID(), kind: 'rotation', family, version: nextVersion(shop, family), ...asked } as const;
    const id = await begin(shop, run, 'scheduled start');
    if (id !== undefined) started.push(id);
  }
  return started;
}

/** Whether plaintext of the table waits to be adopted. Looks only where an index makes that cheap. */
async function holdsPlaintext(shop: Workshop, table: TableShape, alsoUnindexed: boolean): Promise<boolean> {
  for (const stale of table.columns.flatMap(unadopted)) {
    if (!alsoUnindexed && !isIndexed(table, stale)) continue;
    if (await hasStale(rowsOf(shop, table), table, [stale])) return true;
  }
  return false;
}

/**
 * Starts an adoption when there is plaintext to adopt (in one database, where that is named) and none is under way. A table that cannot be read does not keep the
 * others from it; its error is thrown when no other gave reason to start.
 */
export async function startAdoption(
  shop: Workshop,
  alsoUnindexed: boolean,
  where?: { readonly database: TargetName },
): Promise<string | undefined> {
  if (!(await mayWork(shop)) || (await isAdopting(shop.pool))) return undefined;
  const errors: unknown[] = [];
  for (const table of shop.catalog.tables.values()) {
    if (where !== undefined && table.database !== where.database) continue;
    const found = await holdsPlaintext(shop, table, alsoUnindexed).catch((error: unknown) => {
      errors.push(error);
      return false;
    });
    if (!found) continue;
    const asked = { requestedBy: 'policy', reason: 'plaintext found' };
    return await begin(shop, { id: randomUUID(), kind: 'adoption', ...asked }, 'start');
  }
  if (errors.length > 0) throw errors[0];
  return undefined;
}
