/**
 * The two statements that touch the customer's tables. Reading goes along the version index by key; writing is one
 * autocommitted statement, in which the application always wins:
 *
 *   1. lock the rows in key order, without waiting (`for no key update skip locked`)
 *   2. update those in which every column is still what was read
 *   3. fail as a whole if a column then holds something else than was sent
 *
 * Nobody waits for us longer than one statement, and nothing that was written meanwhile is overwritten.
 */
import { quoteIdentifier, type Queryable } from '../db.ts';
import type { TableShape } from './catalog.ts';

/** Key columns as text, in the key's order. */
export type Key = readonly string[];

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

function tableName(table: TableShape): string {
  return `${q(table.schema)}.${q(table.name)}`;
}

function keyTuple(table: TableShape, alias: string): string {
  return `(${table.key.map(({ name }) => `${alias}.${q(name)}`).join(', ')})`;
}

/** A column, and the versions of it that are to be brought up to date. */
export interface Stale {
  readonly column: string;
  readonly versions: readonly number[];
}

export interface ReadRequest {
  /** Columns to read, index columns included. */
  readonly columns: readonly string[];
  /** Rows in which one of these is so; one column and one version are found through its version index. Absent: any. */
  readonly stale?: readonly Stale[];
  /** Among these rows, */
  readonly rows?: readonly Key[];
  /** whose key is greater than `after` and not greater than `upper`. */
  readonly after?: Key;
  readonly upper?: Key;
  readonly rowsMax: number;
}

/** Collects the values of a statement. Answers each one's placeholder. */
class Parameters {
  readonly values: unknown[] = [];
  add(value: unknown, type: string): string {
    return `$${this.values.push(value)}::${type}`;
  }
}

function staleCondition(stale: readonly Stale[], parameters: Parameters): string {
  const version = (column: string) => `fieldkeep.fe_version(t.${q(column)})`;
  // Equality, not `= any`: only then does the index also give the order of the key.
  if (stale.length === 1 && stale[0]!.versions.length === 1) {
    return `${version(stale[0]!.column)} = ${parameters.add(stale[0]!.versions[0], 'int')}`;
  }
  const each = ({ column, versions }: Stale) => `${version(column)} = any (${parameters.add(versions, 'int[]')})`;
  return stale.length === 0 ? 'false' : `(${stale.map(each).join(' or ')})`;
}

function keyOrder(table: TableShape): string {
  return table.key.map(({ name }) => `t.${q(name)}`).join(', ');
}

function conditionsOf(table: TableShape, request: Omit<ReadRequest, 'columns' | 'rowsMax'>, parameters: Parameters) {
  const { stale, rows, after, upper } = request;
  const bound = (key: Key) => `(${key.map((part, i) => parameters.add(part, table.key[i]!.type)).join(', ')})`;
  const conditions: string[] = [];
  if (stale !== undefined) conditions.push(staleCondition(stale, parameters));
  if (after !== undefined) conditions.push(`${keyTuple(table, 't')} > ${bound(after)}`);
  if (upper !== undefined) conditions.push(`${keyTuple(table, 't')} <= ${bound(upper)}`);
  if (rows !== undefined) {
    const parts = table.key.map(({ type }, i) =>
      parameters.add(
        rows.map((key) => key[i]),
        `${type}[]`,
      ),
    );
    conditions.push(`${keyTuple(table, 't')} in (select * from unnest(${parts.join(', ')}))`);
  }
  return conditions.length === 0 ? '' : `where ${conditions.join(' and ')}`;
}

/** Rows in key order; an empty answer is the end. */
export async function readBatch(db: Queryable, table: TableShape, request: ReadRequest): Promise<Row[]> {
  const parameters = new Parameters();
  const where = conditionsOf(table, request, parameters);
  const texts = [
    ...table.key.map(({ name }) => `t.${q(name)}::text`),
    'column' in table.tenant ? `t.${q(table.tenant.column)}::text` : 'null',
    ...request.columns.map((column) => `t.${q(column)}::text`),
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
  among: { readonly stale?: readonly Stale[]; readonly after?: Key },
): Promise<Key | undefined> {
  const parameters = new Parameters();
  const where = conditionsOf(table, among, parameters);
  const found = await db.query<string[]>({
    text: `select ${table.key.map(({ name }) => `t.${q(name)}::text`).join(', ')} from ${tableName(table)} t
           ${where} order by ${keyOrder(table)} offset ${parameters.add(rows - 1, 'int')} limit 1`,
    values: parameters.values,
    rowMode: 'array',
  });
  return found.rows[0];
}

/**
 * The text of the update for `columns`; the same for every batch. What was read is compared while the row is locked, in its
 * newest version; nobody can change it between that and the update.
 */
export function updateSql(table: TableShape, columns: readonly string[], skipLocked: boolean): string {
  const keys = table.key.map((_, i) => `k${i}`);
  const tenant = 'column' in table.tenant ? [table.tenant.column] : [];
  const inputs = [...keys, ...tenant.map(() => 'tenant'), ...columns.flatMap((_, i) => [`r${i}`, `n${i}`])];
  const types = [...table.key.map(({ type }) => type), ...inputs.slice(keys.length).map(() => 'text')];
  const unchanged = (column: string, read: string) => `t.${q(column)}::text ${collateC} is not distinct from i.${read}`;
  const conditions = [
    ...table.key.map(({ name }, i) => `t.${q(name)} = i.k${i}`),
    ...tenant.map((column) => unchanged(column, 'tenant')),
    ...columns.map((column, i) => unchanged(column, `r${i}`)),
  ];
  const stored = columns.map((column, i) => `t.${q(column)}::text ${collateC} is distinct from l.n${i}`).join(' or ');
  return `
    with l as materialized (
      select i.*
      from ${tableName(table)} t
      join unnest(${types.map((type, n) => `$${n + 1}::${type}[]`).join(', ')}) as i(${inputs.join(', ')})
        on ${conditions.join(' and ')}
      order by ${table.key.map(({ name }) => `t.${q(name)}`).join(', ')}
      for no key update of t ${skipLocked ? 'skip locked' : ''}
    )
    update ${tableName(table)} t set ${columns.map((column, n) => `${q(column)} = l.n${n}`).join(', ')}
    from l where ${table.key.map(({ name }, i) => `t.${q(name)} = l.k${i}`).join(' and ')}
    returning ${keys.map((key) => `l.${key}::text`).join(', ')},
      case when ${stored} then fieldkeep.fe_stored_otherwise('${table.address.replaceAll("'", "''")}') end`;
}

/** Stores the changes whose rows are as they were read. Answers the keys of the rows that were updated. */
export async function writeBatch(
  db: Queryable,
  table: TableShape,
  columns: readonly string[],
  changes: readonly Change[],
  skipLocked: boolean,
): Promise<Key[]> {
  const values: unknown[] = [
    ...table.key.map((_, i) => changes.map((change) => change.key[i])),
    ...('column' in table.tenant ? [changes.map((change) => change.tenant)] : []),
    ...columns.flatMap((_, i) => [changes.map((change) => change.values[i]), changes.map((change) => change.next[i])]),
  ];
  const { rows } = await db.query<string[]>({ text: updateSql(table, columns, skipLocked), values, rowMode: 'array' });
  return rows.map((row) => row.slice(0, table.key.length));
}
