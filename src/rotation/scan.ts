/**
 * Finds the rows of a range that are to be brought up to date, and renews them in memory, a batch at a time and only when
 * it is asked for. Three ways to the rows:
 *
 *     column/version    through the version index of the column: costs by the rows that are old
 *     column/unfilled   through the index on rows that wait to be filled
 *     keyset            what has no index, along the key: costs by the table
 *     rows              a range that names its rows: those that failed, those that are urgent
 */
import type { AuditLog } from '../audit/log.ts';
import type { Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Keyring } from '../keys/keyring.ts';
import type { KeyState } from '../keys/version.ts';
import type { Policy, RegisteredColumn } from '../policy/policy.ts';
import { readBatch, type Change, type Key, type ReadRequest, type Row } from './batch.ts';
import { formatRow, parseRow, type Catalog, type TableShape } from '../targets/catalog.ts';
import type { Failure } from './failure-store.ts';
import type { BatchSize } from './pace.ts';
import type { Range } from './range-store.ts';
import type { Layout, Opened, Renewer } from './renew.ts';
import { listRevealed } from './revealed.ts';
import type { Run } from './store.ts';
import type { Readers, Targets } from '../targets/targets.ts';
import type { Throttle } from './throttle.ts';
import type { Sources } from './sources.ts';
import { staleOf, type About, type Stale } from './work.ts';

/** What rotating needs of the service. */
export interface Workshop {
  readonly instanceId: string;
  /** For our own tables. */
  readonly pool: Pool;
  /** For the customer's. */
  readonly targets: Targets;
  readonly keyring: Keyring;
  readonly audit: AuditLog;
  readonly policy: Policy;
  readonly catalog: Catalog;
  readonly sources: Sources;
  /** Sees everything and changes nothing. */
  readonly readers: Readers;
}

/** Requests of the same process are answered between chunks of this many rows. */
const rowsPerTurn = 16;
/** Values of one batch that others sealed. */
const sealedMany = 50;
/** Of a range that names its rows, looked up at once. */
const namedRowsMax = 500;

interface Step {
  readonly name: string;
  readonly stale: readonly Stale[];
}

/** Everything about one range while it is worked on. */
export interface Job {
  readonly shop: Workshop;
  readonly run: Run;
  readonly range: Range;
  readonly lease: string;
  readonly table: TableShape;
  /** The database that the table is in. */
  readonly target: Pool;
  readonly layout: Layout;
  readonly renewer: Renewer;
  readonly steps: readonly Step[];
  readonly size: BatchSize;
  readonly throttle: Throttle;
}

/** A batch in memory, ready to be written. */
export interface Prepared {
  /** Where the range stands once it is written. */
  readonly step: string;
  readonly cursor: readonly string[];
  readonly changes: readonly Change[];
  readonly failures: readonly Failure[];
  /** Audit items of the values that it makes plaintext again. */
  readonly revealed?: readonly string[];
  /** Rows that need no change, by column. */
  readonly compared: ReadonlyMap<string, number>;
  nameOf(key: Key): string;
  /** Which columns the change of a row brings up to date. */
  columnsOf(key: Key): readonly string[];
}

/** Whether an index finds these rows, in the order of the key. */
export function isIndexed(table: TableShape, { column, value, source }: Stale): boolean {
  if (value === 'null') return source?.filled === true && table.unfilledIndexed.has(column);
  return typeof value !== 'string' && table.indexed.has(column);
}

function stepsOf(stale: Stale): Step[] {
  const { column, value } = stale;
  if (typeof value === 'string') return [{ name: `${column}/unfilled`, stale: [stale] }];
  return value.map((version) => ({ name: `${column}/${version}`, stale: [{ ...stale, value: [version] }] }));
}

export function listSteps(
  state: KeyState,
  run: About,
  table: TableShape,
  columns: readonly RegisteredColumn[],
): Step[] {
  const stale = columns.flatMap((column) => staleOf(state, run, column));
  const steps = stale.filter((each) => isIndexed(table, each)).flatMap(stepsOf);
  const others = stale.filter((each) => !isIndexed(table, each));
  return others.length === 0 ? steps : [...steps, { name: 'keyset', stale: others }];
}

/** Errors: `conflict` when none of many opens: that says nothing of the rows, and all of the key. */
async function openSealed({ shop, renewer }: Job, rows: readonly Row[]): Promise<Opened> {
  const opened = new Map<string, string | FieldkeepError>();
  for (const [column, texts] of renewer.listSealed(rows)) {
    const found = texts.length === 0 ? [] : await shop.sources.get(column.sealed!).open(texts);
    if (texts.length >= sealedMany && found.every((each) => isClosed(each))) {
      const { by, key } = column.sealed!;
      const what = `None of ${texts.length} values for ${column.address}.${column.column} opens`;
      throw new FieldkeepError('conflict', `${what} by ${by} with ${key}: it is another key or passphrase.`);
    }
    texts.forEach((text, i) => opened.set(text, found[i]!));
  }
  return opened;
}

function isClosed(found: string | FieldkeepError): boolean {
  return typeof found !== 'string' && found.code === 'decryption_failed';
}

async function renewRows(
  job: Job,
  step: string,
  cursor: readonly string[],
  rows: readonly Row[],
  stale: readonly Stale[],
): Promise<Prepared> {
  const changes: Change[] = [];
  const columns = new Map<string, readonly string[]>();
  const compared = new Map<string, number>();
  const failures: Failure[] = [];
  // What one column was read for is renewed or recorded, never passed over in silence.
  const wanted = stale.length === 1 ? stale[0]!.column : undefined;
  const opened = await openSealed(job, rows);
  for (const [i, row] of rows.entries()) {
    if (i > 0 && i % rowsPerTurn === 0) await new Promise((resolve) => setImmediate(resolve));
    const renewed = await job.renewer.renew(row, opened);
    failures.push(...renewed.failures);
    const isSettled = wanted === undefined || renewed.columns.includes(wanted);
    if (!isSettled && !renewed.failures.some((failure) => failure.column === wanted)) {
      failures.push({ column: wanted, row: formatRow(row.key), code: 'envelope_malformed' });
    }
    if (renewed.next === undefined) {
      for (const column of renewed.columns) compared.set(column, (compared.get(column) ?? 0) + 1);
      continue;
    }
    changes.push({ ...row, next: renewed.next });
    columns.set(formatRow(row.key), renewed.columns);
  }
  const nameOf = formatRow;
  const columnsOf = (key: Key) => columns.get(formatRow(key)) ?? [];
  const prepared = { step, cursor, changes, failures, compared, nameOf, columnsOf };
  if (job.run.kind !== 'undo') return prepared;
  return { ...prepared, revealed: await listRevealed(job.shop.keyring, job.table.address, job.layout.slots, changes) };
}

async function* scanSteps(job: Job): AsyncGenerator<Prepared> {
  const { range, steps, table, layout, target, throttle } = job;
  const from = steps.findIndex((step) => step.name === range.step);
  for (const step of steps.slice(Math.max(0, from))) {
    const read = (after: Key | undefined) => {
      const request: ReadRequest = {
        columns: layout.read,
        stale: step.stale,
        rowsMax: throttle.rowsMax,
        ...(after !== undefined && { after }),
        ...(range.upper !== undefined && { upper: range.upper }),
      };
      const reading = readBatch(target, table, request);
      reading.catch(() => undefined); // looked at in its turn, unless something else fails first
      return reading;
    };
    let reading = read(step.name === range.step ? range.cursor : range.lower);
    try {
      for (let rows = await reading; rows.length > 0; rows = await reading) {
        const after = rows.at(-1)!.key;
        reading = read(after); // the thread that renews never waits for rows
        yield await renewRows(job, step.name, after, rows, step.stale);
      }
    } finally {
      await reading.catch(() => undefined);
    }
  }
}

/** The cursor counts the rows that were done. */
async function* scanNamed(job: Job, names: readonly string[]): AsyncGenerator<Prepared> {
  const { table, target, range, throttle } = job;
  for (let from = Number(range.cursor?.[0] ?? 0); from < names.length;) {
    const some = names.slice(from, from + Math.min(namedRowsMax, throttle.rowsMax));
    from += some.length;
    const keys = some.map((name) => parseRow(table, name)).filter((key) => key !== undefined);
    const rows = await readBatch(target, table, { columns: job.layout.read, rows: keys, rowsMax: keys.length });
    yield await renewRows(job, 'rows', [String(from)], rows, []);
  }
}

/** All batches of the range from its checkpoint on. */
export function prepareBatches(job: Job): AsyncGenerator<Prepared> {
  return job.range.rows === undefined ? scanSteps(job) : scanNamed(job, job.range.rows);
}
