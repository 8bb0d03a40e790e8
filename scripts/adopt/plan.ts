/** `npm run adopt -- plan` and `sql`: what would break, and what the owner of the table runs. They change nothing. */
import { findRefusal, isUnavailable, openPool, sqlState, type Pool } from '../../src/db.ts';
import { StartupError } from '../../src/errors.ts';
import type { Policy, RegisteredColumn } from '../../src/policy/policy.ts';
import type { Finding } from '../../src/adoption/finding.ts';
import { inspectColumn } from '../../src/adoption/inspect.ts';
import { findTable } from '../../src/adoption/inspect-store.ts';
import { planAdoption } from '../../src/adoption/plan.ts';
import { findByName, refuseDestination } from '../../src/adoption/adoption.ts';
import { formatDestination, formatFinish, formatPreparation, formatUndo } from '../../src/adoption/sql.ts';
import { findPlace } from './databases.ts';

/** Of a statement that reads the whole table. */
const exactMs = 3_600_000;
const usualMs = 60_000;

const refusals: Readonly<Record<string, string | undefined>> = {
  '42501': 'The role may not look at the table like this: connect as its owner (TARGET_<NAME>_OWNER_URL).',
  '28P01': 'The database refuses the credentials of the URL.',
  '28000': 'The database refuses the credentials of the URL.',
  '3D000': 'The database of the URL does not exist.',
  '57014': 'Looking at the table took too long and was given up.',
};

export interface Planned {
  readonly table: string;
  readonly column: string;
  readonly findings: readonly Finding[];
}

async function withPool<T>(url: string, statementTimeoutMs: number, work: (pool: Pool) => Promise<T>): Promise<T> {
  const settings = { default_transaction_read_only: 'on' };
  const pool = openPool(url, { max: 1, name: 'adopt', statementTimeoutMs, settings });
  try {
    return await work(pool);
  } catch (error) {
    const refused = findRefusal(error);
    if (refused !== undefined) throw new StartupError(`The database of the column answers in ${refused.phrase}`);
    if (isUnavailable(error)) throw new StartupError('The database of the column cannot be reached.');
    const told = refusals[sqlState(error) ?? ''];
    throw told === undefined ? error : new StartupError(told);
  } finally {
    await pool.end();
  }
}

/** Column names may hold dots, too, so the policy says where one begins. Errors: StartupError where it has none. */
export function getColumn({ columns }: Policy, name: string): RegisteredColumn {
  const found = findByName(columns, name);
  if (found !== undefined) return found;
  const last = name.slice(name.lastIndexOf('.') + 1);
  const alike = columns.filter(({ column }) => column === last).map((each) => `${each.address}.${each.column}`);
  const meant = alike.length === 0 ? '' : ` It has ${alike.join(', ')}.`;
  throw new StartupError(
    `The policy has no column ${name}. Name it as callers do: [target:]schema.table.column.${meant}`,
  );
}

/** Looks at the live table. Errors: StartupError when its database is unknown or away. */
export async function plan(policy: Policy, column: RegisteredColumn, exact: boolean): Promise<Planned> {
  const { url, rowsRole } = findPlace(column, process.env);
  const fieldClass = policy.classes.get(column.class)!;
  const findings = await withPool(url, exact ? exactMs : usualMs, async (pool) =>
    planAdoption(column, fieldClass, await inspectColumn(pool, column, { exact, workerRole: rowsRole, fieldClass })),
  );
  return { table: column.address, column: column.column, findings };
}

const marks: Readonly<Record<Finding['level'], string>> = { stop: 'STOP  ', change: 'CHANGE', note: 'note  ' };

export function describePlan({ table, column, findings }: Planned): string {
  const lines = findings.flatMap(({ level, what, why, how }) => [
    `${marks[level]} ${what}.`,
    `       ${why}`,
    ...(how === undefined ? [] : [`       → ${how}`]),
  ]);
  const count = (level: Finding['level']) => findings.filter((finding) => finding.level === level).length;
  const [stops, changes] = [count('stop'), count('change')];
  const end =
    stops > 0
      ? `${stops} of ${findings.length} ${stops === 1 ? 'has' : 'have'} to be mended before ${table}.${column} can be adopted.`
      : `${table}.${column} can be adopted. ${changes} ${changes === 1 ? 'thing has' : 'things have'} to be changed on the way.`;
  return `${[...lines, '', end].join('\n')}\n`;
}

/** What the owner runs: before the start, after `finish`, or after `undo`; with `to`, of the way to that column. */
export async function printSql(
  { columns }: Policy,
  registered: RegisteredColumn,
  { to, after }: { readonly to?: string | undefined; readonly after?: 'finish' | 'undo' | undefined },
): Promise<string> {
  const refusal = to === undefined ? undefined : refuseDestination(columns, registered, to);
  if (refusal !== undefined) throw new StartupError(refusal);
  if (to === registered.column) throw new StartupError('In place there is nothing to prepare.');
  const column = to === undefined ? registered : { ...registered, from: to };
  const { url, rowsRole } = findPlace(column, process.env);
  const table = await withPool(url, usualMs, (pool) => findTable(pool, column.schema, column.name));
  if (table === undefined) throw new StartupError(`There is no table ${column.address}, or it cannot be seen.`);
  if (after === 'finish') return formatFinish(column, table);
  if (after === 'undo') return formatUndo(column, table);
  const destination = to === undefined || to === registered.from ? '' : formatDestination(column, to, rowsRole);
  return [destination, formatPreparation(column, table)].filter((each) => each !== '').join('\n');
}
