/**
 * A pass over the tables of a run: planned as key ranges, and verified once they are worked through. Verifying ends in one
 * of three ways:
 *
 *     something is left         → another pass
 *     it cannot be proven       → blocked, with what a person has to do: rows that do not open, a missing table, values of
 *                                 a version that is not known
 *     every column counted: 0   → done
 */
import { randomUUID } from 'node:crypto';
import { formatEntry } from '../audit/entry.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { keyAfter, type Key } from './batch.ts';
import type { TableShape } from './catalog.ts';
import { countVersion, findVersionBounds, hasVersion, waitOutWriters } from './census.ts';
import { columnsOf, staleVersions } from './plan.ts';
import { appendAlways, type Workshop } from './range.ts';
import { insertPass, type RangeSpec } from './range-store.ts';
import { setBlocked, setDone, type Run } from './store.ts';

const rangeRows = 50_000;
const waitOutMaxMs = 5_000;

/** An entry of what the service does by itself, with the run as its purpose. */
export function phaseLine(
  run: Pick<Run, 'id' | 'kind' | 'family' | 'version'>,
  phase: string,
  count?: number,
): { line: string } {
  return {
    line: formatEntry({
      v: 1,
      time: new Date().toISOString(),
      requestId: randomUUID(),
      action: run.kind === 'adoption' ? 'adopt' : 'rotate',
      agent: 'fieldkeep-worker',
      purpose: `${phase} of ${run.kind} ${run.id}`,
      decision: 'allow',
      outcome: phase === 'blocked' ? 'failed' : 'ok',
      ...(run.family !== undefined && { class: run.family }),
      ...(run.version !== undefined && { keyVersion: run.version }),
      ...(count !== undefined && { count }),
    }),
  };
}

/** The tables of a run, each with the columns that are brought up to date. */
function listTables(shop: Workshop, run: Run): { table: TableShape; columns: RegisteredColumn[] }[] {
  const columns = columnsOf(shop.policy, run);
  return [...new Set(columns.map((column) => column.address))].flatMap((address) => {
    const table = shop.catalog.tables.get(address);
    return table === undefined ? [] : [{ table, columns: columns.filter((column) => column.address === address) }];
  });
}

/** The first registered table of the run that cannot be worked on, in a sentence. */
function findProblem(shop: Workshop, run: Run): string | undefined {
  const addresses = new Set(columnsOf(shop.policy, run).map((column) => column.address));
  return [...addresses].map((address) => shop.catalog.problems.get(address)).find((problem) => problem !== undefined);
}

async function planRanges(shop: Workshop, table: TableShape): Promise<RangeSpec[]> {
  const ranges: RangeSpec[] = [];
  for (let lower: Key | undefined; ;) {
    const upper = await keyAfter(shop.targetPool, table, lower, rangeRows);
    const bounds = { ...(lower !== undefined && { lower }), ...(upper !== undefined && { upper }) };
    ranges.push({ id: randomUUID(), table: table.address, ...bounds });
    if (upper === undefined) return ranges; // the last range is open: rows that come later are in it
    lower = upper;
  }
}

async function countStale(shop: Workshop, run: Run): Promise<{ table: string; column: string; total: number }[]> {
  const counts: { table: string; column: string; total: number }[] = [];
  for (const { table, columns } of listTables(shop, run)) {
    for (const column of columns) {
      let total = 0;
      for (const version of staleVersions(shop.keyring.state, column, run.kind)) {
        total += await countVersion(shop.targetPool, table, column.column, version);
      }
      counts.push({ table: table.address, column: column.column, total });
    }
  }
  return counts;
}

export async function planPass(shop: Workshop, run: Run): Promise<void> {
  const totals = await countStale(shop, run);
  const work = new Set(totals.filter(({ total }) => total > 0).map(({ table }) => table));
  const ranges: RangeSpec[] = [];
  for (const { table } of listTables(shop, run)) {
    if (work.has(table.address)) ranges.push(...(await planRanges(shop, table)));
  }
  const count = totals.reduce((sum, { total }) => sum + total, 0);
  await appendAlways(shop, [phaseLine(run, `pass ${run.pass + 1}`, count)], (tx) =>
    insertPass(tx, run.id, run.pass + 1, ranges, totals),
  );
}

async function block(shop: Workshop, run: Run, sentence: string): Promise<void> {
  await appendAlways(shop, [phaseLine(run, 'blocked', run.failed)], (tx) => setBlocked(tx, run.id, sentence));
}

/** What stands in a column and is no work for us, yet may be somebody's value, in a sentence. */
async function findForeign(shop: Workshop, table: TableShape, column: RegisteredColumn): Promise<string | undefined> {
  const place = `${table.address}.${column.column}`;
  const mend = 'Restore or clear it; it goes on by itself.';
  const bounds = await findVersionBounds(shop.targetPool, table, column.column);
  if (bounds === undefined) return undefined;
  if (bounds.lowest < 0) return `${place} holds text that begins like an envelope and is none. ${mend}`;
  await shop.keyring.refresh(); // after the count: whatever may rightly stand there is known now
  const family = shop.keyring.state.families.get(column.class);
  const active = family?.active ?? 0;
  const isGone = (version: number) => (family?.versions.get(version)?.state ?? 'destroyed') === 'destroyed';
  const gone = Array.from({ length: active }, (_, i) => i + 1).filter(isGone);
  if (bounds.highest > active) gone.push(bounds.highest);
  for (const version of gone) {
    if (!(await hasVersion(shop.targetPool, table, column.column, version))) continue;
    return `${place} holds an envelope of version ${version}, which family ${column.class} does not have. ${mend}`;
  }
  return undefined;
}

/** Why a count of zero would be no proof, in a sentence: a table that cannot be counted, or a value that is nobody's. */
async function findObstacle(shop: Workshop, run: Run): Promise<string | undefined> {
  const problem = findProblem(shop, run);
  if (problem !== undefined) return problem;
  for (const { table, columns } of listTables(shop, run)) {
    for (const column of columns) {
      const foreign = await findForeign(shop, table, column);
      if (foreign !== undefined) return foreign;
    }
  }
  return undefined;
}

/** Counts after everybody who was writing has ended. Zero, no failures and every table counted: done. */
export async function verify(shop: Workshop, run: Run): Promise<void> {
  for (const { table } of listTables(shop, run)) {
    if (!(await waitOutWriters(shop.targetPool, table, waitOutMaxMs))) return; // somebody still writes: next time
  }
  const stale = (await countStale(shop, run)).reduce((sum, { total }) => sum + total, 0);
  if (stale > run.failed) return await planPass(shop, run);
  if (run.failed > 0) {
    const rows = run.failed === 1 ? 'One value does' : `${run.failed} values do`;
    return await block(
      shop,
      run,
      `${rows} not open: GET /v1/rotations/${run.id}/failures names them. Restore or clear them; it goes on by itself.`,
    );
  }
  const obstacle = await findObstacle(shop, run);
  if (obstacle !== undefined) return await block(shop, run, obstacle);
  await appendAlways(shop, [phaseLine(run, 'end')], (tx) => setDone(tx, run.id, run.pass));
}
