/**
 * The rotation engine as the benchmarks use it, in one place: a service without HTTP and jobs, rotations that are driven
 * by hand, and the engine's own two statements with something else than crypto between them.
 */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import type { Pool } from '../../src/db.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { parsePolicy, type Policy } from '../../src/policy/policy.ts';
import { readBatch, writeBatch, type Change, type Key, type Row } from '../../src/rotation/batch.ts';
import { loadCatalog, type TableShape } from '../../src/targets/catalog.ts';
import { countStale, findVersionBounds, hasStale } from '../../src/rotation/census.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { nextVersion, startAdoption } from '../../src/rotation/start.ts';
import { findRun, insertRun, isAdopting, listUnfinished } from '../../src/rotation/store.ts';
import type { Stale } from '../../src/rotation/work.ts';
import { openService, type Service } from '../../src/service.ts';
import type { BenchDatabase } from './database.ts';
import type { Pace } from './pace.ts';
import { address, type Column } from './people.ts';

export type { Row, Service, TableShape };

export function countVersion(db: Pool, table: TableShape, column: string, version: number): Promise<number> {
  return countStale(db, table, [{ column, value: [version] }]);
}

export const policyFile = fileURLToPath(new URL('../../keys-policy.json', import.meta.url));

async function readShippedPolicy(): Promise<Policy> {
  return parsePolicy(await readFile(policyFile, 'utf8'));
}

/** The shipped policy with this many ranges of a run at once. */
function withConcurrency(policy: Policy, concurrency: number): Policy {
  const classes = [...policy.classes].map(([name, each]) => {
    return [name, { ...each, rotation: { ...each.rotation, concurrency } }] as const;
  });
  return { ...policy, classes: new Map(classes) };
}

/** A service that does nothing by itself: whoever holds it drives its runs, with so many ranges at once. */
export async function openEngine({ home, workerUrl, rowsUrl }: BenchDatabase, concurrency: number): Promise<Service> {
  const rootKeys = await openEmbeddedRootKeys(join(home, 'root-keys.json'));
  const log = pino({ level: 'warn', base: null });
  const policy = withConcurrency(await readShippedPolicy(), concurrency);
  return await openService({ databaseUrl: workerUrl, rows: new Map([[undefined, rowsUrl]]), rootKeys, policy, log });
}

/** The table of people as the engine sees it. */
export async function describePeople(db: Pool): Promise<TableShape> {
  const targets = { find: () => db, findRows: () => db, close: () => Promise.resolve() };
  return (await loadCatalog(targets, (await readShippedPolicy()).columns)).tables.get(address)!;
}

const tickMs = 50;

/** Works `lanes` ranges at a time until none is free. */
async function workRanges(service: Service, lanes: number): Promise<void> {
  const ranges = await listFreeRanges(service.pool);
  const drive = async () => {
    for (let range = ranges.shift(); range !== undefined; range = ranges.shift()) {
      await workRange(service, range, () => false);
    }
  };
  await Promise.all(Array.from({ length: lanes }, drive));
}

/** Takes a run to its end. The pace is that of its ranges: what a rotation waits for is not counted. */
async function settle(service: Service, id: string, lanes: number): Promise<Pace> {
  let seconds = 0;
  for (;;) {
    await advance(service, id);
    const run = await findRun(service.pool, id);
    if (run === undefined || run.doneAt !== undefined || run.phase === 'blocked') break;
    if (run.phase !== 're-encrypting') await sleep(tickMs);
    const started = performance.now();
    await workRanges(service, lanes);
    if (run.phase === 're-encrypting') seconds += (performance.now() - started) / 1000;
  }
  const { rows } = await service.pool.query<{ n: string }>(
    'select coalesce(sum(done), 0) as n from fieldkeep.rotation_columns where rotation = $1',
    [id],
  );
  return { rows: Number(rows[0]!.n), seconds };
}

export async function rotate(service: Service, family: string, lanes: number): Promise<Pace> {
  const id = randomUUID();
  await service.keyring.refresh();
  const run = { id, kind: 'rotation', family, version: nextVersion(service, family), requestedBy: 'bench' } as const;
  await insertRun(service.pool, run);
  return await settle(service, id, lanes);
}

export async function adoptAll(service: Service, lanes: number): Promise<void> {
  await startAdoption(service, true);
  for (const run of await listUnfinished(service.pool)) await settle(service, run.id, lanes);
}

export function activeVersion({ keyring }: Service, family: string): number {
  return keyring.state.families.get(family)!.active!;
}

/** Whether the table of people holds no plaintext, and nobody is at work on it. */
export async function isAdopted(db: Pool): Promise<boolean> {
  const table = await describePeople(db);
  if (await isAdopting(db)) return false;
  for (const { column } of table.columns) if (await hasStale(db, table, [{ column, value: [0] }])) return false;
  return true;
}

export async function findHighestVersion(db: Pool, table: TableShape, column: Column): Promise<number> {
  return (await findVersionBounds(db, table, column))!.highest;
}

export function indexColumnsOf(table: TableShape, column: Column): string[] {
  return table.columns.find((each) => each.column === column)!.index.map((index) => index.column);
}

/** When the first passes of the runs were worked on: from the plan to the end of the last range, in ms, overlaps joined. */
export async function listBusySpans(db: Pool, runs: readonly string[]): Promise<[from: number, to: number][]> {
  const { rows } = await db.query<{ from: Date; to: Date }>(
    `select r.planned_at as "from", max(g.finished_at) as "to"
     from fieldkeep.rotations r join fieldkeep.rotation_ranges g on g.rotation = r.id and g.pass = 1
     where r.id = any ($1::uuid[]) group by r.id order by 1`,
    [runs],
  );
  const spans: [number, number][] = [];
  for (const { from, to } of rows) {
    const last = spans.at(-1);
    if (last === undefined || from.getTime() > last[1]) spans.push([from.getTime(), to.getTime()]);
    else last[1] = Math.max(last[1], to.getTime());
  }
  return spans;
}

/** Rows read and written as the engine does it, the next batch being read while Postgres updates. */
interface Sweep {
  readonly table: TableShape;
  /** What is read, and compared. */
  readonly columns: readonly string[];
  /** What of that is written; all where absent. */
  readonly written?: readonly string[];
  /** Which rows are wanted. */
  readonly stale: readonly Stale[];
  readonly rowsMax: number;
  /** What to store instead, row by row in the order of the columns. */
  readonly renew: (rows: readonly Row[]) => Next | Promise<Next>;
}

type Next = readonly (readonly (string | null)[])[];

async function* listChanges(db: Pool, sweep: Sweep, lower: Key, upper: Key): AsyncGenerator<Change[]> {
  const { table, columns, stale, rowsMax } = sweep;
  for (let after = lower; ;) {
    const request = { columns, stale, after, upper, rowsMax };
    const rows = await readBatch(db, table, request);
    if (rows.length === 0) return;
    after = rows.at(-1)!.key;
    const next = await sweep.renew(rows);
    yield rows.map((row, i) => ({ ...row, next: next[i]! }));
  }
}

async function sweepStretch(db: Pool, sweep: Sweep, lower: Key, upper: Key): Promise<number> {
  const batches = listChanges(db, sweep, lower, upper);
  const columns = { read: sweep.columns, written: sweep.written ?? sweep.columns };
  let rows = 0;
  for (let upcoming = batches.next(); ;) {
    const round = await upcoming;
    if (round.done === true) return rows;
    upcoming = batches.next();
    upcoming.catch(() => undefined); // looked at in the next round, unless the update fails first
    rows += (await writeBatch(db, sweep.table, columns, round.value, true)).keys.length;
  }
}

/** Sweeps the rows with the ids 1 … `ids`, cut in as many stretches as there are lanes. Answers the rows it updated. */
export async function sweep(db: Pool, what: Sweep, ids: number, lanes: number): Promise<number> {
  const cut = (i: number): Key => [String(Math.floor((ids * i) / lanes))];
  const stretches = Array.from({ length: lanes }, (_, i) => sweepStretch(db, what, cut(i), cut(i + 1)));
  return (await Promise.all(stretches)).reduce((sum, rows) => sum + rows, 0);
}
