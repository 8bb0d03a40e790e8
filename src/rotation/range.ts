/**
 * Works one key range of a run through, batch after batch:
 *
 *     read → renew (opened and sealed in memory) → intent entry → UPDATE → result entry with the checkpoint
 *
 * While Postgres updates one batch, the next is read and renewed. The result of a batch and the intent of the next share
 * a commit. A crash costs at most the batch between intent and result: its rows are then current already and are passed
 * over when the range is done again from its checkpoint.
 *
 * The intent commits under the epoch that stands. If a version was activated meanwhile, what was sealed is dropped and
 * the batch is made again: no worker stores envelopes of a version that has been followed.
 */
import { randomUUID } from 'node:crypto';
import { formatEntry } from '../audit/entry.ts';
import { isFresh, StaleEpoch, type AuditLog, type Receipt } from '../audit/log.ts';
import { sqlState, type Client, type Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Keyring } from '../keys/keyring.ts';
import type { Policy, RegisteredColumn } from '../policy/policy.ts';
import { readBatch, writeBatch, type Change, type Key, type Row } from './batch.ts';
import { formatRow, loadCatalog, type Catalog, type TableShape } from './catalog.ts';
import { columnsOf, staleVersions } from './plan.ts';
import { layOut, Renewer } from './renew.ts';
import type { Failure } from './failure-store.ts';
import {
  claimRange,
  finishRange,
  insertCheckpoint,
  LeaseLost,
  releaseRange,
  type Checkpoint,
  type Range,
} from './range-store.ts';
import { findRun, type Run } from './store.ts';

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
    // What is read as stale is renewed or recorded, never passed over in silence.
    const settled = [...renewed.columns, ...renewed.failures.map((failure) => failure.column)];
    if (!settled.includes(step.column)) {
      failures.push({ column: step.column, row: formatRow(row.key), code: 'envelope_malformed' });
    }
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
): Promise<Receipt> {
  for (;;) {
    try {
      return await shop.audit.append(records, shop.keyring.state.epoch, writes);
    } catch (error) {
      if (!(error instanceof StaleEpoch)) throw error;
      await shop.keyring.refresh();
    }
  }
}

/** How far a range came, and why it went no further. */
interface Reached {
  readonly why: 'finished' | 'stopped' | 'outdated';
  readonly range: Range;
}

/** What is still to be written down of a range: the result of its last batch, and how far it is with that. */
class Log {
  readonly #job: Job;
  #result: { line: string } | undefined;
  #point: Checkpoint | undefined;
  /** The range as far as it is written down. */
  range: Range;

  constructor(job: Job) {
    this.#job = job;
    this.range = job.range;
  }

  note(result: { line: string }, point?: Checkpoint): void {
    this.#result = result;
    this.#point = point;
  }

  /** Writes it down, together with the intent of the next batch. */
  async flush(intent?: { line: string }): Promise<Receipt | undefined> {
    const { shop, range, lease } = this.#job;
    const records = [this.#result, intent].filter((each) => each !== undefined);
    const point = this.#point;
    if (records.length === 0) return undefined;
    this.#result = this.#point = undefined;
    if (point === undefined) return await appendAlways(shop, records);
    try {
      const receipt = await appendAlways(shop, records, (tx) => insertCheckpoint(tx, range, lease, point));
      this.range = { ...range, step: point.step, cursor: point.cursor };
      return receipt;
    } catch (error) {
      // The rows were changed, and that is told, whoever goes on with the range.
      if (error instanceof LeaseLost) await appendAlways(shop, records.slice(0, 1));
      throw error;
    }
  }
}

async function workThrough(job: Job, isStopping: () => boolean): Promise<Reached> {
  const { shop } = job;
  const log = new Log(job);
  const batches = prepareBatches(job);
  let upcoming = batches.next();
  for (;;) {
    const round = await upcoming;
    if (round.done === true || isStopping()) {
      await log.flush();
      await batches.return(undefined);
      return { why: round.done === true ? 'finished' : 'stopped', range: log.range };
    }
    const prepared = round.value;
    const intended = await log.flush(record(job, 'intent', prepared.changes.length));
    if (!job.renewer.isCurrent(shop.keyring.state) || intended === undefined || !isFresh(intended)) {
      log.note(record(job, 'failed', 0));
      await log.flush();
      await batches.return(undefined);
      return { why: 'outdated', range: log.range };
    }
    upcoming = batches.next(); // read and renewed while Postgres updates
    upcoming.catch(() => undefined); // looked at in the next round, unless the update fails first
    const written = await update(job, prepared);
    const { step, last: cursor, failures } = prepared;
    const result = record(job, failures.length > 0 ? 'failed' : 'ok', written.rows);
    log.note(result, { step: step.name, cursor, done: written.done, failures });
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
    const catalog = await loadCatalog(shop.targetPool, shop.policy.columns);
    for (let reached: Reached = { why: 'outdated', range }; ;) {
      await shop.keyring.refresh(); // the active version must be the one that this run made
      reached = await workThrough(openJob({ ...shop, catalog }, run, reached.range, lease), isStopping);
      if (reached.why === 'finished') await finishRange(shop.pool, range.id, lease);
      if (reached.why !== 'outdated') return;
    }
  } finally {
    await releaseRange(shop.pool, range.id, lease);
  }
}
