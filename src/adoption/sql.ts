/**
 * What the owner of a table runs for an adoption, as text for psql: before it starts, after `finish`, after `undo`. Pure:
 * nothing here is run by us, for the worker's role may not. Every statement may be run again.
 *
 * Indexes are made `concurrently`, and so each by itself; a partitioned table cannot take one like that, so its partitions do
 * and are attached.
 */
import { quoteIdentifier } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import {
  emptyCheckName,
  formatTriggerDrops,
  formatTriggers,
  nameFor,
  toTriggers,
  type TriggerColumn,
} from '../targets/adoption-triggers.ts';

export type AdoptedColumn = Pick<RegisteredColumn, 'schema' | 'name' | 'key' | 'tenant' | 'column' | 'from' | 'index'>;

export interface TableParts {
  /** Of a partitioned table that is divided once: where its rows are. */
  readonly partitions: readonly { readonly schema: string; readonly name: string }[];
  /** Whether it is partitioned, and a partition of it is, too. */
  readonly isNested: boolean;
}

const q = quoteIdentifier;
const tableOf = ({ schema, name }: { readonly schema: string; readonly name: string }) => `${q(schema)}.${q(name)}`;

/** A comment, whatever the words hold. */
const comment = (words: string) => `-- ${words.replaceAll(/\s+/g, ' ')}`;
const join = (blocks: readonly (readonly string[])[]) => `${blocks.map((lines) => lines.join('\n')).join('\n\n')}\n`;

/** What the triggers are about; undefined for a column that is adopted in place. */
export function toTriggerColumn(column: AdoptedColumn): TriggerColumn | undefined {
  return column.from === undefined ? undefined : toTriggers(column, column.from);
}

interface Index {
  readonly kind: 'fieldkeep_todo' | 'fieldkeep_version';
  readonly parts: string;
  readonly where?: string;
}

/** The rows that are left to seal, in the order of their keys; gone by itself as they are. */
function todoIndex({ column, key, from }: AdoptedColumn & { readonly from: string }): Index {
  return {
    kind: 'fieldkeep_todo',
    parts: key.map(q).join(', '),
    where: `${q(from)} is not null and ${q(column)} is null`,
  };
}

function versionIndex({ column, key }: AdoptedColumn): Index {
  return {
    kind: 'fieldkeep_version',
    parts: [`fieldkeep.fe_version(${q(column)})`, ...key.map(q)].join(', '),
  };
}

function formatIndex(column: AdoptedColumn, { kind, parts, where }: Index, table: TableParts): string[] {
  const name = nameFor(kind, column);
  const rest = `(${parts})${where === undefined ? '' : `\n  where ${where}`};`;
  if (table.isNested) {
    const words =
      'Partitions of partitions: this one stops writing to the table while it is made. By hand it need not.';
    return [comment(words), `create index if not exists ${q(name)} on ${tableOf(column)} ${rest}`];
  }
  if (table.partitions.length === 0) {
    return [`create index concurrently if not exists ${q(name)} on ${tableOf(column)} ${rest}`];
  }
  return [
    `create index if not exists ${q(name)} on only ${tableOf(column)} ${rest}`,
    ...table.partitions.flatMap((partition) => {
      const own = nameFor(kind, { name: partition.name, column: column.column });
      return [
        `create index concurrently if not exists ${q(own)} on ${tableOf(partition)} ${rest}`,
        `alter index ${q(column.schema)}.${q(name)} attach partition ${q(partition.schema)}.${q(own)};`,
      ];
    }),
  ];
}

/** A lock that is not to be had soon is given up, so that nobody queues behind us. */
const inTransaction = (statements: readonly string[]) => [
  'begin;',
  "set local lock_timeout = '2s';",
  ...statements,
  'commit;',
];

function formatColumns(column: AdoptedColumn): string[] {
  const added = [...(column.from === undefined ? [] : [column.column]), ...column.index.map((each) => each.column)];
  if (added.length === 0) return [];
  const each = added.map((name) => `add column if not exists ${q(name)} text`).join(', ');
  return [
    comment('Where envelopes and tokens go. A moment, whatever the size of the table.'),
    `alter table ${tableOf(column)} ${each};`,
  ];
}

/** The constraint that keeps the source null after `finish`; in the way of whoever brings values back. */
const formatCheckDrop = (column: AdoptedColumn) =>
  `alter table ${tableOf(column)} drop constraint if exists ${q(emptyCheckName(column))};`;

/** The column that plaintext goes to on the way out, and that the worker may write it. */
export function formatDestination(column: AdoptedColumn, to: string, worker: string | undefined): string {
  const role = worker === undefined ? '' : q(worker);
  const grant = `grant select (${q(to)}), update (${q(to)}) on ${tableOf(column)} to ${role}`;
  return join([
    [
      comment('Where the plaintext goes. If it is to be of another type, make it first.'),
      `alter table ${tableOf(column)} add column if not exists ${q(to)} text;`,
      worker === undefined ? comment(`${grant}the role of the worker;`) : `${grant};`,
    ],
  ]);
}

/** What is run before an adoption starts. */
export function formatPreparation(column: AdoptedColumn, table: TableParts): string {
  const triggers = toTriggerColumn(column);
  const { from } = column;
  const retry = 'If it says "lock timeout", somebody is writing for long: run it again.';
  return join(
    [
      [
        comment(`For the adoption of ${column.schema}.${column.name}, column ${column.column}.`),
        comment('Its owner runs this with psql, not in one transaction; again, if a part of it failed.'),
        comment('npm run target:setup comes first: functions, and the grants of the worker.'),
      ],
      formatColumns(column),
      triggers === undefined
        ? []
        : [
            comment(
              'While the source holds a value it alone counts; a write by the application always wins. All or none of them.',
            ),
            comment(retry),
            ...inTransaction([formatCheckDrop(column), ...formatTriggers(triggers)]),
          ],
      from === undefined
        ? []
        : [
            comment(
              'Finds the rows that are left to seal. An index that was left INVALID by a failure: drop it first.',
            ),
            ...formatIndex(column, todoIndex({ ...column, from }), table),
          ],
      [comment('Finds what a rotation has to re-encrypt.'), ...formatIndex(column, versionIndex(column), table)],
    ].filter((lines) => lines.length > 0),
  );
}

/** Drops the index; where it is partitioned, those of the partitions go with it. */
function formatIndexDrop(column: AdoptedColumn, { kind }: Index, table: TableParts): string {
  const concurrently = table.isNested || table.partitions.length > 0 ? '' : ' concurrently';
  return `drop index${concurrently} if exists ${q(column.schema)}.${q(nameFor(kind, column))};`;
}

/** Statistics hold values of a column until it is analyzed again, and dead rows do until they are vacuumed. */
const forget = (column: AdoptedColumn) => [
  comment('Dead rows and statistics still hold values: this lets go of both.'),
  `vacuum (analyze) ${tableOf(column)};`,
  comment(
    'Free space inside the files may, too, until it is used again: VACUUM FULL (which locks the table) or pg_repack',
  ),
  comment('writes them anew. Log files, replicas and backups keep what they have until they are gone.'),
];

/** What is run after `finish`, when the source is null in every row. */
export function formatFinish(column: AdoptedColumn, table: TableParts): string {
  const triggers = toTriggerColumn(column);
  if (triggers === undefined) {
    return join([[comment('Adopted in place: there is no source that could be dropped.')], forget(column)]);
  }
  const check = emptyCheckName(column);
  const at = tableOf(column);
  const remove = [
    formatCheckDrop(column),
    `alter table ${at} add constraint ${q(check)} check (${q(triggers.source)} is null) not valid;`,
  ];
  return join([
    [
      comment(`After the adoption of ${column.schema}.${column.name}, column ${column.column}, has finished.`),
      comment('The source stays null: who still writes to it gets an error (23514). The triggers go with that.'),
      ...inTransaction([...remove, ...formatTriggerDrops(triggers)]),
      `alter table ${at} validate constraint ${q(check)};`,
      formatIndexDrop(column, todoIndex({ ...column, from: triggers.source }), table),
    ],
    forget(column),
    [
      comment(
        'When nobody names the column any more, and "from", "adopt", "tenants" and "sealed" are out of the policy:',
      ),
      comment(`alter table ${at} drop column ${q(triggers.source)};`),
    ],
  ]);
}

/** What is run after `undo`, when the source holds every value again and there is no envelope left. */
export function formatUndo(column: AdoptedColumn, table: TableParts): string {
  const triggers = toTriggerColumn(column);
  const drops = triggers === undefined ? [] : inTransaction(formatTriggerDrops(triggers));
  const todo = triggers && formatIndexDrop(column, todoIndex({ ...column, from: triggers.source }), table);
  const added = [...(triggers === undefined ? [] : [column.column]), ...column.index.map((each) => each.column)];
  const at = tableOf(column);
  const gone = added.map((name) => comment(`alter table ${at} drop column ${q(name)};`));
  return join([
    [
      comment(`After the adoption of ${column.schema}.${column.name}, column ${column.column}, was undone.`),
      ...drops,
      ...(todo === undefined ? [] : [todo]),
      formatIndexDrop(column, versionIndex(column), table),
    ],
    ...(gone.length === 0 ? [] : [[comment('When the column is out of the policy, and nobody names these:'), ...gone]]),
  ]);
}
