/**
 * What would break if a column were adopted, from what an inspection saw: its shape (adoption-shape.ts), and here everybody
 * who reads, checks, sorts or copies its plaintext. Pure.
 */
import { quoteIdentifier } from '../db.ts';
import type { FieldClass, RegisteredColumn } from '../policy/policy.ts';
import { change, countOf, note, stop, when, type Finding } from './finding.ts';
import { sourceOf, type Inspection } from './inspect.ts';
import type { SeenConstraint, SeenIndex } from './dependents-store.ts';
import { checkShape, envelopeCharsMax } from './shape.ts';
import { buildTriggers } from '../targets/adoption-triggers.ts';
import { toTriggerColumn } from './sql.ts';

const q = quoteIdentifier;

interface Case {
  readonly column: RegisteredColumn;
  readonly seen: Inspection;
  readonly source: string;
  /** Envelope and plaintext share a column. */
  readonly inPlace: boolean;
}

function checkTable({ column, seen, source }: Case): Finding[] {
  const { table, prepared, worker } = seen;
  const isIn = (names: readonly string[]) => names.includes(source);
  // As Postgres prints the expression, a name stands between what is no part of a name.
  const words = (table.partitionExpression ?? '').split(/[^\p{L}\p{N}_$]+/u);
  return [
    ...when(!prepared, () =>
      stop(
        'The database lacks fieldkeep.fe_version',
        'Versions are counted by it.',
        'its owner runs what npm run target:setup prints',
      ),
    ),
    ...when(!['r', 'p'].includes(table.kind), () =>
      stop(
        `${column.table} is a ${table.kind === 'f' ? 'foreign table' : 'view'}`,
        'Only tables can be adopted.',
        'register the table behind it',
      ),
    ),
    ...when(table.heirs.length > 0, () =>
      stop(
        `Other tables inherit from it: ${table.heirs.join(', ')}`,
        'Its triggers and its key do not reach their rows.',
        'register each of them',
      ),
    ),
    ...when(isIn(table.partitionKey) || words.includes(source), () =>
      stop(
        `The table is partitioned by ${source}`,
        'A row would have to move when it becomes null.',
        'partition by something else first',
      ),
    ),
    ...when(isIn(column.key), () => stop(`${source} is part of the key`, 'Keys stay readable.')),
    ...when(table.unlogged, () =>
      note('The table is UNLOGGED', 'After a crash of the database it is empty, envelopes included.'),
    ),
    ...when(table.encoding === 'SQL_ASCII', () =>
      change(
        'The database has no encoding (SQL_ASCII)',
        'A value that is not UTF-8 stops every batch that reads it (22021).',
        'find such values, and write them anew as UTF-8, before the start',
      ),
    ),
    ...when(
      table.rowSecurity && worker !== undefined && !worker.aboveRows && (!worker.owner || table.rowSecurityForced),
      () =>
        stop(
          `Row level security would hide rows from ${worker!.name}`,
          'Its sessions refuse to work with a part of the rows (row_security = off).',
          `alter role ${q(worker!.name)} bypassrls;`,
        ),
    ),
    ...when(table.rowSecurity && worker === undefined, () =>
      note(
        'The table has row level security',
        'The role that works on rows needs BYPASSRLS, or every statement of it fails.',
      ),
    ),
  ];
}

/** What the printed SQL makes, and is not there yet. */
function checkPrepared({ column, seen }: Case): Finding[] {
  const how = `npm run adopt -- sql ${column.address}.${column.column}`;
  const { missingTriggers, versionIndexed, table } = seen;
  return [
    ...when(missingTriggers.length > 0, () =>
      change(
        `Triggers are missing, off, or other than printed: ${missingTriggers.join(', ')}`,
        'They keep source and envelope of one mind; without them no adoption starts.',
        how,
      ),
    ),
    ...when(!versionIndexed && table.kind !== 'f', () =>
      change('No index finds old versions', 'Every pass of a rotation would read the whole table.', how),
    ),
  ];
}

function checkConstraint({ column, source, inPlace }: Case, { name, kind, refers, table, nullsEqual }: SeenConstraint) {
  const then = inPlace ? 'an envelope takes its place' : 'it becomes null';
  switch (kind) {
    case 'c':
      return inPlace
        ? stop(
            `CHECK ${name} is about ${source}`,
            'It sees envelopes instead of values; rows that it refuses fail.',
            'drop it, or let it pass what fieldkeep.fe_version calls > 0',
          )
        : change(
            `CHECK ${name} is about ${source}`,
            'It sees nulls from then on: it must let them pass, and checks no value any more.',
            'check in the application; drop it before finish if null does not pass',
          );
    case 'p':
      return stop(`${source} is part of the primary key ${name}`, `A key cannot change when ${then}.`);
    case 'f':
      return refers
        ? (inPlace ? stop : change)(
            `Foreign key ${name} checks ${source}`,
            'What is encrypted refers to nothing.',
            'drop it, or keep the reference and encrypt what it points to',
          )
        : stop(
            `Foreign key ${name} of ${table} refers to ${source}`,
            `Rows there point at values; ${then} here.`,
            'refer to the key instead',
          );
    case 'u':
      return nullsEqual && !inPlace
        ? stop(
            `UNIQUE ${name} calls two nulls equal`,
            'The second row that becomes null is refused.',
            `alter table ${q(column.schema)}.${q(column.name)} drop constraint ${q(name)};`,
          )
        : change(
            `UNIQUE ${name} keeps ${source} unique`,
            'Two envelopes of one value differ: nothing is unique any more.',
            'an index with "unique": true, whose writers call fe_claim',
          );
    default:
      return change(
        `Exclusion constraint ${name} compares ${source}`,
        'Envelopes cannot be compared.',
        'drop it before the writes move',
      );
  }
}

function checkIndex({ source }: Case, index: SeenIndex): Finding {
  const { name, method, unique, nullsEqual, direct, predicate } = index;
  if (unique && nullsEqual) {
    return stop(
      `Unique index ${name} calls two nulls equal`,
      'The second row that becomes null is refused.',
      `drop index ${q(name)};`,
    );
  }
  const how = direct
    ? 'drop it when the reads have moved; equality goes by a blind index of the policy'
    : 'drop it when the reads have moved';
  const what =
    predicate && !direct ? `has ${source} in its predicate` : direct ? `is on ${source}` : `computes with ${source}`;
  const why = unique
    ? 'Nothing is unique any more, and no search finds values through it.'
    : 'Equal values have different envelopes: no search, range, order or LIKE goes through it any more.';
  return change(`Index ${name} (${method}) ${what}`, why, how);
}

function checkTriggers({ column, seen, source, inPlace }: Case): Finding[] {
  const of = toTriggerColumn(column);
  const own = of === undefined ? [] : buildTriggers(of).triggers.map(({ name }) => name);
  const first = own[0];
  const isAfter = (name: string) => first !== undefined && Buffer.compare(Buffer.from(name), Buffer.from(first)) > 0;
  return seen.dependents.triggers
    .filter(({ name }) => !name.startsWith('zzz_fieldkeep_'))
    .map(({ name, before, row, function: by, table, mentions, wholeRows }) => {
      const what = `Trigger ${name} (${before ? 'before' : 'after'}${row ? ' each row' : ' each statement'}, ${by})`;
      if (before && row && isAfter(name)) {
        const rename = `alter trigger ${q(name)} on ${table} rename to …;`;
        return (mentions ? stop : note)(
          `${what} fires after ours`,
          'What it changes of the source is not seen.',
          rename,
        );
      }
      if (wholeRows && !mentions) {
        return change(
          `${what} takes rows as a whole`,
          `Copies of them that it makes hold ${source} in plain, and ${inPlace ? 'envelopes' : 'nulls'} later on.`,
          'see to it before the writes move, and to the copies that are there',
        );
      }
      return mentions
        ? change(
            `${what} mentions ${source}`,
            'It meets nulls where values were, and copies of them may be what it makes.',
            'see to it before the writes move',
          )
        : note(
            what,
            "It fires for each row that is sealed, unless it asks current_setting('fieldkeep.reencrypting', true).",
          );
    });
}

function checkReaders({ seen, source, inPlace }: Case): Finding[] {
  const { views, others, functions, statements } = seen.dependents;
  const grants = seen.dependents.grants.filter((role) => role !== seen.worker?.name);
  const sees = inPlace ? 'It sees envelopes' : 'It sees nulls after finish';
  const kinds = {
    rule: 'Rule',
    policy: 'Row level security policy',
    function: 'Function',
    statistics: '',
    generated: '',
  };
  return [
    ...views.map(({ name, materialized, indirect }) => {
      const by = indirect ? ' through another view' : '';
      return materialized
        ? change(
            `Materialized view ${name} reads ${source}${by}`,
            'It holds a copy of the values in plain.',
            'change and refresh it before finish, or drop it',
          )
        : change(
            `View ${name} reads ${source}${by}`,
            `${sees}; what it filters by it finds nothing.`,
            'change it when the reads move',
          );
    }),
    ...others.map(({ kind, name, notNull }) => {
      if (kind === 'statistics') {
        return change(
          `Extended statistics ${name} are made of ${source}`,
          'They hold frequent values in plain.',
          `drop statistics ${q(name)};`,
        );
      }
      if (kind !== 'generated')
        return change(`${kinds[kind]} ${name} reads ${source}`, `${sees}.`, 'change it when the reads move');
      const why = 'It holds what is computed from the plaintext, and computes with null after finish.';
      return (notNull && !inPlace ? stop : change)(
        `Column ${name} is generated from ${source}`,
        why,
        'drop it, or encrypt it as well',
      );
    }),
    ...functions.map(({ name }) =>
      change(
        `Function ${name} names the table and ${source}`,
        `${sees}, if that is what it means.`,
        'read it before the reads move',
      ),
    ),
    ...(statements ?? []).map(({ id, calls, filters, orders, groups }) => {
      const does = [filters && 'filters or joins', orders && 'orders', groups && 'groups'].filter(
        (each) => each !== false,
      );
      return change(
        `Statement ${id} of pg_stat_statements (${countOf(calls, 'call')}) ${does.join(', ')}, and has ${source} in it`,
        'By values that cannot work any more, but for equality through a blind index.',
        `select query from pg_stat_statements where queryid = ${id};`,
      );
    }),
    ...when(statements === undefined, () =>
      note(
        'Statements are not recorded, or not for this role',
        'pg_stat_statements would tell which ones filter and sort by the column.',
      ),
    ),
    ...when(grants.length > 0, () =>
      note(
        `Granted on ${source} itself: ${grants.join(', ')}`,
        `${sees.replace('It sees', 'They see')}; who is to see values gets a grant in the policy.`,
      ),
    ),
  ];
}

/** Where plaintext, or the rows, leave the database. */
function checkCopies({ column, seen, source, inPlace }: Case): Finding[] {
  const { table, dependents } = seen;
  const { publications, slots, subscriptions } = dependents;
  const of = toTriggerColumn(column);
  const at = `${q(column.schema)}.${q(column.name)}`;
  const always = (of === undefined ? [] : buildTriggers(of).triggers).map(
    ({ name }) => `enable always trigger ${q(name)}`,
  );
  const added = [...(inPlace ? [] : [column.column]), ...column.index.map((index) => index.column)];
  const identified = table.replicaIdentity === 'f' || table.identityColumns.length > 0;
  return [
    ...publications.flatMap(({ name, updates, columns, filtered, filters }) => [
      ...when(updates && !identified, () =>
        stop(
          `Publication ${name} publishes updates, and the table has no replica identity`,
          'Every UPDATE fails.',
          `alter table ${q(column.schema)}.${q(column.name)} replica identity full;`,
        ),
      ),
      ...when(filters, () =>
        stop(
          `The row filter of publication ${name} is about ${source}`,
          'Rows come and go at the subscribers as they are sealed.',
          'filter by something else',
        ),
      ),
      ...when(filtered && !filters, () => note(`Publication ${name} has a row filter`, 'It is not about this column.')),
      ...when(columns === null && added.length > 0, () =>
        change(
          `Publication ${name} publishes all columns`,
          `A subscriber without ${added.join(', ')} stops.`,
          'add the columns there first',
        ),
      ),
      ...when(columns !== null && columns.includes(source), () =>
        change(
          `Publication ${name} publishes ${source}`,
          'Its subscribers hold the plaintext, until finish sets it to null there, too.',
        ),
      ),
      ...when(columns !== null && added.some((each) => !columns.includes(each)), () =>
        change(
          `The columns of publication ${name} are listed`,
          `Its subscribers do not get ${added.join(', ')}.`,
          'add them to the list if they are to have them',
        ),
      ),
    ]),
    ...when(subscriptions.length > 0 && !inPlace, () =>
      change(
        `Subscriptions write to the table: ${subscriptions.join(', ')}`,
        'What they write of the source fires no trigger of ours unless it fires always: an old envelope would stay beside it.',
        `after what sql prints, each time: alter table ${at} ${always.join(', ')};`,
      ),
    ),
    ...when(slots.length > 0, () =>
      note(
        `Logical replication slots of this database: ${slots.join(', ')}`,
        'What reads them has had the plaintext of every change.',
      ),
    ),
    ...when(table.replicaIdentity === 'f' && !inPlace, () =>
      note('Its replica identity is FULL', 'Every update writes the whole old row into the log, plaintext included.'),
    ),
  ];
}

/** Of an UPDATE with its log, and of opening, ms a value; as measured on one core. */
const updateMs = 0.1;
const openMs = { pgcrypto: 0.4, transit: 0.05 };
const pageBytes = 8192;
const indexEntryBytes = 100;

function estimate({ column, seen }: Case, fieldClass: FieldClass): Finding {
  const { table, columns, exact } = seen;
  const source = columns.get(sourceOf(column))!;
  if (exact === undefined && table.rows < 0) {
    return note(
      'The table was never analyzed',
      'How many values there are is not known.',
      `analyze ${q(column.schema)}.${q(column.name)}; or --exact`,
    );
  }
  const rows = exact?.rows ?? table.rows;
  const values = exact?.values ?? Math.round(rows * (1 - (source.nullShare ?? 0)));
  const envelope = envelopeCharsMax(fieldClass, source.width ?? 16) - 8;
  const row = (rows > 0 ? table.bytes / rows : 0) + envelope;
  const log = values * (row + indexEntryBytes * (table.indexes + 2)) + Math.min(table.pages, values) * pageBytes;
  const seconds = (values * (updateMs + (column.sealed === undefined ? 0 : openMs[column.sealed.by]))) / 1000;
  const mib = (bytes: number) => countOf(Math.ceil(bytes / 2 ** 20), 'MiB', 'MiB');
  return note(
    `${exact === undefined ? 'About ' : ''}${countOf(values, 'value')} in ${countOf(rows, 'row')}, ${mib(table.bytes)}`,
    `Sealing them takes about ${Math.max(1, Math.round(seconds / 60))} min by one range without limits, writes about ${mib(log)} of log, ` +
      `and the table grows by up to ${mib(values * row)} until it is vacuumed.`,
  );
}

const levels = ['stop', 'change', 'note'] as const;

/** Everything that is to say of a column, the gravest first. `seen` is undefined when the table cannot be seen. */
export function planAdoption(
  column: RegisteredColumn,
  fieldClass: FieldClass,
  seen: Inspection | undefined,
): Finding[] {
  if (seen === undefined) {
    return [stop(`There is no table ${column.table}, or it cannot be seen`, 'The policy registers it.')];
  }
  const source = sourceOf(column);
  const it: Case = { column, seen, source, inPlace: column.from === undefined };
  const shape = checkShape(column, fieldClass, seen);
  const findings = [
    ...when(!column.adopt, () =>
      stop('The policy does not adopt the column', 'Plaintext in it is a finding, not work.', '"adopt": true'),
    ),
    ...checkTable(it),
    ...shape,
    ...checkPrepared(it),
    ...when(it.inPlace, () =>
      change(
        `${source} is adopted in place`,
        'From the first batch on, everything that reads it meets envelopes and plaintext, row by row.',
        '"from" with a column of its own, unless every reader takes both',
      ),
    ),
    ...(seen.columns.has(source)
      ? [
          ...seen.dependents.constraints.map((each) => checkConstraint(it, each)),
          ...seen.dependents.indexes
            .filter(({ name }) => !name.startsWith('fieldkeep_'))
            .map((each) => checkIndex(it, each)),
          ...checkTriggers(it),
          ...checkReaders(it),
          ...checkCopies(it),
          estimate(it, fieldClass),
        ]
      : []),
  ];
  return levels.flatMap((level) => findings.filter((finding) => finding.level === level));
}
