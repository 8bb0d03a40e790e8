/**
 * What the registered tables look like in the database: the types of their keys, which decide how a row is spelled, and
 * whether a version index finds old envelopes quickly. Read at start and whenever the policy changes; every database is asked
 * beside the others, and none is waited for longer than `lookMaxMs`.
 *
 * A row's name is its key as Postgres spells it: one column's text, or the RFC 8785 array of several.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { canonicalJson } from '../crypto/canonical.ts';
import {
  findRefusal,
  isUnavailable,
  quoteIdentifier,
  sqlState,
  withClientFor,
  type Pool,
  type Queryable,
} from '../db.ts';
import { columnId, type RegisteredColumn } from '../policy/policy.ts';
import { isKeptNull } from './adoption-trigger-store.ts';
import { emptyCheckName, findTriggerProblem, toTriggers } from './adoption-triggers.ts';
import {
  inspectTable,
  listAdoptions,
  listComparing,
  listKeyTypes,
  upsertKeyTypes,
  type Attribute,
  type Rule,
} from './catalog-store.ts';
import { rowsVariableOf, variableOf, type TargetName, type Targets } from './targets.ts';

export interface KeyColumn {
  readonly name: string;
  /** smallint, integer, bigint, uuid, text or character varying */
  readonly type: string;
}

/** A registered table as the engine needs it. */
export interface TableShape {
  readonly address: string;
  /** The target it is in; absent in Fieldkeep's own database. */
  readonly database?: string;
  readonly schema: string;
  readonly name: string;
  readonly key: readonly KeyColumn[];
  readonly tenant: RegisteredColumn['tenant'];
  readonly columns: readonly RegisteredColumn[];
  /** Registered columns with an index on their version, the key following. */
  readonly indexed: ReadonlySet<string>;
  /** Registered columns with an index on the rows whose source is filled and which are not. */
  readonly unfilledIndexed: ReadonlySet<string>;
  readonly attributes: ReadonlyMap<string, Attribute>;
}

export interface Catalog {
  /** The registered columns as they are to be worked on: `adopt` only where the adoption is on. */
  readonly columns: readonly RegisteredColumn[];
  readonly tables: ReadonlyMap<string, TableShape>;
  /** Why a registered table cannot be worked on, by address, in a sentence. */
  readonly problems: ReadonlyMap<string, string>;
  /** Why a column cannot be filled from its source, by its id (`columnId`), in a sentence. */
  readonly unready: ReadonlyMap<string, string>;
  /** Addresses that were looked at, whatever was found: before that nobody knows how a row is spelled. */
  readonly seen: ReadonlySet<string>;
  /** Types of the key of a registered table, by address: as it is, or as it was when somebody could look at it. */
  readonly keyTypes: ReadonlyMap<string, readonly string[]>;
}

/** The statement that makes the version index a column lacks. */
function indexSql({ schema, name, key }: TableShape, column: string): string {
  const q = quoteIdentifier;
  const parts = [`fieldkeep.fe_version(${q(column)})`, ...key.map((each) => q(each.name))];
  return `create index concurrently on ${q(schema)}.${q(name)} (${parts.join(', ')});`;
}

/** What keeps these columns from being worked on, or makes that slow, in sentences. */
export function listWarnings({ tables, problems, unready }: Catalog, columns: readonly RegisteredColumn[]): string[] {
  const broken = [...new Set(columns.map(({ address }) => address))].flatMap((address) => problems.get(address) ?? []);
  const unindexed = columns.flatMap(({ address, column }) => {
    const table = tables.get(address);
    if (table === undefined || table.indexed.has(column)) return [];
    return `${address}.${column} has no version index, so every pass reads the whole table: ${indexSql(table, column)}`;
  });
  const untriggered = columns.flatMap((column) => unready.get(columnId(column)) ?? []);
  return [...broken, ...untriggered, ...unindexed];
}

const integerTypes = new Set(['smallint', 'integer', 'bigint']);
const textTypes = new Set(['text', 'character varying']);
const integerPattern = /^(?:0|-?[1-9][0-9]{0,18})$/;
const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

function isCanonicalPart(type: string, text: string): boolean {
  if (integerTypes.has(type)) return integerPattern.test(text);
  return type === 'uuid' ? uuidPattern.test(text) : true;
}

/** Whether `row` is spelled as Postgres spells a key of these types. */
export function isCanonicalRow(types: readonly string[], row: string): boolean {
  if (types.length === 1) return isCanonicalPart(types[0]!, row);
  let parts: unknown;
  try {
    parts = JSON.parse(row);
  } catch {
    return false;
  }
  if (!Array.isArray(parts) || parts.length !== types.length) return false;
  const texts = parts.filter((part): part is string => typeof part === 'string');
  if (texts.length !== types.length || canonicalJson(texts) !== row) return false;
  return texts.every((text, i) => isCanonicalPart(types[i]!, text));
}

/** The texts of a key from the row's name; undefined when it is not a name of a row of this table. */
export function parseRow({ key }: Pick<TableShape, 'key'>, row: string): string[] | undefined {
  const types = key.map(({ type }) => type);
  if (!isCanonicalRow(types, row)) return undefined;
  return types.length === 1 ? [row] : (JSON.parse(row) as string[]);
}

/** The name of a row from the texts of its key. */
export function formatRow(key: readonly string[]): string {
  return key.length === 1 ? key[0]! : canonicalJson(key);
}

/** Equal values have different tokens under two versions: the database would let a duplicate in, and stop the re-key then. */
export function refuseRule(address: string, { kind, name, column }: Rule): string {
  return `Table ${address} has the ${kind} ${name} on ${column}, whose tokens change with every rotation: it lets the same value in under two versions and then stops re-encryption. Drop it; UNIQUE.md says how values are kept unique.`;
}

/** What is wrong with a table for our purposes, in a sentence, or its shape. */
async function describeTable(db: Queryable, columns: readonly RegisteredColumn[]): Promise<TableShape | string> {
  const { address, database, schema, name, key, tenant } = columns[0]!;
  const seen = await inspectTable(db, schema, name, key);
  if (!seen.prepared) {
    return `The database of table ${address} lacks the function fieldkeep.fe_version, or the role of the worker may not use it: its owner runs npm run target:setup -- ${database ?? 'own'}.`;
  }
  if (seen.attributes.size === 0) return `Table ${address} is registered and does not exist (or is not visible to us).`;
  const target = columns.flatMap((column) => [column.column, ...column.index.map((index) => index.column)]);
  const sources = columns.flatMap((column) => column.from ?? []);
  const read = [...key, ...('column' in tenant ? [tenant.column] : []), ...target, ...sources];
  const missing = read.filter((column) => !seen.attributes.has(column));
  if (missing.length > 0) return `Table ${address} has no column ${missing.join(', ')}.`;
  const at = (column: string) => seen.attributes.get(column)!;
  const hidden = read.filter((column) => !at(column).readable);
  if (hidden.length > 0) return `The role of the worker may not read column ${hidden.join(', ')} of table ${address}.`;
  const fixed = target.filter((column) => !at(column).writable);
  if (fixed.length > 0) return `The role of the worker may not update column ${fixed.join(', ')} of table ${address}.`;
  const types = key.map((column) => ({ name: column, type: at(column).type }));
  const bad = types.find(({ type }) => !integerTypes.has(type) && !textTypes.has(type) && type !== 'uuid');
  if (bad !== undefined)
    return `Column ${bad.name} of table ${address} is of type ${bad.type}; keys are integers, uuids or texts.`;
  const short = target.find((column) => !textTypes.has(at(column).type));
  if (short !== undefined)
    return `Column ${short} of table ${address} must be of a text type to hold envelopes or tokens.`;
  if (!seen.unique) return `The key of table ${address} needs a unique index on exactly its columns, all NOT NULL.`;
  const tokens = columns.flatMap(({ index }) => index.map((each) => each.column));
  const rule = (await listComparing(db, schema, name, tokens))[0];
  if (rule !== undefined) return refuseRule(address, rule);
  const indexed = new Set(target.filter((column) => seen.versionIndexed.has(column)));
  const isUnfilledIndexed = ({ column, from }: RegisteredColumn) =>
    from !== undefined && seen.keyPredicates.has(unfilledPredicate(column, from));
  const unfilledIndexed = new Set(columns.filter(isUnfilledIndexed).map(({ column }) => column));
  const { attributes } = seen;
  const shape = { address, schema, name, key: types, tenant, columns, indexed, unfilledIndexed, attributes };
  return { ...shape, ...(database !== undefined && { database }) };
}

/** The predicate of an index on the rows that are not filled yet, as Postgres spells it but for quotes. */
function unfilledPredicate(column: string, from: string): string {
  return `((${from} IS NOT NULL) AND (${column} IS NULL))`;
}

/** What keeps a column from being filled: without its triggers a change of the source would leave an old envelope behind. */
async function findUnready(db: Queryable, column: RegisteredColumn): Promise<string | undefined> {
  const { address, column: filled, from } = column;
  if (from === undefined) return undefined;
  const of = toTriggers(column, from);
  if (await isKeptNull(db, of, emptyCheckName(of))) return undefined; // finished: nobody can write a source any more
  const problem = await findTriggerProblem(db, of, `npm run adopt -- sql ${address}.${filled}`);
  return problem && `${address}.${filled} is not filled from ${from}: ${problem}`;
}

/** Columns that lack what they need to be filled are not adopted; why is noted. */
async function holdBack(db: Queryable, table: TableShape, unready: Map<string, string>): Promise<TableShape> {
  const columns: RegisteredColumn[] = [];
  for (const column of table.columns) {
    const problem = await findUnready(db, column);
    if (problem !== undefined) unready.set(columnId(column), problem);
    columns.push(problem === undefined ? column : { ...column, adopt: false });
  }
  return { ...table, columns };
}

/** Why a target lets nobody in, as a sentence's end; undefined when it did. */
function describeTrouble(database: string, error: unknown): string | undefined {
  const refused = findRefusal(error);
  if (refused !== undefined) return `answers in ${refused.phrase.replace(/\.$/, '')}`;
  if (isUnavailable(error)) return 'cannot be reached';
  const state = sqlState(error);
  if (state?.startsWith('28') === true) return `refuses the credentials of ${variableOf(database)}`;
  return state === '3D000' ? `does not exist: check ${variableOf(database)}` : undefined;
}

/** Of a table at a target, for which a server that takes connections and does not answer is one that is away. */
const lookMaxMs = 3_000;
/** Since when a target has not answered. */
const silentSince = new WeakMap<Pool, Date>();

/** Undefined when it takes longer; what is asked then is given up. */
async function askTarget<T>(db: Pool, ask: (client: Queryable) => Promise<T>): Promise<T | undefined> {
  const waiting = new AbortController();
  const late = sleep(lookMaxMs, undefined, { signal: waiting.signal }).catch(() => undefined);
  try {
    return await Promise.race([withClientFor(db, lookMaxMs, ask), late]); // a pool may wait longer for a connection
  } finally {
    waiting.abort();
  }
}

/** Of a table in a target: its shape, or a sentence also when the target cannot be asked. Undefined: it does not answer. */
async function lookAt(
  db: Pool,
  columns: readonly RegisteredColumn[],
  unready: Map<string, string>,
): Promise<TableShape | string | undefined> {
  const { address, database } = columns[0]!;
  const look = async (client: Queryable) => {
    const found = await describeTable(client, columns);
    return typeof found === 'string' ? found : await holdBack(client, found, unready);
  };
  if (database === undefined) return await look(db); // errors of our own database are thrown
  try {
    return await askTarget(db, look);
  } catch (error) {
    const trouble = describeTrouble(database, error);
    if (trouble === undefined) throw error;
    return `Target ${database} of table ${address} ${trouble}.`;
  }
}

type Found = ReadonlyMap<string, TableShape | string>;

/** Looks at the tables of one database, one after the other; when it does not answer once, it is not asked again. */
async function lookAtDatabase(
  targets: Targets,
  database: TargetName,
  columns: readonly RegisteredColumn[],
  unready: Map<string, string>,
): Promise<Found> {
  const found = new Map<string, TableShape | string>();
  const db = targets.findRows(database);
  const lacking = `is not connected to this process: set ${variableOf(database ?? '')}.`;
  let trouble = db === undefined ? lacking : undefined;
  for (const address of new Set(columns.map((column) => column.address))) {
    const own = columns.filter((column) => column.address === address);
    const seen = trouble === undefined ? await lookAt(db!, own, unready) : undefined;
    if (seen !== undefined) {
      silentSince.delete(db!);
      found.set(address, seen);
      continue;
    }
    if (trouble === undefined) {
      const since = silentSince.get(db!) ?? new Date(Date.now() - lookMaxMs);
      silentSince.set(db!, since);
      trouble = `has not answered since ${since.toISOString().slice(0, 19)}Z.`;
    }
    const isOwn = database === undefined;
    const lacksRows = `No login works on rows of table ${address}: set ${rowsVariableOf(database)}.`;
    found.set(address, isOwn ? lacksRows : `Target ${database} of table ${address} ${trouble}`);
  }
  return found;
}

/**
 * Key types are remembered in our own database: a process that faces agents is connected to no database with rows, and a
 * worker must not forget them while a target is away.
 */
async function rememberKeyTypes(own: Queryable, tables: ReadonlyMap<string, TableShape>, asked: readonly string[]) {
  const keyTypes = new Map<string, readonly string[]>();
  for (const [address, { key }] of tables) {
    const types = key.map(({ type }) => type);
    keyTypes.set(address, types);
    await upsertKeyTypes(own, address, types);
  }
  const unseen = asked.filter((address) => !keyTypes.has(address));
  if (unseen.length > 0) for (const [address, types] of await listKeyTypes(own, unseen)) keyTypes.set(address, types);
  return keyTypes;
}

/** A column with a source is adopted once somebody has begun it, one in place at once; until it is undone. */
async function listInEffect(own: Queryable, registered: readonly RegisteredColumn[]): Promise<RegisteredColumn[]> {
  const adoptions = await listAdoptions(own);
  return registered.map((column) => {
    const { started, undone } = adoptions.get(columnId(column)) ?? {};
    const isOn = undone !== true && (column.from === undefined || started === true);
    return { ...column, adopt: column.adopt && isOn };
  });
}

/** Looks every registered table up. Errors: those of our own database; a table that will not do is a problem, not an error. */
export async function loadCatalog(targets: Targets, registered: readonly RegisteredColumn[]): Promise<Catalog> {
  const own = targets.find(undefined)!;
  const columns = await listInEffect(own, registered);
  const tables = new Map<string, TableShape>();
  const problems = new Map<string, string>();
  const unready = new Map<string, string>();
  const databases = [...new Set(columns.map(({ database }) => database))];
  const looks = databases.map((database) => {
    const there = columns.filter((column) => column.database === database);
    return lookAtDatabase(targets, database, there, unready);
  });
  for (const [address, found] of (await Promise.all(looks)).flatMap((each) => [...each])) {
    if (typeof found === 'string') problems.set(address, found);
    else tables.set(address, found);
  }
  const inEffect = columns.map((column) => (unready.has(columnId(column)) ? { ...column, adopt: false } : column));
  const keyTypes = await rememberKeyTypes(own, tables, [...new Set(registered.map(({ address }) => address))]);
  const seen = new Set(columns.map(({ address }) => address));
  return { columns: inEffect, tables, problems, unready, seen, keyTypes };
}

/**
 * What a process that is connected to no database with rows knows of the registered tables: the types of their keys, as
 * workers have seen them. Errors: those of our own database.
 */
export async function loadPublished(own: Queryable, registered: readonly RegisteredColumn[]): Promise<Catalog> {
  const keyTypes = await listKeyTypes(own, [...new Set(registered.map(({ address }) => address))]);
  const nothing = { tables: new Map(), problems: new Map(), unready: new Map(), seen: new Set<string>() };
  return { columns: registered, ...nothing, keyTypes };
}
