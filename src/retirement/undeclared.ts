/**
 * Envelopes where nobody registered any: copies in other columns, logs, queues, JSON documents. A version must not be
 * destroyed while its envelopes stand there, and no census sees them; roles that only read look for them, in every
 * database that the policy names. What could not be looked into is told by name: it never counts as empty.
 */
import { findRefusal, isUnavailable, sqlState, withCancelling, type Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { columnId, type Policy } from '../policy/policy.ts';
import { readerVariableOf, type Readers, type TargetName } from '../targets/targets.ts';
import { listTextColumns, searchColumns, type TextColumn } from './undeclared-store.ts';

/** How often workers search while a version waits for its end. */
const searchEveryMs = 86_400_000;

/** Whether a search was made in the last day. */
export function isFresh({ ageMs }: { readonly ageMs: number }): boolean {
  return ageMs >= 0 && ageMs <= searchEveryMs;
}

export interface UndeclaredColumn {
  /** The target it is in; absent in Fieldkeep's own database. */
  readonly database?: string;
  /** schema.table */
  readonly table: string;
  readonly column: string;
}

export interface UndeclaredSearch {
  /** False when some database has no reader, or none that answers. */
  readonly searched: boolean;
  /** Columns with an envelope of the family of at most the version asked for. */
  readonly found: UndeclaredColumn[];
  /** What was not looked into, and why, a phrase each; only when it is empty is `found` all there is. */
  readonly unsearched: string[];
}

/** What a search needs of a service. */
export interface SearchShop {
  readonly readers: Readers;
  readonly policy: Pick<Policy, 'columns'>;
}

const nameOf = (database: TargetName) => (database === undefined ? 'the database of Fieldkeep' : `target ${database}`);

function addressOf(database: TargetName, { schema, name }: TextColumn): string {
  return database === undefined ? `${schema}.${name}` : `${database}:${schema}.${name}`;
}

/** Why a statement failed, in words that hold no value. Errors: what is not the database's. */
function explain(error: unknown): string {
  const refused = findRefusal(error);
  if (refused !== undefined) return `it answers in ${refused.phrase.replace(/\.$/, '')}`;
  if (isUnavailable(error)) return 'the database went away';
  const state = sqlState(error);
  if (state === undefined) throw error;
  if (state === '57014') return 'reading it took too long';
  if (state === '55P03') return 'somebody has it locked';
  // With row_security = off a query that a policy would filter is refused.
  if (state === '42501') return 'the reader may not read all of it (under row level security it needs BYPASSRLS)';
  return `it could not be read (${state})`;
}

function groupByTable(columns: readonly TextColumn[]): TextColumn[][] {
  const tables = Map.groupBy(columns, ({ schema, name }) => JSON.stringify([schema, name]));
  return [...tables.values()];
}

/** Errors: `database_unavailable` when the process ends: what was found until then says nothing. */
function goOn({ ending }: Readers): void {
  if (ending.aborted) throw new FieldkeepError('database_unavailable', 'The process ends in the middle of a search.');
}

/** Looks into one database. Errors: those of asking which columns there are, and of `goOn`. */
async function searchDatabase(
  db: Pool,
  database: TargetName,
  { policy, readers }: SearchShop,
  family: string,
  upToVersion: number,
): Promise<Omit<UndeclaredSearch, 'searched'>> {
  const registered = new Set(policy.columns.map(columnId));
  const all = await listTextColumns(db);
  const columns = all.filter(
    (each) => !registered.has(columnId({ address: addressOf(database, each), column: each.column })),
  );
  const hidden = columns.filter(({ readable }) => !readable);
  const unsearched = hidden.map((each) => `${addressOf(database, each)}.${each.column}: the reader may not read it`);
  const found: UndeclaredColumn[] = [];
  for (const table of groupByTable(columns.filter(({ readable }) => readable))) {
    const { schema, name } = table[0]!;
    goOn(readers);
    try {
      const holding = await withCancelling(db, readers.ending, (client) =>
        searchColumns(client, table[0]!, table, family, upToVersion),
      );
      const place = { ...(database !== undefined && { database }), table: `${schema}.${name}` };
      found.push(...holding.map((column) => ({ ...place, column })));
    } catch (error) {
      goOn(readers);
      unsearched.push(`${addressOf(database, table[0]!)}: ${explain(error)}`);
    }
  }
  return { found, unsearched };
}

/**
 * Looks for envelopes of `family` up to a version outside the registered columns. It reads whole tables and takes as long
 * as that takes. Errors: none of the databases'; what fails there is told in `unsearched`; `database_unavailable` when the process ends.
 */
export async function findUndeclared(shop: SearchShop, family: string, upToVersion: number): Promise<UndeclaredSearch> {
  const databases = new Set<TargetName>([undefined, ...shop.policy.columns.map(({ database }) => database)]);
  const result = { searched: true, found: [] as UndeclaredColumn[], unsearched: [] as string[] };
  const skip = (database: TargetName, why: string) => {
    result.searched = false;
    result.unsearched.push(`${nameOf(database)}: ${why}`);
  };
  for (const database of databases) {
    const db = shop.readers.find(database);
    if (db === undefined) {
      skip(database, `it has no reader; set ${readerVariableOf(database)}`);
      continue;
    }
    try {
      const { found, unsearched } = await searchDatabase(db, database, shop, family, upToVersion);
      result.found.push(...found);
      result.unsearched.push(...unsearched);
    } catch (error) {
      goOn(shop.readers);
      const isAway = isUnavailable(error) && findRefusal(error) === undefined;
      skip(database, isAway ? 'it cannot be reached' : explain(error));
    }
  }
  return result;
}

/** A column as callers name it: [target:]schema.table.column */
export function nameOfColumn({ database, table, column }: UndeclaredColumn): string {
  return `${database === undefined ? '' : `${database}:`}${table}.${column}`;
}

/** What is found and not registered, and what nobody could look into, in phrases. */
export function describeSearch({ found, unsearched }: Pick<UndeclaredSearch, 'found' | 'unsearched'>): string[] {
  const places = found.map(
    (each) => `envelopes in ${nameOfColumn(each)}, which nobody registered, to be cleared or registered`,
  );
  return unsearched.length === 0
    ? places
    : [...places, `a search of what is not registered (${unsearched.join(', ')})`];
}
