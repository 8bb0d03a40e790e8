/**
 * The triggers that keep a source column and its envelope column of one mind while a column is adopted, as SQL. While the
 * source holds a value it alone counts; a write by the application always wins, NULLs included. Each is BEFORE, by row, and
 * has its condition in WHEN, so that a row in which nothing changed costs no call; the names sort after everybody else's:
 *
 *     1 insert     a source is there                    → no envelope, no tokens: the job makes them
 *     2 restore    the source is named, stays as it was → envelope and tokens stay, too: a whole row was saved, and what it
 *                                                         says of them may be old
 *     3 source     the source changed                   → no envelope, no tokens; but where it became null and another
 *                                                         envelope came in the same statement, that stays
 *     4 envelope   the envelope changed, the source not → no source: the application has moved its writes
 *     5 rebind     key or tenant changed, a source is    → no envelope, no tokens: they open only where they were made
 *                  there
 *
 * All of them let re-encryption be (`fieldkeep.reencrypting`). What changed is told by the stored
 * image: any type has one, also those without equality, and no collation calls two of them the same.
 */
import { createHash } from 'node:crypto';
import { quoteIdentifier, type Queryable } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { listHeirs, listTableTriggers, readFunction } from './adoption-trigger-store.ts';

/** What the triggers are about. */
export interface TriggerColumn {
  readonly schema: string;
  readonly name: string;
  /** Of the envelopes. */
  readonly column: string;
  /** Of the plaintext, of any type. */
  readonly source: string;
  readonly indexColumns: readonly string[];
  /** Columns whose values an envelope is bound to: the key, and the tenant's. */
  readonly bound: readonly string[];
}

/** What the triggers are about, where the plaintext is in `source`. */
export function toTriggers(
  {
    schema,
    name,
    key,
    tenant,
    column,
    index,
  }: Pick<RegisteredColumn, 'schema' | 'name' | 'key' | 'tenant' | 'column' | 'index'>,
  source: string,
): TriggerColumn {
  const bound = 'column' in tenant ? [...key, tenant.column] : key;
  return { schema, name, column, source, indexColumns: index.map((each) => each.column), bound };
}

export interface Trigger {
  readonly name: string;
  /** create trigger …, without the semicolon. */
  readonly sql: string;
}

export interface TriggerSet {
  /** Of the function, without its schema. */
  readonly functionName: string;
  readonly functionBody: string;
  /** In the order in which they fire. */
  readonly triggers: readonly Trigger[];
}

const nameBytesMax = 63;
const q = quoteIdentifier;

/** The longest start of a text that fits, by characters. */
function cut(text: string, bytesMax: number): string {
  let bytes = 0;
  let fits = '';
  for (const char of text) {
    bytes += Buffer.byteLength(char);
    if (bytes > bytesMax) break;
    fits += char;
  }
  return fits;
}

const hashOf = (parts: readonly string[]) => createHash('sha256').update(parts.join('\0')).digest('hex').slice(0, 8);

/** A name for an object that belongs to a column, unique in its schema and not longer than Postgres takes. */
export function nameFor(prefix: string, { name, column }: Pick<TriggerColumn, 'name' | 'column'>): string {
  const hash = hashOf([name, column]);
  return `${cut(`${prefix}_${name}_${column}`, nameBytesMax - hash.length - 1)}_${hash}`;
}

/** What the constraint is called that keeps the source null after `finish`: nobody can write past the triggers any more. */
export const emptyCheckName = (of: Pick<TriggerColumn, 'name' | 'column'>) => nameFor('fieldkeep_empty', of);

/** A table's triggers fire in the order of their names, byte by byte. */
function triggerName(column: string, place: number): string {
  const full = `zzz_fieldkeep_${column}`;
  const spare = nameBytesMax - 2;
  const stem = Buffer.byteLength(full) <= spare ? full : `${cut(full, spare - 9)}_${hashOf([column])}`;
  return `${stem}_${place}`;
}

function bodyOf({ column, source, indexColumns }: TriggerColumn): string {
  const sealed = [column, ...indexColumns];
  const assign = (names: readonly string[], value: (name: string) => string) =>
    names.map((name) => `      new.${q(name)} := ${value(name)};`).join('\n');
  return `
begin
  case tg_argv[0]
    when 'clear' then
${assign(sealed, () => 'null')}
    when 'restore' then
${assign(sealed, (name) => `old.${q(name)}`)}
    when 'move' then
${assign([source], () => 'null')}
  end case;
  return new;
end
`;
}

/** What a trigger asks of a row. The words are those in which Postgres says them again (see findMissingTriggers). */
function conditionsOf({ column, source, indexColumns, bound }: TriggerColumn) {
  const isThere = (name: string) => `new.${q(name)} is not null`;
  // As a call: `row(…) *<> row(…)` would be read element by element, with an operator that elements do not have.
  const changed = (name: string) => `pg_catalog.record_image_ne(row(new.${q(name)}), row(old.${q(name)}))`;
  const any = (conditions: readonly string[]) =>
    conditions.length === 1 ? conditions[0]! : `(${conditions.map((each) => `(${each})`).join(' or ')})`;
  const sealed = [column, ...indexColumns];
  const same = `not (${changed(source)})`;
  const movedOver = `(new.${q(source)} is null) and (${isThere(column)}) and (${changed(column)})`;
  return {
    insert: [isThere(source), any(sealed.map(isThere))],
    restore: [isThere(source), same, any(sealed.map(changed))],
    source: [changed(source), any(sealed.map(isThere)), `not (${movedOver})`],
    envelope: [isThere(source), same, changed(column)],
    rebind: [isThere(source), any(sealed.map(isThere)), any(bound.map(changed))],
  };
}

/** The triggers and their function. */
export function buildTriggers(of: TriggerColumn): TriggerSet {
  const { schema, name, column, source } = of;
  const functionName = nameFor('fieldkeep_adopt', of);
  const conditions = conditionsOf(of);
  const awake = "(pg_catalog.current_setting('fieldkeep.reencrypting', true) is distinct from 'on')";
  const make = (place: number, event: string, when: readonly string[], does: string): Trigger => {
    const trigger = triggerName(column, place);
    const sql = [
      `create trigger ${q(trigger)} before ${event} on ${q(schema)}.${q(name)} for each row`,
      `  when (${[awake, ...when.map((each) => `(${each})`)].join('\n    and ')})`,
      `  execute function ${q(schema)}.${q(functionName)}('${does}')`,
    ];
    return { name: trigger, sql: sql.join('\n') };
  };
  return {
    functionName,
    functionBody: bodyOf(of),
    triggers: [
      make(1, 'insert', conditions.insert, 'clear'),
      make(2, `update of ${q(source)}`, conditions.restore, 'restore'),
      make(3, 'update', conditions.source, 'clear'),
      make(4, `update of ${q(column)}`, conditions.envelope, 'move'),
      ...(of.bound.length === 0 ? [] : [make(5, 'update', conditions.rebind, 'clear')]),
    ],
  };
}

/** A dollar quote that the text does not end by itself: names may hold anything. */
function dollarQuote(text: string): string {
  let tag = '$fieldkeep$';
  for (let n = 1; text.includes(tag); n += 1) tag = `$fieldkeep${n}$`;
  return `${tag}${text}${tag}`;
}

/** Statements that make the triggers, all or none, and may be run again. */
export function formatTriggers(of: TriggerColumn): string[] {
  const { functionName, functionBody, triggers } = buildTriggers(of);
  const body = dollarQuote(functionBody);
  return [
    `create or replace function ${q(of.schema)}.${q(functionName)}() returns trigger language plpgsql\n  set search_path = pg_catalog as ${body};`,
    ...triggers.map(({ sql }) => `${sql.replace('create trigger', 'create or replace trigger')};`),
  ];
}

/** Statements that take them away. */
export function formatTriggerDrops(of: TriggerColumn): string[] {
  const { functionName, triggers } = buildTriggers(of);
  return [
    ...triggers.map(({ name }) => `drop trigger if exists ${q(name)} on ${q(of.schema)}.${q(of.name)};`),
    `drop function if exists ${q(of.schema)}.${q(functionName)}();`,
  ];
}

/** Without what Postgres spells its own way: case of keywords, quotes, parentheses, spaces, casts of constants. */
function plain(sql: string): string {
  return sql.toLowerCase().replaceAll(/pg_catalog\.|::text|["()\s]/g, '');
}

/**
 * Names of the triggers, or of their function, that are missing, switched off, or other than what is printed; also where a
 * partition lacks them. Empty: they stand. Errors: those of the database.
 */
export async function findMissingTriggers(db: Queryable, of: TriggerColumn): Promise<string[]> {
  const { functionName, functionBody, triggers } = buildTriggers(of);
  const found = await listTableTriggers(db, of.schema, of.name);
  const stands = ({ name, sql }: Trigger) =>
    found.length > 0 &&
    found.every((relation) => {
      const seen = relation.triggers.find((trigger) => trigger.name === name);
      return seen?.enabled === true && (relation.isPartition || plain(seen.definition) === plain(sql));
    });
  const missing = triggers.filter((trigger) => !stands(trigger)).map(({ name }) => name);
  const seen = await readFunction(db, of.schema, functionName);
  const isSame =
    seen?.body === functionBody && seen.language === 'plpgsql' && seen.settings === 'search_path=pg_catalog';
  return isSame ? missing : [...missing, functionName];
}

/** What keeps source and column from being of one mind, as the end of a sentence; undefined when nothing does. Errors: those of the database. */
export async function findTriggerProblem(
  db: Queryable,
  of: TriggerColumn,
  command: string,
): Promise<string | undefined> {
  const heirs = await listHeirs(db, of.schema, of.name);
  if (heirs.length > 0) {
    return `its triggers do not fire for rows of the tables that inherit from it (${heirs.join(', ')}). End the inheritance, and register each of them by itself.`;
  }
  const missing = await findMissingTriggers(db, of);
  if (missing.length === 0) return undefined;
  return `it lacks the triggers that keep both of one mind (${missing.join(', ')}). The table's owner runs what this prints: ${command}`;
}
