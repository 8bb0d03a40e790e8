/**
 * Guards on the customer's columns, one step at a time:
 *
 *     added        refuses older envelopes from now on. Called only when a count found none: the row of an older one could
 *                  not even be changed elsewhere
 *     validated    every row was looked at, in a transaction of its own; then lower guards go, and it stands
 *     lost         somebody dropped it: what it proved it proves no more, and it is made anew
 *
 * Each is intent entry → act → result entry, as the target shares no transaction with us. Whatever is true of a guard is
 * read from its own table, so a crash anywhere leaves a step to be done again.
 */
import { sqlState, type Pool } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import type { TableShape } from '../targets/catalog.ts';
import { hasRefusable } from '../rotation/census.ts';
import { appendAlways, appendInForce, guardLine } from '../rotation/entries.ts';
import * as store from './guard-store.ts';
import { letsPlaintextIn } from './retire.ts';
import type { Workshop } from '../rotation/scan.ts';
import { guardsOf, rowsOf } from '../targets/targets.ts';

const lockNotAvailable = '55P03';
const checkViolation = '23514';
const insufficientPrivilege = '42501';

export interface GuardedColumn {
  readonly registered: RegisteredColumn;
  readonly table: TableShape;
}

/**
 * What became of a step. `late`: a row of an older version is there, and another pass is needed first · `busy`: the table was
 * locked for longer than we wait · `refused`: our role may not, in a sentence.
 */
export type GuardStep = 'done' | 'late' | 'busy' | { readonly refused: string };

const nameOf = ({ registered: { class: family, address: table, column } }: GuardedColumn, version: number) => ({
  ...{ family, table, column, version },
});

/** What the column's database says; what is remembered is brought in line with it. */
export async function readGuards(shop: Workshop, guarded: GuardedColumn): Promise<store.Constraint[]> {
  const { registered, table } = guarded;
  const { class: family, address, column } = registered;
  const found = await store.listConstraints(rowsOf(shop, table), table, column);
  const known = (await store.listKnownGuards(shop.pool, family)).filter(
    (each) => each.table === address && each.column === column && each.validatedAt !== undefined,
  );
  const strictest = Math.max(0, ...found.filter(({ validated }) => validated).map(({ version }) => version));
  if (known.some(({ version }) => version > strictest)) {
    await appendAlways(shop, [guardLine(nameOf(guarded, strictest), 'lost', 'failed')], async (tx) => {
      await store.setLost(tx, address, column, strictest);
    });
  }
  for (const { version, validated, definition } of found) {
    if (!validated || known.some((each) => each.version === version)) continue;
    await store.upsertValidated(shop.pool, nameOf(guarded, version), definition); // nobody lived to write it down
  }
  return found;
}

/** Why the guards of a column cannot be changed, in a sentence that says what to do. */
export async function findGuardProblem(
  shop: Workshop,
  { registered, table }: GuardedColumn,
): Promise<string | undefined> {
  const { installed, allowed, listed } = await store.inspectRights(guardsOf(shop, table), table, registered.column);
  const owner = 'npm run target:setup prints what its owner runs there';
  if (!installed) return `its database lacks fieldkeep.fe_guard_add: ${owner}`;
  if (!allowed) return `the role of the worker may not use fieldkeep.fe_guard_add: ${owner}`;
  return listed ? undefined : `it is not in fieldkeep.guarded_columns: ${owner}`;
}

/** Whether the guard is there, for whichever rows. */
export function hasGuard(found: readonly store.Constraint[], { registered }: GuardedColumn, version: number): boolean {
  return found.some((each) => each.version >= version && (each.plaintext || !letsPlaintextIn(registered)));
}

export function isGuarded(found: readonly store.Constraint[], guarded: GuardedColumn, version: number): boolean {
  const validated = found.filter((each) => each.validated);
  return hasGuard(validated, guarded, version);
}

async function act(
  shop: Workshop,
  guarded: GuardedColumn,
  version: number,
  step: { readonly name: string; readonly run: (db: Pool) => Promise<void>; readonly record: () => Promise<void> },
): Promise<GuardStep> {
  const line = (what: string, outcome: 'ok' | 'failed') => guardLine(nameOf(guarded, version), what, outcome);
  await appendInForce(shop, [line(`${step.name}, intent`, 'ok')]);
  try {
    await step.run(guardsOf(shop, guarded.table));
  } catch (error) {
    const state = sqlState(error);
    if (state !== lockNotAvailable && state !== checkViolation && state !== insufficientPrivilege) throw error;
    await appendAlways(shop, [line(`${step.name}, result ${state}`, 'failed')]);
    if (state === insufficientPrivilege) {
      return { refused: 'fieldkeep.fe_guard_add may not change the table: its owner has to install it' };
    }
    return state === lockNotAvailable ? 'busy' : 'late';
  }
  await step.record();
  await appendAlways(shop, [line(`${step.name}, result`, 'ok')]);
  return 'done';
}

/** Not while a row is there that it would refuse: nobody could change anything else of that row any more. */
export async function addGuard(shop: Workshop, guarded: GuardedColumn, version: number): Promise<GuardStep> {
  const { registered, table } = guarded;
  const plaintext = letsPlaintextIn(registered);
  if (await hasRefusable(rowsOf(shop, table), table, registered.column, { version, plaintext })) return 'late';
  return await act(shop, guarded, version, {
    name: 'adding',
    run: (db) => store.addConstraint(db, table, registered.column, { version, plaintext }),
    record: () => store.upsertAdded(shop.pool, nameOf(guarded, version)),
  });
}

export function validateGuard(shop: Workshop, guarded: GuardedColumn, version: number): Promise<GuardStep> {
  const { registered, table } = guarded;
  return act(shop, guarded, version, {
    name: 'validating',
    run: (db) => store.validateConstraint(db, table, registered.column, version),
    async record() {
      const found = await store.listConstraints(rowsOf(shop, table), table, registered.column);
      const made = found.find((each) => each.version === version && each.validated);
      if (made !== undefined) await store.upsertValidated(shop.pool, nameOf(guarded, version), made.definition);
    },
  });
}
