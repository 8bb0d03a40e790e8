/**
 * The indexes of registered columns: versions, so that a rotation costs by the rows that are old; tokens, which searches go
 * by; and what is still to be adopted from a source. Pure.
 *
 * A partitioned table cannot be indexed beside its application in one go: each partition is, and the index of the table
 * then takes those in.
 */
import { quoteIdentifier } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { nameFor } from './adoption-triggers.ts';
import type { IndexState, PlaceName, Step, TableState, TargetState } from './state.ts';

const q = quoteIdentifier;
interface Wanted {
  readonly what: string;
  readonly why: string;
  /** What its name begins with; the same in the SQL of an adoption, so that neither makes a second one. */
  readonly kind: 'fieldkeep_version' | 'fieldkeep_tokens' | 'fieldkeep_todo';
  readonly column: string;
  /** What follows the table in `create index`. */
  readonly definition: string;
  /** Whether one of the table's indexes serves. */
  readonly isThere: (table: TableState) => boolean;
}

const same = (one: readonly string[], other: readonly string[]) =>
  one.length === other.length && one.every((part, i) => part === other[i]);

function listWanted(entry: RegisteredColumn): Wanted[] {
  const { table, column, key, tenant, from, index } = entry;
  const keys = key.map(q).join(', ');
  const unquote = (text: string) => text.replaceAll('"', '');
  const valid = (indexes: readonly IndexState[], parts: readonly string[], predicate?: string) =>
    indexes.some((each) => each.valid && same(each.parts, parts.map(unquote)) && each.predicate === predicate);
  const wanted: Wanted[] = [
    {
      what: `version index of ${table}.${column}`,
      why: 'A rotation then costs by the rows that are old, not by the table.',
      kind: 'fieldkeep_version',
      column,
      definition: `(fieldkeep.fe_version(${q(column)}), ${keys})`,
      isThere: ({ versionIndexed }) => versionIndexed.has(column),
    },
  ];
  for (const { column: tokens } of index) {
    const parts = [...('column' in tenant ? [tenant.column] : []), tokens];
    wanted.push({
      what: `token index of ${table}.${tokens}`,
      why: 'Searches and claims go by it. It is not unique: tokens of two versions stand beside each other.',
      kind: 'fieldkeep_tokens',
      column: tokens,
      definition: `(${parts.map(q).join(', ')})`,
      isThere: ({ indexes }) => valid(indexes, parts),
    });
  }
  if (from !== undefined) {
    const predicate = unquote(`${from} IS NOT NULL AND ${column} IS NULL`);
    wanted.push({
      what: `adoption index of ${table}.${column}`,
      why: `Finds the rows whose ${from} is not adopted yet.`,
      kind: 'fieldkeep_todo',
      column,
      definition: `(${keys}) where ${q(from)} is not null and ${q(column)} is null`,
      isThere: ({ indexes }) => valid(indexes, key, predicate),
    });
  }
  return wanted;
}

function compareIndex({ isThere }: Wanted, table: TableState | undefined, made: readonly PlaceName[]): string[] {
  if (table === undefined) return ['there is no table'];
  const names = made.map(({ name }) => name);
  const invalid = table.indexes.filter(({ name, valid }) => !valid && names.includes(name));
  if (invalid.length > 0)
    return invalid.map(({ name }) => `index ${name} is invalid: its making was cut off, or goes on`);
  if (isThere(table)) return [];
  const own = names.at(-1)!;
  return table.indexes.some(({ name }) => name === own)
    ? [`index ${own} is another one: drop or rename it`]
    : ['it is missing'];
}

/** A step for every index of a table's columns; `partitions` where it is known to be a partitioned one. */
export function planIndexes(columns: readonly RegisteredColumn[], partitions: readonly PlaceName[] = []): Step[] {
  const { schema, name, address } = columns[0]!;
  return columns.flatMap(listWanted).map((wanted) => {
    const nameOn = ({ name: table }: PlaceName) => nameFor(wanted.kind, { name: table, column: wanted.column });
    const create = (on: PlaceName, concurrently: boolean) =>
      `create index ${concurrently ? 'concurrently ' : ''}if not exists ${q(nameOn(on))} ` +
      `on ${q(on.schema)}.${q(on.name)} ${wanted.definition}`;
    const whole = { schema, name };
    const statements =
      partitions.length === 0
        ? [create(whole, true)]
        : [
            ...partitions.map((each) => create(each, true)),
            // Takes in those of the partitions and builds nothing, but whoever writes waits behind it.
            `set lock_timeout = '2s'`,
            create(whole, false),
            'reset lock_timeout',
          ];
    const indexes = [...partitions, whole].map((on) => ({ schema: on.schema, name: nameOn(on) }));
    return {
      what: wanted.what,
      why: wanted.why,
      statements,
      atomic: false,
      indexes,
      differences: ({ tables }: TargetState) => compareIndex(wanted, tables.get(address), indexes),
    };
  });
}
