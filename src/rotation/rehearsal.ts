/**
 * What a rotation would do, without doing it: values are counted, a sample of them is read and opened and sealed in memory,
 * and from what that takes and what earlier runs took it is predicted how long a run lasts and how much log it writes.
 * Nothing is written to the customer's tables.
 */
import { open, seal } from '../crypto/aead.ts';
import { DataKey } from '../crypto/data-key.ts';
import { parseEnvelope } from '../crypto/envelope.ts';
import { FieldkeepError } from '../errors.ts';
import { getReadable } from '../keys/version.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { keyAfter, readBatch, type Key, type Row } from './batch.ts';
import { formatRow, listWarnings, type TableShape } from '../targets/catalog.ts';
import { countMaxMs, lookUpVersions, type Counts } from './counts.ts';
import { handOverMs, isSearchable, limitsOf, searchTokenTtlMs } from './phase.ts';
import { findPast, findTableSize, upsertRehearsal, type Past } from './rehearsal-store.ts';
import type { Workshop } from './scan.ts';
import type { Prediction } from './store.ts';
import { getContext } from '../values/place.ts';
import { rowsOf } from '../targets/targets.ts';
import { columnsOf } from './work.ts';

const samplePlaces = 5;
const sampleRowsEach = 100;
/** From one place to the next, along the index: that costs by the row. */
const strideMax = 100_000;
/** Of a value's UPDATE, ms, where no run has measured it yet; and of an index entry, bytes. */
const assumedUpdateMs = 0.08;
const indexEntryBytes = 100;
const pageBytes = 8192;

interface Rehearsal {
  readonly columns: readonly { readonly table: string; readonly column: string; readonly total: number }[];
  readonly sample: { readonly values: number; readonly failed: number };
  readonly predicted: Prediction;
  /** Whether an earlier run over the same columns told how long an UPDATE takes, or it is assumed. */
  readonly basis: 'measured' | 'assumed';
  /** What would stand in the way or make it slow, in sentences. */
  readonly warnings: readonly string[];
}

interface Sampled {
  values: number;
  failed: number;
  /** Reading, opening and sealing them. */
  ms: number;
}

/** Opens the value as a run would, and seals it again under the same key: the work is the same as under the next one. */
async function tryValue(shop: Workshop, table: TableShape, column: RegisteredColumn, row: Row): Promise<void> {
  const envelope = parseEnvelope(row.values[0]!);
  const version = getReadable(shop.keyring.state, column.class, envelope.version);
  const found = shop.keyring.get(row.tenant ?? '', column.class, envelope.version);
  const key = found instanceof DataKey ? found : await found;
  if (key === undefined) throw new FieldkeepError('decryption_failed', 'There is no such key.');
  const place = { tenant: row.tenant ?? '', table: table.address, column: column.column, row: formatRow(row.key) };
  const ctx = getContext(version, place);
  seal(key, column.class, version.version, ctx, open(key, envelope, ctx), shop.policy.classes.get(column.class)!.padTo);
}

/** Rows from several places of the table, as many as there are up to the whole sample. */
async function readSample(
  shop: Workshop,
  table: TableShape,
  column: string,
  versions: readonly number[],
  total: number,
) {
  const db = rowsOf(shop, table);
  const rows: Row[] = [];
  for (const version of versions) {
    const stale = [{ column, value: [version] }];
    const stride = Math.max(sampleRowsEach, Math.min(strideMax, Math.floor(total / samplePlaces)));
    for (let place = 0, after: Key | undefined; place < samplePlaces; place += 1) {
      const from = after === undefined ? {} : { after };
      rows.push(...(await readBatch(db, table, { columns: [column], stale, rowsMax: sampleRowsEach, ...from })));
      after = await keyAfter(db, table, stride, { stale, ...from });
      if (after === undefined) break;
    }
  }
  return rows;
}

async function sampleColumn(
  shop: Workshop,
  table: TableShape,
  column: RegisteredColumn,
  versions: readonly number[],
  total: number,
): Promise<Sampled> {
  const rows = await readSample(shop, table, column.column, versions, total);
  const started = performance.now();
  let failed = 0;
  for (const row of rows) {
    await tryValue(shop, table, column, row).catch((error: unknown) => {
      if (!(error instanceof FieldkeepError)) throw error;
      failed += 1;
    });
  }
  return { values: rows.length, failed, ms: performance.now() - started };
}

/** Log of one UPDATE of every value: a new row, an entry in each index, and each page once as a whole. */
async function assumeWal(shop: Workshop, table: TableShape, total: number): Promise<number> {
  const { bytes, rows, indexes } = await findTableSize(rowsOf(shop, table), table);
  const share = rows === 0 ? 1 : Math.min(1, total / rows);
  const row = rows === 0 ? 0 : bytes / rows;
  return Math.round(total * (row + indexes * indexEntryBytes) + share * Math.ceil(bytes / pageBytes) * pageBytes);
}

interface Estimate {
  readonly total: number;
  readonly sampled: Sampled;
  readonly past: Past | undefined;
  readonly walBytes: number;
}

function predict(estimates: readonly Estimate[], waitMs: number, concurrency: number, rate: number): Prediction {
  let [values, ms, walBytes] = [0, 0, 0];
  for (const { total, sampled, past, walBytes: wal } of estimates) {
    const cpu = sampled.values === 0 ? 0 : sampled.ms / sampled.values;
    // One batch is read and renewed while another is written, so the slower of the two counts.
    const each = Math.max(cpu, (past?.updateMsPerValue ?? assumedUpdateMs) / concurrency);
    values += total;
    ms += total * Math.max(each, 1000 / rate);
    walBytes += past === undefined ? wal : Math.round(total * past.walBytesPerValue);
  }
  const seconds = Math.ceil((ms + waitMs) / 1000);
  const valuesPerSecond = ms === 0 ? 0 : Math.round(values / (ms / 1000));
  return { madeAt: new Date().toISOString(), values, seconds, valuesPerSecond, walBytes };
}

function warn(shop: Workshop, columns: readonly RegisteredColumn[], sampled: Sampled): string[] {
  const warnings = listWarnings(shop.catalog, columns);
  if (sampled.failed > 0) {
    warnings.push(
      `${sampled.failed} of ${sampled.values} values that were tried do not open: the run would end blocked.`,
    );
  }
  return warnings;
}

/** Errors: those of the databases, outages of keys. */
export async function rehearse(shop: Workshop & { readonly counts: Counts }, family: string): Promise<Rehearsal> {
  const deadline = performance.now() + countMaxMs;
  const columns = columnsOf(shop.catalog, { kind: 'rotation', family });
  const estimates: (Estimate & { column: RegisteredColumn })[] = [];
  for (const column of columns) {
    const table = shop.catalog.tables.get(column.address);
    if (table === undefined) continue;
    const counted = await lookUpVersions(shop, table, column, deadline);
    if (counted === undefined) {
      const detail = `${column.address}.${column.column} is large and is still being counted: ask again in a moment.`;
      throw new FieldkeepError('conflict', detail);
    }
    const stale = [...counted.value].filter(
      ([version]) => version > 0 || (version === 0 && column.adopt && column.from === undefined),
    );
    const total = stale.reduce((n, [, count]) => n + count, 0);
    const versions = stale.map(([version]) => version).filter((version) => version > 0);
    const sampled = await sampleColumn(shop, table, column, versions, total);
    const past = await findPast(shop.pool, column.address, column.column);
    estimates.push({ column, total, sampled, past, walBytes: await assumeWal(shop, table, total) });
  }
  const limits = limitsOf(shop.policy, { compromised: false }, columns);
  const waitMs = handOverMs + (isSearchable(shop.keyring.state.families.get(family)) ? searchTokenTtlMs : 0);
  const predicted = predict(estimates, waitMs, limits.concurrency, limits.rowsPerSecondMax ?? Infinity);
  const sampled = { values: 0, failed: 0, ms: 0 };
  for (const each of estimates)
    for (const name of ['values', 'failed', 'ms'] as const) sampled[name] += each.sampled[name];
  await upsertRehearsal(shop.pool, family, predicted);
  return {
    columns: estimates.map(({ column, total }) => ({ table: column.address, column: column.column, total })),
    sample: { values: sampled.values, failed: sampled.failed },
    predicted,
    basis: estimates.every(({ past, total }) => past !== undefined || total === 0) ? 'measured' : 'assumed',
    warnings: warn(shop, columns, sampled),
  };
}
