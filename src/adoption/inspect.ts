/**
 * Looks at a live table before one of its columns is adopted, and puts what it saw together. It asks for nothing that would
 * show a value; where it counts exactly, it looks at odd ones and keeps how many of them there are, and why.
 */
import { plaintextBytesMax } from '../crypto/aead.ts';
import { sqlState, type Queryable } from '../db.ts';
import type { FieldClass, RegisteredColumn } from '../policy/policy.ts';
import { formatRow } from '../targets/catalog.ts';
import { findPlaceProblem, type Why } from '../values/place.ts';
import { findValueProblem } from '../values/value.ts';
import {
  findStatementsView,
  listColumnGrants,
  listConstraints,
  listFunctions,
  listIndexes,
  listOthers,
  listPublications,
  listSlots,
  listStatements,
  listSubscriptions,
  listTriggers,
  listViews,
  type SeenConstraint,
  type SeenFunction,
  type SeenIndex,
  type SeenOther,
  type SeenPublication,
  type SeenStatement,
  type SeenView,
  type TableTrigger,
} from './dependents-store.ts';
import {
  countExactly,
  findRole,
  findTable,
  listColumns,
  listSuspects,
  type ExactCounts,
  type SeenColumn,
  type SeenRole,
  type SeenTable,
} from './inspect-store.ts';
import { toTriggerColumn } from './sql.ts';
import { findMissingTriggers } from '../targets/adoption-triggers.ts';
import { inspectTable } from '../targets/catalog-store.ts';
import { versionOf } from '../rotation/renew.ts';

const statementsMax = 10;

/** Who has to do with the plaintext. */
export interface Dependents {
  readonly constraints: readonly SeenConstraint[];
  readonly indexes: readonly SeenIndex[];
  readonly views: readonly SeenView[];
  readonly others: readonly SeenOther[];
  readonly triggers: readonly TableTrigger[];
  readonly functions: readonly SeenFunction[];
  /** Undefined where statements are not recorded, or not for us to read. */
  readonly statements: readonly SeenStatement[] | undefined;
  readonly grants: readonly string[];
  readonly publications: readonly SeenPublication[];
  readonly slots: readonly string[];
  readonly subscriptions: readonly string[];
}

export interface Inspection {
  /** Whether the database has our functions. */
  readonly prepared: boolean;
  readonly table: SeenTable;
  readonly columns: ReadonlyMap<string, SeenColumn>;
  /** Whether the key has a unique index of its own, all NOT NULL. */
  readonly uniqueKey: boolean;
  /** The role that re-encrypts, where it is known. */
  readonly worker: SeenRole | undefined;
  readonly dependents: Dependents;
  /** By index column: what must not be there. */
  readonly tokenConstraints: ReadonlyMap<string, readonly string[]>;
  readonly exact: ExactCounts | undefined;
  /** Counted exactly as well: rows that the job would record as failed, by why. */
  readonly unsealable: ReadonlyMap<Why, number>;
  /** Of those that keep source and envelope of one mind. */
  readonly missingTriggers: readonly string[];
  /** Whether an index finds old versions. */
  readonly versionIndexed: boolean;
}

export interface InspectOptions {
  /** The user of the URL that workers connect with. */
  readonly workerRole?: string | undefined;
  /** Read the whole table, to count what statistics only guess. */
  readonly exact?: boolean;
  /** Of the column, whose rule says what cannot be sealed. */
  readonly fieldClass?: FieldClass;
}

/** The column that holds plaintext. */
export const sourceOf = ({ from, column }: Pick<RegisteredColumn, 'from' | 'column'>): string => from ?? column;

async function findStatements(db: Queryable, table: string, column: string) {
  const view = await findStatementsView(db);
  if (view === undefined) return undefined;
  try {
    return await listStatements(db, view, table, column, statementsMax);
  } catch (error) {
    // The extension is there and its library is not loaded.
    if (sqlState(error) === '55000') return undefined;
    throw error;
  }
}

async function findDependents(db: Queryable, table: SeenTable, name: string, source: string): Promise<Dependents> {
  const { oid } = table;
  return {
    constraints: await listConstraints(db, oid, source),
    indexes: await listIndexes(db, oid, source),
    views: await listViews(db, oid, source),
    others: await listOthers(db, oid, source),
    triggers: await listTriggers(db, oid, source),
    functions: await listFunctions(db, oid, name, source),
    statements: await findStatements(db, name, source),
    grants: await listColumnGrants(db, oid, source),
    publications: await listPublications(db, oid, source),
    slots: await listSlots(db),
    subscriptions: await listSubscriptions(db, oid),
  };
}

/** As the job judges them. What others sealed is judged by its place alone: nobody has opened it yet. */
async function countUnsealable(
  db: Queryable,
  column: RegisteredColumn,
  { name: family, bind, normalise }: FieldClass,
): Promise<Map<Why, number>> {
  const { tenant, tenants, sealed, index, address: table } = column;
  const rule = { family, bind, ...(normalise !== undefined && { normalise }) };
  const counts = new Map<Why, number>();
  const by = 'column' in tenant ? tenant.column : undefined;
  for await (const row of listSuspects(db, column, sourceOf(column), by)) {
    const whose = 'value' in tenant ? tenant.value : (row.tenant ?? '');
    if (tenants !== undefined && !tenants.includes(whose)) continue;
    if (column.from === undefined && versionOf(row.value) !== 0) continue; // sealed already, in place
    const place = { tenant: whose, table, column: column.column, row: formatRow(row.key) };
    const problem =
      findPlaceProblem(rule, place) ??
      (sealed === undefined ? findValueProblem(rule, index.length > 0, row.value) : undefined);
    if (problem !== undefined) counts.set(problem.why, (counts.get(problem.why) ?? 0) + 1);
  }
  return counts;
}

/** UNIQUE and foreign keys on a column of tokens, by their names. */
async function listTokenConstraints(db: Queryable, oid: number, column: string): Promise<string[]> {
  const constraints = await listConstraints(db, oid, column);
  const indexes = await listIndexes(db, oid, column);
  return [
    ...constraints.filter(({ kind }) => kind !== 'c').map(({ name }) => name),
    ...indexes.filter(({ unique }) => unique).map(({ name }) => name),
  ];
}

/** Undefined when there is no such table, or when it cannot be seen. Errors: those of the database. */
export async function inspectColumn(
  db: Queryable,
  column: RegisteredColumn,
  options: InspectOptions = {},
): Promise<Inspection | undefined> {
  const { schema, name, key, tenant, index } = column;
  const table = await findTable(db, schema, name);
  if (table === undefined) return undefined;
  const source = sourceOf(column);
  const columns = await listColumns(db, table.oid);
  const { prepared, unique, versionIndexed } = await inspectTable(db, schema, name, key);
  const tokenConstraints = new Map<string, string[]>();
  for (const each of index) {
    tokenConstraints.set(each.column, await listTokenConstraints(db, table.oid, each.column));
  }
  const triggers = toTriggerColumn(column);
  const by = 'column' in tenant ? tenant.column : undefined;
  const canCount = columns.has(source) && (by === undefined || columns.has(by));
  const canJudge = canCount && options.exact === true && key.every((each) => columns.has(each));
  return {
    prepared,
    table,
    columns,
    uniqueKey: unique,
    worker: options.workerRole === undefined ? undefined : await findRole(db, table.oid, options.workerRole),
    dependents: await findDependents(db, table, name, source),
    tokenConstraints,
    missingTriggers: triggers === undefined ? [] : await findMissingTriggers(db, triggers),
    versionIndexed: versionIndexed.has(column.column),
    unsealable:
      canJudge && options.fieldClass !== undefined
        ? await countUnsealable(db, column, options.fieldClass)
        : new Map<Why, number>(),
    exact:
      options.exact === true && canCount ? await countExactly(db, column, source, by, plaintextBytesMax) : undefined,
  };
}
