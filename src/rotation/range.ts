/**
 * Works one range of a run through, batch after batch:
 *
 *     read → renew (opened and sealed in memory) → intent entry → UPDATE → result entry with the checkpoint
 *
 * While Postgres updates one batch, the next two are read and renewed. The result of a batch and the intent of the next share
 * a commit. A crash costs at most the batch between intent and result: its rows are then current already and are passed
 * over when the range is done again from its checkpoint.
 *
 * The intent commits under the epoch that stands. If a version was activated meanwhile, what was sealed is dropped and
 * the batch is made again: no worker stores envelopes of a version that has been followed.
 */
import { randomUUID } from 'node:crypto';
import { isFresh, type AuditRecord, type Receipt } from '../audit/log.ts';
import { findRefusal, withClientFor } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { loadCatalog, type Catalog } from '../targets/catalog.ts';
import { appendAlways, batchLine } from './entries.ts';
import { mayWork } from './in-force.ts';
import { BatchSize } from './pace.ts';
import { limitsOf } from './phase.ts';
import {
  claimRange,
  findRunOf,
  finishRange,
  insertCheckpoint,
  LeaseLost,
  releaseRange,
  type Checkpoint,
  type Range,
} from './range-store.ts';
import { layOut, Renewer } from './renew.ts';
import { listSteps, prepareBatches, type Job, type Prepared, type Workshop } from './scan.ts';
import { findRun, setThrottle, type Run } from './store.ts';
import { rowsOf } from '../targets/targets.ts';
import { Throttle } from './throttle.ts';
import { columnsOf } from './work.ts';
import { writeChanges, type Written } from './write.ts';

/** A target that does not answer a batch is given up after this long. */
const batchMaxMs = 60_000;
/** In memory at the most, besides the one that is written. */
const batchesAhead = 2;

const nothing: Written = { keys: [], refused: [], ms: 0, contended: false };

type Point = Omit<Checkpoint, 'throttle'>;

function openJob(shop: Workshop, run: Run, range: Range, lease: string, isStopping: () => boolean): Job {
  const table = shop.catalog.tables.get(range.table);
  if (table === undefined) {
    const problem = shop.catalog.problems.get(range.table) ?? `Table ${range.table} is not registered any more.`;
    throw new FieldkeepError('conflict', problem);
  }
  const columns = columnsOf(shop.catalog, run).filter((column) => column.address === range.table);
  const layout = layOut(run.kind, columns, (name) => shop.policy.classes.get(name)!);
  const renewer = new Renewer(shop.keyring, shop.keyring.state, table, run.kind, layout.slots);
  const limits = limitsOf(shop.policy, run, columns);
  const size = new BatchSize(limits.batchMsMax);
  const target = rowsOf(shop, table);
  const throttle = new Throttle({ pool: shop.pool, target, run: run.id, limits, size, isStopping });
  const steps = range.rows === undefined ? listSteps(shop.keyring.state, run, table, columns) : [];
  return { shop, run, range, lease, table, target, layout, renewer, steps, size, throttle };
}

/** In the first pass locked rows are passed over; later ones wait for them, no longer than the session's lock_timeout. */
async function update(job: Job, prepared: Prepared): Promise<{ point: Point; rows: number }> {
  const { table, target, layout, range, size } = job;
  if (prepared.changes.length === 0) return { point: toPoint(prepared, nothing), rows: 0 };
  const skipLocked = range.pass === 1 && range.rows === undefined;
  const written = await withClientFor(target, batchMaxMs, (db) =>
    writeChanges({ db, table, columns: layout, skipLocked }, prepared.changes, size),
  );
  return { point: toPoint(prepared, written), rows: written.keys.length };
}

function toPoint(prepared: Prepared, { keys, refused, ms, contended }: Written): Point {
  const done = new Map(prepared.compared);
  for (const key of keys) {
    for (const column of prepared.columnsOf(key)) done.set(column, (done.get(column) ?? 0) + 1);
  }
  const notStored = refused.flatMap(({ key, state }) =>
    prepared.columnsOf(key).map((column) => ({ column, row: prepared.nameOf(key), code: `not_stored:${state}` })),
  );
  return {
    step: prepared.step,
    cursor: prepared.cursor,
    done,
    failures: [...prepared.failures, ...notStored],
    updateMs: ms,
    contended,
  };
}

/** How far a range came, and why it went no further. */
interface Reached {
  readonly why: 'finished' | 'stopped' | 'outdated';
  readonly range: Range;
}

/** What is still to be written down of a range: the result of its last batch, and how far it is with that. */
class Log {
  readonly #job: Job;
  #result: AuditRecord | undefined;
  #point: Point | undefined;
  /** The range as far as it is written down. */
  range: Range;

  constructor(job: Job) {
    this.#job = job;
    this.range = job.range;
  }

  note(result: AuditRecord, point?: Point): void {
    this.#result = result;
    this.#point = point;
  }

  /** Writes it down, together with the intent of the next batch. */
  async flush(intent?: AuditRecord): Promise<Receipt | undefined> {
    const { shop, range, lease, throttle } = this.#job;
    const records = [this.#result, intent].filter((each) => each !== undefined);
    const point = this.#point;
    if (records.length === 0) return undefined;
    this.#result = this.#point = undefined;
    if (point === undefined) return await appendAlways(shop, records);
    const { reason } = throttle;
    const checkpoint = reason === undefined ? point : { ...point, throttle: reason };
    try {
      const receipt = await appendAlways(shop, records, (tx) => insertCheckpoint(tx, range, lease, checkpoint));
      this.range = { ...range, step: point.step, cursor: point.cursor };
      return receipt;
    } catch (error) {
      // The rows were changed, and that is told, whoever goes on with the range.
      if (error instanceof LeaseLost) await appendAlways(shop, records.slice(0, 1));
      throw error;
    }
  }
}

async function workThrough(job: Job): Promise<Reached> {
  const { shop, run, range, throttle } = job;
  const record = (step: 'ok' | 'failed', count: number) => batchLine(run, range.table, step, count);
  const log = new Log(job);
  const batches = prepareBatches(job);
  const upcoming: ReturnType<typeof batches.next>[] = [];
  // Read and renewed while Postgres commits and updates: two, so that neither waits for the other.
  const prepare = () => {
    const next = batches.next();
    next.catch(() => undefined); // looked at in its turn, unless something else fails first
    upcoming.push(next);
  };
  try {
    for (;;) {
      while (upcoming.length <= batchesAhead) prepare();
      const round = await upcoming.shift()!;
      const ended = round.done === true;
      if (ended || !(await throttle.admit(round.value.changes.length, () => log.flush()))) {
        await log.flush();
        return { why: ended ? 'finished' : 'stopped', range: log.range };
      }
      const prepared = round.value;
      const intent = batchLine(run, range.table, 'intent', prepared.changes.length, prepared.revealed);
      const intended = await log.flush(intent);
      if (!job.renewer.isCurrent(shop.keyring.state) || intended === undefined || !isFresh(intended)) {
        log.note(record('failed', 0));
        await log.flush();
        return { why: 'outdated', range: log.range };
      }
      const { point, rows } = await update(job, prepared);
      log.note(record(point.failures.length > 0 ? 'failed' : 'ok', rows), point);
    }
  } finally {
    await batches.return(undefined);
  }
}

/** Nothing of the table is the run's any more (unregistered, undone): there is nothing left to do in the range. */
function isForgotten(catalog: Catalog, run: Run, range: Range): boolean {
  return !columnsOf(catalog, run).some((column) => column.address === range.table);
}

/**
 * Works a range through, or as far as it gets before `isStopping` or a new policy, which may hold it back more or less: it
 * is then taken up again. Does nothing when the range is finished, somebody alive has it, or as many ranges of its run are
 * worked on as may be, or another policy is in force. Errors: LeaseLost, those of the database, outages of keys; it then goes on from its checkpoint.
 */
export async function workRange(shop: Workshop, rangeId: string, isStopping: () => boolean): Promise<void> {
  if (!(await mayWork(shop))) return;
  const runId = await findRunOf(shop.pool, rangeId);
  const run = runId === undefined ? undefined : await findRun(shop.pool, runId);
  if (run === undefined) return;
  const { policy } = shop;
  const { concurrency } = limitsOf(policy, run, columnsOf(shop.catalog, run));
  const isHeld = () => isStopping() || shop.policy !== policy;
  const lease = randomUUID();
  const range = await claimRange(shop.pool, rangeId, lease, shop.instanceId, concurrency);
  if (range === undefined) return;
  try {
    const here = policy.columns.filter(({ address }) => address === range.table);
    const catalog = await loadCatalog(shop.targets, here);
    if (isForgotten(catalog, run, range)) return await finishRange(shop.pool, range.id, lease);
    for (let reached: Reached = { why: 'outdated', range }; ;) {
      await shop.keyring.refresh(); // the active version must be the one that this run made
      reached = await workThrough(openJob({ ...shop, policy, catalog }, run, reached.range, lease, isHeld));
      if (reached.why === 'finished') await finishRange(shop.pool, range.id, lease);
      if (reached.why !== 'outdated') return;
    }
  } catch (error) {
    const refused = findRefusal(error);
    if (refused !== undefined) await setThrottle(shop.pool, run.id, refused.phrase);
    throw refused ?? error;
  } finally {
    await releaseRange(shop.pool, range.id, lease);
  }
}
