/** Conditions on rows of the customer's tables as SQL; the row is called `t`. Every value is a parameter. */
import { quoteIdentifier } from '../db.ts';
import type { TableShape } from '../targets/catalog.ts';
import { sessionProof } from '../targets/targets.ts';
import type { Stale } from './work.ts';

/** Key columns as text, in the key's order. */
export type Key = readonly string[];

const q = quoteIdentifier;

export function tableName(table: TableShape): string {
  return `${q(table.schema)}.${q(table.name)}`;
}

/** The version of the value in a column. */
export function versionSql(column: string): string {
  return `fieldkeep.fe_version(t.${q(column)})`;
}

function keyTuple(table: TableShape, alias: string): string {
  return `(${table.key.map(({ name }) => `${alias}.${q(name)}`).join(', ')})`;
}

/** Collects the values of a statement. Answers each one's placeholder. */
export class Parameters {
  readonly values: unknown[] = [];
  add(value: unknown, type: string): string {
    return `$${this.values.push(value)}::${type}`;
  }
}

function valueCondition({ column, value }: Stale, parameters: Parameters): string {
  const version = versionSql(column);
  if (value === 'any') return 'true';
  if (value === 'null') return `t.${q(column)} is null`;
  // Not for the version index, which nearly every row is in: they are read along the key.
  if (value === 'envelope') return `${version} + 0 > 0`;
  // Equality, not `= any`: only then does the index also give the order of the key.
  if (value.length === 1) return `${version} = ${parameters.add(value[0], 'int')}`;
  return `${version} = any (${parameters.add(value, 'int[]')})`;
}

function tenantCondition({ tenant }: TableShape, tenants: readonly string[], parameters: Parameters): string {
  if ('value' in tenant) return tenants.includes(tenant.value) ? 'true' : 'false';
  return `t.${q(tenant.column)}::text = any (${parameters.add(tenants, 'text[]')})`;
}

/** That one of these is so of row `t`. */
export function staleCondition(table: TableShape, stale: readonly Stale[], parameters: Parameters): string {
  const each = (one: Stale) => {
    const parts = [valueCondition(one, parameters)];
    const { source, tenants } = one;
    if (source !== undefined) parts.unshift(`t.${q(source.column)} is ${source.filled ? 'not ' : ''}null`);
    if (tenants !== undefined) parts.push(tenantCondition(table, tenants, parameters));
    return parts.length === 1 ? parts[0]! : `(${parts.join(' and ')})`;
  };
  return stale.length === 0 ? 'false' : `(${stale.map(each).join(' or ')})`;
}

export function keyOrder(table: TableShape): string {
  return table.key.map(({ name }) => `t.${q(name)}`).join(', ');
}

/** Which rows a statement is about. */
export interface Restriction {
  /** Rows in which one of these is so; one version of one column is found through its version index. Absent: any. */
  readonly stale?: readonly Stale[];
  /** Among these rows, */
  readonly rows?: readonly Key[];
  /** whose key is greater than `after` and not greater than `upper`. */
  readonly after?: Key;
  readonly upper?: Key;
}

/** The `where` of row `t`, in a session that is as it must be. */
export function whereOf(table: TableShape, restriction: Restriction, parameters: Parameters): string {
  const { stale, rows, after, upper } = restriction;
  const bound = (key: Key) => `(${key.map((part, i) => parameters.add(part, table.key[i]!.type)).join(', ')})`;
  const conditions: string[] = [sessionProof];
  if (stale !== undefined) conditions.push(staleCondition(table, stale, parameters));
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
  return `where ${conditions.join(' and ')}`;
}
