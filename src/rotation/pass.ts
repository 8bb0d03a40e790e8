/**
 * A pass over the tables of a run: planned as ranges, and verified once they are worked through. Verifying ends in one of
 * four ways:
 *
 *     rows failed, and were not tried twice   → those rows once more
 *     something else is left                  → another pass
 *     it cannot be proven                     → blocked, with what a person has to do: rows that do not open, a missing
 *                                               table, values of a version that is not known
 *     every column counted: nothing left but rows that were given up by approval   → done
 *
 * A verification writes nothing, and is done when it has looked at every row; what it found stands in its failures.
 */
import { randomUUID } from 'node:crypto';
import type { Pool } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { keyAfter, readBatch, type Key } from './batch.ts';
import { parseRow, type TableShape } from '../targets/catalog.ts';
import { countStale, countVersions, findVersionBounds, hasStale, waitOutWriters } from './census.ts';
import { noteEnd } from './adoption-store.ts';
import { describeDropped, describeMissing } from './dropped.ts';
import { appendInForce, phaseLine } from './entries.ts';
import { listRetryable, listWaived } from './failure-store.ts';
import { limitsOf } from './phase.ts';
import { insertPass, insertRetry, type RangeSpec } from './range-store.ts';
import { listRecentRows, type ReadKeys } from './recent.ts';
import { versionOf } from './renew.ts';
import { isIndexed, type Workshop } from './scan.ts';
import { setBlocked, setDone, type Run } from './store.ts';
import { rowsOf } from '../targets/targets.ts';
import { measureWal, readWalPositions } from './wal.ts';
import { columnsOf, sourced, staleOf, staleVersions, unopened, type Stale } from './work.ts';

const rangeRowsMin = 2_000;
const rangeRowsMax = 50_000;
/** Ranges for every one that is worked on at the same time: so that none is left alone with a long last one. */
const rangesEach = 4;
const namedRowsMax = 5_000;
const urgentReadRows = 5_000;
const waitOutMaxMs = 5_000;

interface RunTable {
  readonly table: TableShape;
  readonly columns: readonly RegisteredColumn[];
}

/** The tables of a run, each with the columns that are brought up to date. */
export function listTables(shop: Pick<Workshop, 'catalog'>, run: Run): RunTable[] {
  const columns = columnsOf(shop.catalog, run);
  return [...new Set(columns.map((column) => column.address))].flatMap((address) => {
    const table = shop.catalog.tables.get(address);
    return table === undefined ? [] : [{ table, columns: columns.filter((column) => column.address === address) }];
  });
}

/** The first registered table of the run that cannot be worked on, in a sentence. */
export function findProblem(shop: Pick<Workshop, 'catalog'>, run: Run): string | undefined {
  const addresses = new Set(columnsOf(shop.catalog, run).map((column) => column.address));
  return [...addresses].map((address) => shop.catalog.problems.get(address)).find((problem) => problem !== undefined);
}

interface StaleCount {
  readonly table: string;
  readonly column: string;
  readonly total: number;
  /** What most of them are. */
  readonly most: Stale | undefined;
}

/** Each with one version or state, and how many rows it is so of: one look at an index for each, or one at the whole table. */
async function countEach(db: Pool, table: TableShape, all: readonly Stale[]): Promise<[Stale, number][]> {
  const counts: [Stale, number][] = [];
  for (const stale of all) {
    if (typeof stale.value === 'string' || stale.tenants !== undefined) {
      counts.push([stale, await countStale(db, table, [stale])]);
    } else if (isIndexed(table, stale)) {
      const each = stale.value.map((version): Stale => ({ ...stale, value: [version] }));
      for (const one of each) counts.push([one, await countStale(db, table, [one])]);
    } else {
      const found = await countVersions(db, table, stale.column);
      for (const version of stale.value) counts.push([{ ...stale, value: [version] }, found.get(version) ?? 0]);
    }
  }
  return counts;
}

async function countLeft(shop: Workshop, run: Run): Promise<StaleCount[]> {
  const counts: StaleCount[] = [];
  for (const { table, columns } of listTables(shop, run)) {
    for (const column of columns) {
      const each = await countEach(rowsOf(shop, table), table, staleOf(shop.keyring.state, run, column));
      const [most] = each.toSorted(([, a], [, b]) => b - a);
      const total = each.reduce((n, [, count]) => n + count, 0);
      const stale = most === undefined || most[1] === 0 ? undefined : most[0];
      counts.push({ table: table.address, column: column.column, total, most: stale });
    }
  }
  return counts;
}

const sum = (counts: readonly { total: number }[]) => counts.reduce((n, { total }) => n + total, 0);

/**
 * Cuts a table into ranges of about as many old rows each. Where indexes find the rows of every column, the cuts are found
 * among those of the column with most to do; elsewhere along the whole key.
 */
async function planRanges(shop: Workshop, run: Run, { table, columns }: RunTable, counts: readonly StaleCount[]) {
  const most = counts.reduce((one, other) => (other.total > one.total ? other : one));
  const { concurrency } = limitsOf(shop.policy, run, columns);
  const even = Math.ceil(most.total / (rangesEach * concurrency));
  const rows = Math.max(rangeRowsMin, Math.min(rangeRowsMax, even));
  const isQuick = counts.every((each) => each.most === undefined || isIndexed(table, each.most));
  const stale = most.most === undefined ? [] : [most.most];
  const ranges: RangeSpec[] = [];
  for (let lower: Key | undefined; ;) {
    const among = { ...(isQuick && { stale }), ...(lower !== undefined && { after: lower }) };
    const upper = await keyAfter(rowsOf(shop, table), table, rows, among);
    const bounds = { ...(lower !== undefined && { lower }), ...(upper !== undefined && { upper }) };
    ranges.push({ id: randomUUID(), table: table.address, ...bounds });
    if (upper === undefined) return ranges; // the last range is open: rows that come later are in it
    lower = upper;
  }
}

function nameRows(table: string, rows: readonly string[], rank: number): RangeSpec[] {
  const specs: RangeSpec[] = [];
  for (let from = 0; from < rows.length; from += namedRowsMax) {
    specs.push({ id: randomUUID(), table, rows: rows.slice(from, from + namedRowsMax), rank });
  }
  return specs;
}

/** Of an emergency: rows that somebody opened lately are the ones that are missed, and are done before all others. */
async function planUrgent(shop: Workshop, run: Run): Promise<RangeSpec[]> {
  if (!run.compromised || run.family === undefined || run.pass > 0) return [];
  const read: ReadKeys = (address, column, version, after) => {
    const table = shop.catalog.tables.get(address);
    if (table === undefined) return Promise.resolve([]);
    const stale = [{ column, value: [version] }];
    const request = { columns: [], stale, rowsMax: urgentReadRows, ...(after !== undefined && { after }) };
    return readBatch(rowsOf(shop, table), table, request);
  };
  const urgent = await listRecentRows(shop, read, run.family);
  return [...urgent].flatMap(([address, rows]) => nameRows(address, rows, 0));
}

type Line = ReturnType<typeof phaseLine>;

/** Ranges for everything that is old; none when nothing is. `before`: what is told together with it. */
export async function planPass(shop: Workshop, run: Run, before: readonly Line[] = []): Promise<void> {
  const totals = await countLeft(shop, run);
  const ranges = await planUrgent(shop, run);
  for (const each of listTables(shop, run)) {
    const counts = totals.filter(({ table }) => table === each.table.address);
    if (sum(counts) > 0) ranges.push(...(await planRanges(shop, run, each, counts)));
  }
  const walFrom = await readWalPositions(shop, listTables(shop, run));
  const line = phaseLine(run, `re-encrypting, pass ${run.pass + 1},`, sum(totals));
  await appendInForce(shop, [...before, line], (tx) => insertPass(tx, run.id, run.pass + 1, ranges, totals, walFrom));
}

/** Tries the rows that failed in this pass once more. */
async function retryFailed(shop: Workshop, run: Run): Promise<void> {
  const ranges = (await listRetryable(shop.pool, run.id)).flatMap(({ table, rows }) => nameRows(table, rows, 1));
  await appendInForce(shop, [phaseLine(run, `pass ${run.pass}, rows that failed once more,`, run.failed)], (tx) =>
    insertRetry(tx, run.id, run.pass, ranges),
  );
}

export async function block(shop: Workshop, run: Run, sentence: string, before: readonly Line[] = []): Promise<void> {
  const line = phaseLine(run, 'blocked', run.failed);
  await appendInForce(shop, [...before, line], (tx) => setBlocked(tx, run.id, sentence));
}

/** What stands in a column and is no work for us, yet may be somebody's value, in a sentence. */
async function findForeign(shop: Workshop, table: TableShape, column: RegisteredColumn): Promise<string | undefined> {
  const db = rowsOf(shop, table);
  const place = `${table.address}.${column.column}`;
  const mend = 'Restore or clear it; it goes on by itself.';
  const bounds = await findVersionBounds(db, table, column.column);
  if (bounds === undefined) return undefined;
  if (bounds.lowest < 0) return `${place} holds text that begins like an envelope and is none. ${mend}`;
  await shop.keyring.refresh(); // after the count: whatever may rightly stand there is known now
  const family = shop.keyring.state.families.get(column.class);
  const used = [...(family?.versions.values() ?? [])].filter(({ state }) => state !== 'pending');
  const newest = Math.max(0, ...used.map(({ version }) => version));
  const isGone = (version: number) => (family?.versions.get(version)?.state ?? 'destroyed') === 'destroyed';
  const gone = Array.from({ length: newest }, (_, i) => i + 1).filter(isGone);
  if (bounds.highest > newest) gone.push(bounds.highest);
  for (const version of gone) {
    if (!(await hasStale(db, table, [{ column: column.column, value: [version] }]))) continue;
    return `${place} holds an envelope of version ${version}, which family ${column.class} does not have. ${mend}`;
  }
  return undefined;
}

/** Why a count of zero would be no proof, in a sentence: a table that cannot be counted, or a value that is nobody's. */
async function findObstacle(shop: Workshop, run: Run): Promise<string | undefined> {
  if (run.kind === 'rotation') {
    const dropped = await describeDropped(shop, run.family!, staleVersions(shop.keyring.state, run.family!));
    if (dropped !== undefined) return dropped;
  }
  const problem = findProblem(shop, run);
  if (problem !== undefined) return problem;
  for (const { table, columns } of listTables(shop, run)) {
    for (const column of columns) {
      const foreign = await findForeign(shop, table, column);
      if (foreign !== undefined) return foreign;
      const envelopes = run.kind === 'leave' ? await countStale(rowsOf(shop, table), table, [unopened(column)]) : 0;
      if (envelopes > 0) return describeEnvelopes(table, column, envelopes);
      const plaintext = run.kind === 'finish' ? await countStale(rowsOf(shop, table), table, [sourced(column)]) : 0;
      if (plaintext > 0) return describePlaintext(table, column, plaintext);
    }
  }
  return undefined;
}

function describePlaintext({ address }: TableShape, { column, from }: RegisteredColumn, rows: number): string {
  return `${address}.${from} still holds ${rows} values beside text in ${column} that is no envelope. Mend those rows; it goes on by itself.`;
}

function describeEnvelopes({ address }: TableShape, { column, from }: RegisteredColumn, rows: number): string {
  return `${rows} envelopes of ${address}.${column} have no plaintext in ${from}: an application still writes them. Move its writes, cancel this, and undo once more.`;
}

/**
 * Envelopes that came late: of older versions, in columns of a family whose last rotation is done. What was given up in that
 * one does not count, nor does plaintext, which is adopted.
 */
export async function countLate(shop: Workshop, last: Run): Promise<number> {
  let late = 0;
  for (const { table, columns } of listTables(shop, last)) {
    for (const column of columns) {
      const stale = { column: column.column, value: staleVersions(shop.keyring.state, column.class) };
      for (const [, n] of await countEach(rowsOf(shop, table), table, [stale])) late += n;
    }
  }
  return late === 0 ? 0 : Math.max(0, late - (await countWaived(shop, last)));
}

/** How many of the values that were given up still stand there as they did: old, and not open. */
async function countWaived(shop: Workshop, run: Run): Promise<number> {
  let standing = 0;
  for (const { table: address, column: name, rows } of await listWaived(shop.pool, run.id)) {
    const table = shop.catalog.tables.get(address);
    const column = columnsOf(shop.catalog, run).find((each) => each.address === address && each.column === name);
    if (table === undefined || column === undefined) continue;
    const keys = rows.flatMap((row) => [parseRow(table, row)].filter((key) => key !== undefined));
    const request = { columns: [name], rows: keys, rowsMax: keys.length };
    const stale = staleOf(shop.keyring.state, run, column).flatMap(({ value }) =>
      typeof value === 'string' ? [] : value,
    );
    for (const { values } of await readBatch(rowsOf(shop, table), table, request)) {
      if (typeof values[0] === 'string' && stale.includes(versionOf(values[0]))) standing += 1;
    }
  }
  return standing;
}

function describeFailures(run: Run): string {
  const count = run.failed - run.waived;
  const rows = count === 1 ? 'One value does' : `${count} values do`;
  return (
    `${rows} not open or cannot be stored: GET /v1/rotations/${run.id}/failures names them. Restore or clear them and ` +
    `resume (it also looks again by itself), or give them up: POST /v1/rotations/${run.id}/failures/waive, which needs approval.`
  );
}

/** Counts after everybody who was writing has ended. Nothing left, no failures and every table counted: done. */
export async function verify(shop: Workshop, run: Run): Promise<void> {
  const missing = describeMissing(shop.catalog, run);
  if (missing !== undefined) return await block(shop, run, missing);
  if (run.failed > run.waived && run.retriedPass < run.pass) return await retryFailed(shop, run);
  for (const { table } of listTables(shop, run)) {
    if (!(await waitOutWriters(rowsOf(shop, table), table, waitOutMaxMs))) return; // somebody still writes: next time
  }
  const stale = sum(await countLeft(shop, run));
  const told = phaseLine(run, 'verifying', stale);
  if (run.kind === 'verification') {
    const problem = findProblem(shop, run);
    if (problem !== undefined) return await block(shop, run, problem, [told]);
    return await conclude(shop, run, [told]); // every row was looked at: that is all
  }
  if (stale > run.failed - run.waived + (await countWaived(shop, run))) return await planPass(shop, run, [told]);
  if (run.failed > run.waived) return await block(shop, run, describeFailures(run), [told]);
  const obstacle = await findObstacle(shop, run);
  if (obstacle !== undefined) return await block(shop, run, obstacle, [told]);
  await conclude(shop, run, [told]);
}

async function conclude(shop: Workshop, run: Run, before: readonly Line[]): Promise<void> {
  const walBytes = await measureWal(shop, run);
  await appendInForce(shop, [...before, phaseLine(run, 'end', run.failed)], async (tx) => {
    await setDone(tx, run.id, run.pass, walBytes);
    await noteEnd(tx, run);
  });
}
