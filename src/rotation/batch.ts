/**
 * The two statements that touch the customer's tables. Reading goes along the version index by key; writing is one
 * autocommitted statement, in which the application always wins:
 *
 *   1. lock the rows in which every column is still what was read, in key order, without waiting (`for no key update
 *      skip locked`)
 *   2. update them
 *   3. fail as a whole if a column then holds something else than was sent
 *   4. tell the rows that were locked and not updated: a trigger swallowed their update
 *
 * Both prove that the session is what it was as it began (targets.ts): a trigger that must let re-encryption be would else
 * take it for a change of the application's.
 *
 * Nobody waits for us longer than one statement, and nothing that was written meanwhile is overwritten.
 */
import { quoteIdentifier, quoteLiteral, type Queryable } from '../db.ts';
import type { TableShape } from '../targets/catalog.ts';
import { sessionProof } from '../targets/targets.ts';
import { keyOrder, Parameters, tableName, whereOf, type Key, type Restriction } from './conditions.ts';

export type { Key } from './conditions.ts';

export interface Row {
  readonly key: Key;
  readonly tenant: string | null;
  /** The values of the batch's columns, in their order; index columns follow the column they belong to. */
  readonly values: readonly (string | null)[];
}

export interface Change extends Row {
  /** What to store instead, in the same order. */
  readonly next: readonly (string | null)[];
}

const q = quoteIdentifier;
const collateC = 'collate pg_catalog."C"';

/**
 * Of a value no more is read: the longest envelope has 22,000 characters, and so has what others make of the longest value
 * that is sealed, twice as many in hex. What is longer is no value for us; a batch of it would fill our memory. It is
 * recorded, and never written: the update compares the whole of it with what was read.
 */
const charsMax = 40_000;

export interface ReadRequest extends Restriction {
  /** Columns to read, index columns included. */
  readonly columns: readonly string[];
  readonly rowsMax: number;
}

/** Rows in key order; an empty answer is the end. */
export async function readBatch(db: Queryable, table: TableShape, request: ReadRequest): Promise<Row[]> {
  const parameters = new Parameters();
  const where = whereOf(table, request, parameters);
  const texts = [
    ...table.key.map(({ name }) => `t.${q(name)}::text`),
    'column' in table.tenant ? `t.${q(table.tenant.column)}::text` : 'null',
    ...request.columns.map((column) => `left(t.${q(column)}::text, ${charsMax})`),
  ];
  const { rows } = await db.query<(string | null)[]>({
    text: `select ${texts.join(', ')} from ${tableName(table)} t ${where}
           order by ${keyOrder(table)} limit ${parameters.add(request.rowsMax, 'int')}`,
    values: parameters.values,
    rowMode: 'array',
  });
  const keys = table.key.length;
  return rows.map((row) => ({
    key: row.slice(0, keys) as string[],
    tenant: 'value' in table.tenant ? table.tenant.value : row[keys]!,
    values: row.slice(keys + 1),
  }));
}

/** The key `rows` places after `after` (or from the start), among the stale rows; undefined when there are not that many. */
export async function keyAfter(
  db: Queryable,
  table: TableShape,
  rows: number,
  among: Pick<Restriction, 'stale' | 'after'>,
): Promise<Key | undefined> {
  const parameters = new Parameters();
  const where = whereOf(table, among, parameters);
  const found = await db.query<string[]>({
    text: `select ${table.key.map(({ name }) => `t.${q(name)}::text`).join(', ')} from ${tableName(table)} t
           ${where} order by ${keyOrder(table)} offset ${parameters.add(rows - 1, 'int')} limit 1`,
    values: parameters.values,
    rowMode: 'array',
  });
  return found.rows[0];
}

/** What an update compares with what was read, and which of that it changes. */
export interface UpdateColumns {
  readonly read: readonly string[];
  readonly written: readonly string[];
}

/**
 * The text of the update for these columns; the same for every batch. What was read is compared while the row is locked, in
 * its newest version; nobody can change it between that and the update. So a row that was locked and comes back without an
 * update was neither contended nor changed: only a trigger of the table can have dropped it.
 */
export function updateSql(table: TableShape, { read, written }: UpdateColumns, skipLocked: boolean): string {
  const keys = table.key.map((_, i) => `k${i}`);
  const tenant = 'column' in table.tenant ? [table.tenant.column] : [];
  const texts = [...tenant.map(() => 'tenant'), ...read.map((_, i) => `r${i}`), ...written.map((_, i) => `n${i}`)];
  const inputs = [...keys, ...texts];
  const types = [...table.key.map(({ type }) => type), ...texts.map(() => 'text')];
  const unchanged = (column: string, was: string) => `t.${q(column)}::text ${collateC} is not distinct from i.${was}`;
  const conditions = [
    ...table.key.map(({ name }, i) => `t.${q(name)} = i.k${i}`),
    ...tenant.map((column) => unchanged(column, 'tenant')),
    ...read.map((column, i) => unchanged(column, `r${i}`)),
  ];
  // An assignment, not a cast, fits the value to the column's length: it fails where a cast would cut.
  const assign = (column: string, n: number) =>
    `${q(column)} = l.n${n}::${table.attributes.get(column)?.cast ?? 'text'}`;
  const stored = written.map((column, i) => `t.${q(column)}::text ${collateC} is distinct from l.n${i}`).join(' or ');
  return `
    with l as materialized (
      select i.*
      from ${tableName(table)} t
      join unnest(${types.map((type, n) => `$${n + 1}::${type}[]`).join(', ')}) with ordinality as i(${inputs.join(', ')}, place)
        on ${conditions.join(' and ')}
      where ${sessionProof}
      order by ${table.key.map(({ name }) => `t.${q(name)}`).join(', ')}
      for no key update of t ${skipLocked ? 'skip locked' : ''}
    ), u as (
      update ${tableName(table)} t set ${written.map(assign).join(', ')}
      from l where ${table.key.map(({ name }, i) => `t.${q(name)} = l.k${i}`).join(' and ')}
      returning l.place, case when ${stored} then fieldkeep.fe_stored_otherwise(${quoteLiteral(table.address)}) end
    )
    select array(select place::int from l), array(select place::int from u)`; // no join: nothing is known of their sizes
}

/** What became of the changes whose rows were as they were read, and free. */
export interface Stored {
  readonly keys: readonly Key[];
  /** Rows whose update a trigger of the table dropped without a word. */
  readonly swallowed: readonly Key[];
}

/** Stores the changes whose rows are as they were read. */
export async function writeBatch(
  db: Queryable,
  table: TableShape,
  columns: UpdateColumns,
  changes: readonly Change[],
  skipLocked: boolean,
): Promise<Stored> {
  const places = columns.written.map((column) => columns.read.indexOf(column));
  const values: unknown[] = [
    ...table.key.map((_, i) => changes.map((change) => change.key[i])),
    ...('column' in table.tenant ? [changes.map((change) => change.tenant)] : []),
    ...columns.read.map((_, i) => changes.map((change) => change.values[i])),
    ...places.map((i) => changes.map((change) => change.next[i])),
  ];
  const text = updateSql(table, columns, skipLocked);
  const { rows } = await db.query<[locked: number[], updated: number[]]>({ text, values, rowMode: 'array' });
  const [locked, updated] = rows[0]!;
  const keyAt = (place: number) => changes[place - 1]!.key;
  const done = new Set(updated);
  const swallowed = locked.filter((place) => !done.has(place));
  return { keys: updated.map(keyAt), swallowed: swallowed.map(keyAt) };
}
