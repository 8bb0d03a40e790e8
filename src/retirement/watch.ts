/**
 * Looks after families whose rotation is done, because applications hold envelopes: in queues, in retries, in rows that they
 * write back whole.
 *
 *     something older is found    → a run brings it up to date, under the version that is active already
 *     handoffMax is over          → writers waited out, counted once more, then the guard on every column (guard.ts)
 *     every guard stands          → nothing to do: the databases refuse what is older
 *
 * Called by every tick of every worker; what is stored says whether a look is due.
 */
import { randomUUID } from 'node:crypto';
import type { RegisteredColumn } from '../policy/policy.ts';
import { loadCatalog, type Catalog } from '../targets/catalog.ts';
import { waitOutWriters } from '../rotation/census.ts';
import { addGuard, findGuardProblem, hasGuard, isGuarded, readGuards, validateGuard } from './guard.ts';
import type { GuardedColumn, GuardStep } from './guard.ts';
import { countLate } from '../rotation/pass.ts';
import { listKnownGuards } from './guard-store.ts';
import {
  claimWatch,
  copyWaivers,
  findLastDone,
  isActive,
  listProblems,
  readClock,
  setProblems,
} from './retire-store.ts';
import type { ColumnProblem } from './retire-store.ts';
import { guardVersion } from './retire.ts';
import { mayWork, NotInForce } from '../rotation/in-force.ts';
import type { Workshop } from '../rotation/scan.ts';
import { begin, InTheWay } from '../rotation/start.ts';
import { findRun, findUnfinished, type Run } from '../rotation/store.ts';
import { rowsOf } from '../targets/targets.ts';

/** With version indexes a look costs little. Without, it reads the tables: once a day, and sooner where a guard is due. */
const lookEveryMs = 10_000;
const lookUnindexedMs = 86_400_000;
const guardUnindexedMs = 600_000;
const waitOutMaxMs = 5_000;

export interface WatchOptions {
  /** Looks also where the last look was a moment ago. */
  readonly now?: boolean;
}

/** Starts a run for envelopes that came late. It makes no version, and moves no date. Answers its id. */
async function startLate(shop: Workshop, last: Run, version: number): Promise<string | undefined> {
  const family = last.family!;
  const asked = { requestedBy: 'watch', reason: 'older envelopes found' };
  const run = { id: randomUUID(), kind: 'rotation', family, version, ...asked } as const;
  return await begin(shop, run, 'start, older envelopes found,', async (tx) => {
    if (!(await isActive(tx, family, version))) throw new InTheWay(); // closed or followed meanwhile
    await copyWaivers(tx, last.id, run.id);
  });
}

/** One step further on a column: the guard is added, then validated. Nothing is written where it stands. */
async function raiseGuard(shop: Workshop, guarded: GuardedColumn, version: number): Promise<GuardStep> {
  const found = await readGuards(shop, guarded);
  if (isGuarded(found, guarded, version) && !found.some((each) => each.version < version)) return 'done';
  const problem = await findGuardProblem(shop, guarded);
  if (problem !== undefined) return { refused: problem };
  if (!hasGuard(found, guarded, version)) {
    const added = await addGuard(shop, guarded, version);
    if (added !== 'done') return added;
  }
  return await validateGuard(shop, guarded, Math.max(version, ...found.map((each) => each.version)));
}

function listGuarded(shop: Workshop, catalog: Catalog, family: string): GuardedColumn[] {
  return shop.policy.columns.flatMap((registered) => {
    const table = catalog.tables.get(registered.address);
    return registered.class !== family || table === undefined ? [] : [{ registered, table }];
  });
}

function listBroken(shop: Workshop, catalog: Catalog, family: string): ColumnProblem[] {
  return shop.policy.columns.flatMap(({ class: name, address, column }) => {
    const problem = name === family ? catalog.problems.get(address) : undefined;
    return problem === undefined ? [] : [{ table: address, column, problem }];
  });
}

const sentences: Readonly<Record<Exclude<GuardStep, object>, string | undefined>> = {
  done: undefined,
  late: 'it holds plaintext, values that are no envelopes or values that were given up: set those to null',
  busy: 'its table was locked for longer than a guard may wait; it is tried again',
};

async function guardColumns(shop: Workshop, columns: readonly GuardedColumn[], version: number) {
  const problems: ColumnProblem[] = [];
  for (const guarded of columns) {
    const step = await raiseGuard(shop, guarded, version);
    const problem = typeof step === 'object' ? step.refused : sentences[step];
    const { address: table, column } = guarded.registered;
    if (problem !== undefined) problems.push({ table, column, problem });
  }
  return problems;
}

/** Whether the strictest guard that there can be stands on each of these columns. */
async function areAllGuarded(shop: Workshop, columns: readonly GuardedColumn[], version: number): Promise<boolean> {
  let all = true;
  for (const guarded of columns) all = isGuarded(await readGuards(shop, guarded), guarded, version) && all;
  return all;
}

/** Whether a guard is due and, for all that was seen, can be made. */
async function isGuardOpen({ pool }: Workshop, columns: readonly RegisteredColumn[], due: number | undefined) {
  const family = columns[0]?.class;
  if (due === undefined || family === undefined || (await listProblems(pool, family)).length > 0) return false;
  const known = await listKnownGuards(pool, family);
  const stands = ({ address, column }: RegisteredColumn) =>
    known.some((each) => each.table === address && each.column === column && each.version >= due && each.validatedAt);
  return !columns.every(stands);
}

/** The final pass: writers have ended, and no column holds anything older. False: not now. */
async function isClean(shop: Workshop, columns: readonly GuardedColumn[], last: Run): Promise<boolean> {
  for (const table of new Set(columns.map((each) => each.table))) {
    if (!(await waitOutWriters(rowsOf(shop, table), table, waitOutMaxMs))) return false;
  }
  return (await countLate(shop, last)) === 0;
}

/** Looks at one family. Answers the run that was started, if one was. */
async function watchFamily(shop: Workshop, family: string, options: WatchOptions): Promise<string | undefined> {
  const known = shop.keyring.state.families.get(family);
  const rule = shop.policy.classes.get(family)?.retire;
  if (known?.active === undefined || rule === undefined) return undefined;
  const [before, { now }] = [await findLastDone(shop.pool, family), await readClock(shop.pool, family)];
  if (before === undefined || (await findUnfinished(shop.pool, family)) !== undefined) return undefined;
  const due = guardVersion(known, rule, now);
  const registered = shop.policy.columns.filter((each) => each.class === family);
  const isIndexed = registered.every(({ address, column }) => shop.catalog.tables.get(address)?.indexed.has(column));
  const unindexedMs = (await isGuardOpen(shop, registered, due)) ? guardUnindexedMs : lookUnindexedMs;
  if (!(await claimWatch(shop.pool, family, options.now === true ? 0 : isIndexed ? lookEveryMs : unindexedMs))) {
    return undefined;
  }
  const catalog = await loadCatalog(shop.targets, registered);
  const fresh = { ...shop, catalog };
  const columns = listGuarded(fresh, catalog, family);
  const broken = listBroken(fresh, catalog, family);
  if (broken.length === 0 && (await areAllGuarded(fresh, columns, known.active))) {
    await setProblems(shop.pool, family, await guardColumns(fresh, columns, known.active)); // drops what is lower
    return undefined;
  }
  const last = (await findRun(shop.pool, before))!;
  if ((await countLate(fresh, last)) > 0) return await startLate(fresh, last, known.active);
  if (due === undefined || !(await isClean(fresh, columns, last))) return undefined;
  const problems = await guardColumns(fresh, columns, due);
  await setProblems(shop.pool, family, [...broken, ...problems]);
  if (problems.length === 0 || (await countLate(fresh, last)) === 0) return undefined;
  return await startLate(fresh, last, known.active); // an older one slipped in before the guard
}

/** Looks at every family of the policy whose turn it is, at one beside the other. An error of one is thrown when all had their turn. */
export async function watchDone(shop: Workshop, options: WatchOptions = {}): Promise<string[]> {
  if (!(await mayWork(shop))) return [];
  await shop.keyring.refresh();
  const families = [...shop.policy.classes.keys()];
  const looks = await Promise.allSettled(families.map((family) => watchFamily(shop, family, options)));
  const failed = looks.flatMap((look) => (look.status === 'rejected' ? [look.reason as unknown] : []));
  const errors = failed.filter((error) => !(error instanceof NotInForce));
  if (errors.length > 0) throw errors[0];
  return looks.flatMap((look) => (look.status === 'fulfilled' && look.value !== undefined ? [look.value] : []));
}
