/**
 * Works one key range of a run through, batch after batch:
 *
 *     read → renew (opened and sealed in memory) → intent entry → UPDATE → result entry with the checkpoint
 *
 * While Postgres updates one batch, the next is read and renewed. The result of a batch and the intent of the next share
 * a commit. A crash costs at most the batch between intent and result: its rows are then current already and are passed
 * over when the range is done again from its checkpoint.
 */
import { randomUUID } from 'node:crypto';
import { formatEntry } from '../audit/entry.ts';
import { StaleEpoch, type AuditLog } from '../audit/log.ts';
import { sqlState, type Client, type Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Keyring } from '../keys/keyring.ts';
import type { Policy, RegisteredColumn } from '../policy/policy.ts';
import { readBatch, writeBatch, type Change, type Key, type Row } from './batch.ts';
import { formatRow, type Catalog, type TableShape } from './catalog.ts';
import { columnsOf, staleVersions } from './plan.ts';
import { layOut, Renewer } from './renew.ts';
import {
  claimRange,
  findRun,
  finishRange,
  insertCheckpoint,
  releaseRange,
  type Failure,
  type Range,
  type Run,
} from './store.ts';

/** What rotating needs of the service. */
export interface Workshop {
  readonly instanceId: string;
  /** For our own tables. */
  readonly pool: Pool;
  /** For the customer's tables: `row_security = off`, short lock timeout. */
  readonly targetPool: Pool;
  readonly keyring: Keyring;
  readonly audit: AuditLog;
  readonly policy: Policy;
  readonly catalog: Catalog;
}

const batchRows = 1000;
/** Requests of the same process are answered between chunks of this many rows. */
const rowsPerTurn = 64;
/** SQLSTATE of a lock that was not to be had within the session's lock_timeout. */
const lockNotAvailable = '55P03';

interface Step {
  readonly name: string;
  readonly column: string;
  readonly version: number;
}

interface Prepared {
  readonly step: Step;
  readonly last: Key;
  readonly changes: readonly Change[];
  /** By row, which columns a change brings up to date. */
  readonly columns: ReadonlyMap<string, readonly string[]>;
  readonly failures: readonly Failure[];
}

interface Written {
  readonly done: ReadonlyMap<string, number>;
  readonly rows: number;
}

/** Everything about one range while it is worked on. */
interface Job {
  readonly shop: Workshop;
  readonly run: Run;
  readonly range: Range;
  readonly lease: string;
  readonly table: TableShape;
  readonly names: readonly string[];
  readonly renewer: Renewer;
  readonly steps: readonly Step[];
}

function listSteps(shop: Workshop, run: Run, columns: readonly RegisteredColumn[]): Step[] {
  return columns.flatMap((column) =>
    staleVersions(shop.keyring.state, column, run.kind).map((version) => ({
      name: `${column.column}/${version}`,
      column: column.column,
      version,
    })),
  );
}

function openJob(shop: Workshop, run: Run, range: Range, lease: string): Job {
  const table = shop.catalog.tables.get(range.table);
  if (table === undefined) {
    const problem = shop.catalog.problems.get(range.table) ?? `Table ${range.table} is not registered any more.`;
    throw new FieldkeepError('conflict', problem);
  }
  const columns = columnsOf(shop.policy, run).filter((column) => column.address === range.table);
  const { slots, names } = layOut(columns, (name) => shop.policy.classes.get(name)!);
  const renewer = new Renewer(shop.keyring, shop.keyring.state, table, slots);
  return { shop, run, range, lease, table, names, renewer, steps: listSteps(shop, run, columns) };
}

async function renewRows(job: Job, step: Step, rows: readonly Row[]): Promise<Prepared> {
  const changes: Change[] = [];
  const columns = new Map<string, readonly string[]>();
  const failures: Failure[] = [];
  for (const [i, row] of rows.entries()) {
    if (i > 0 && i % rowsPerTurn === 0) await new Promise((resolve) => setImmediate(resolve));
    const renewed = await job.renewer.renew(row);
    failures.push(...renewed.failures);
    if (renewed.next === undefined) continue;
    changes.push({ ...row, next: renewed.next });
    columns.set(formatRow(row.key), renewed.columns);
  }
  return { step, last: rows.at(-1)!.key, changes, columns, failures };
}

/** All batches of the range from its checkpoint on; each is read and renewed when it is asked for. */
async function* prepareBatches(job: Job): AsyncGenerator<Prepared> {
  const { range, steps, shop, table, names } = job;
  const from = Math.max(
    0,
    steps.findIndex((step) => step.name === range.step),
  );
  for (const step of steps.slice(from)) {
    let after = step.name === range.step ? range.cursor : range.lower;
    for (;;) {
      const { column, version } = step;
      const bounds = {
        ...(after !== undefined && { after }),
        ...(range.upper !== undefined && { upper: range.upper }),
      };
      const request = { columns: names, column, version, rowsMax: batchRows, ...bounds };
      const rows = await readBatch(shop.targetPool, table, request);
      if (rows.length === 0) break;
      yield await renewRows(job, step, rows);
      after = rows.at(-1)!.key;
    }
  }
}

/** In the first pass locked rows are passed over; later ones wait for them, no longer than the session's lock_timeout. */
async function update(job: Job, prepared: Prepared): Promise<Written> {
  const { shop, table, names, range } = job;
  if (prepared.changes.length === 0) return { done: new Map(), rows: 0 };
  let keys: Key[];
  try {
    keys = await writeBatch(shop.targetPool, table, names, prepared.changes, range.pass === 1);
  } catch (error) {
    if (sqlState(error) !== lockNotAvailable) throw error;
    keys = await writeBatch(shop.targetPool, table, names, prepared.changes, true);
  }
  const done = new Map<string, number>();
  for (const key of keys) {
    for (const column of prepared.columns.get(formatRow(key)) ?? []) done.set(column, (done.get(column) ?? 0) + 1);
  }
  return { done, rows: keys.length };
}

/** The worker's own entries: no value leaves it, so a batch is one entry with its count. */
function record(job: Job, outcome: 'intent' | 'ok' | 'failed', count: number): { line: string } {
  const { run, range } = job;
  return {
    line: formatEntry({
      v: 1,
      time: new Date().toISOString(),
      requestId: randomUUID(),
      action: run.kind === 'adoption' ? 'adopt' : 'reencrypt',
      agent: 'fieldkeep-worker',
      table: range.table,
      purpose: `${outcome === 'intent' ? 'intent' : 'result'} of ${run.kind} ${run.id}`,
      decision: 'allow',
      outcome: outcome === 'failed' ? 'failed' : 'ok',
      count,
      ...(run.family !== undefined && { class: run.family }),
      ...(run.version !== undefined && { keyVersion: run.version }),
    }),
  };
}

/** The worker may always write; an epoch that moved only means that its entry is sent again under the new one. */
export async function appendAlways(
  shop: Pick<Workshop, 'audit' | 'keyring'>,
  records: readonly { line: string }[],
  writes?: (tx: Client) => Promise<void>,
): Promise<void> {
  for (;;) {
    try {
      await shop.audit.append(records, shop.keyring.state.epoch, writes);
      return;
    } catch (error) {
      if (!(error instanceof StaleEpoch)) throw error;
      await shop.keyring.refresh();
    }
  }
}

async function workThrough(job: Job, isStopping: () => boolean): Promise<boolean> {
  const { shop, range, lease } = job;
  const batches = prepareBatches(job);
  let upcoming = batches.next();
  let result: { line: string } | undefined;
  let checkpoint: ((tx: Client) => Promise<void>) | undefined;
  const flush = async (intent?: { line: string }) => {
    const records = [result, intent].filter((each) => each !== undefined);
    if (records.length > 0) await appendAlways(shop, records, checkpoint);
    result = checkpoint = undefined;
  };
  for (;;) {
    const round = await upcoming;
    if (round.done === true || isStopping()) {
      await flush();
      await batches.return(undefined);
      return round.done === true;
    }
    const prepared = round.value;
    await flush(record(job, 'intent', prepared.changes.length));
    upcoming = batches.next(); // read and renewed while Postgres updates
    upcoming.catch(() => undefined); // looked at in the next round, unless the update fails first
    const written = await update(job, prepared);
    const point = { step: prepared.step.name, cursor: prepared.last, done: written.done, failures: prepared.failures };
    result = record(job, prepared.failures.length > 0 ? 'failed' : 'ok', written.rows);
    checkpoint = (tx) => insertCheckpoint(tx, range, lease, point);
  }
}

/**
 * Works a range through, or as far as it gets before `isStopping`. Does nothing when the range is finished or somebody
 * alive has it. Errors: LeaseLost, those of the database, outages of keys; the range then goes on from its checkpoint.
 */
export async function workRange(shop: Workshop, rangeId: string, isStopping: () => boolean): Promise<void> {
  const lease = randomUUID();
  const range = await claimRange(shop.pool, rangeId, lease, shop.instanceId);
  if (range === undefined) return;
  try {
    const run = await findRun(shop.pool, range.run);
    if (run === undefined) return;
    await shop.keyring.refresh(); // the active version must be the one that this run made
    const finished = await workThrough(openJob(shop, run, range, lease), isStopping);
    if (finished) await finishRange(shop.pool, range.id, lease);
  } finally {
    await releaseRange(shop.pool, range.id, lease);
  }
}
