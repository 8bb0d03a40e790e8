/**
 * Everything that a database needs before its registered columns are worked on, as a list of steps: roles, what
 * migrations/target.sql has, columns, indexes and rights. Pure: the SQL of every step, and what differs in what stands there.
 *
 * Running a step again changes nothing. Indexes are built beside the application, each outside a transaction; all other
 * steps are one transaction each. No step has a password in it.
 */
import { quoteIdentifier, quoteLiteral } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { refuseRule } from './catalog.ts';
import { planIndexes } from './indexes.ts';
import { compareReader, compareRights, compareRole } from './rights.ts';
import type { PlaceName, Step, TableState, TargetState } from './state.ts';

export interface TargetPlanOptions {
  /** The registered columns of this database. */
  readonly columns: readonly RegisteredColumn[];
  /** The text of migrations/target.sql; absent for Fieldkeep's own database, whose migrations make the same. */
  readonly fixed?: string;
  /** Whether the columns whose guards the service may change are listed there. */
  readonly guarded: boolean;
  /** The role of the worker, of the rows, of the search for undeclared columns, and of an application that claims values. */
  readonly worker: string;
  /** Absent where the worker itself reads and writes rows. */
  readonly rows?: string;
  readonly reader?: string;
  readonly application?: string;
  /** The partitions that hold the rows of a partitioned table, by address; known only to who looked. */
  readonly partitions?: ReadonlyMap<string, readonly PlaceName[]>;
}

/** What is taken for itself waits for nobody longer: whoever comes after it would wait, too. */
export const setLockTimeout = `set local lock_timeout = '2s';`;

const q = quoteIdentifier;
export const quotePlace = ({ schema, name }: PlaceName): string => `${q(schema)}.${q(name)}`;

/** Columns that may be missing, because they are only ours: for tokens, and for envelopes beside the source. */
function listNewColumns(columns: readonly RegisteredColumn[]): string[] {
  return columns.flatMap(({ from, column, index }) => [
    ...(from === undefined ? [] : [column]),
    ...index.map((each) => each.column),
  ]);
}

/** What is read and written of these columns. */
export function listNeeds(columns: readonly RegisteredColumn[]): { read: string[]; write: string[] } {
  const { key, tenant } = columns[0]!;
  const write = columns.flatMap(({ column, from, index }) => [
    column,
    ...index.map((each) => each.column),
    ...(from === undefined ? [] : [from]),
  ]);
  return { read: [...key, ...('column' in tenant ? [tenant.column] : []), ...write], write };
}

const textTypes = new Set(['text', 'character varying']);
const keyTypes = new Set(['smallint', 'integer', 'bigint', 'uuid', ...textTypes]);

function compareTable(columns: readonly RegisteredColumn[], state: TableState | undefined, role: string): string[] {
  if (state === undefined) return ['there is no table of that name (a view or a foreign table is none)'];
  const { address, key } = columns[0]!;
  const missing = listNeeds(columns).read.filter((column) => !state.types.has(column));
  const wrong = (names: readonly string[], types: ReadonlySet<string>, wanted: string) =>
    names.flatMap((name) => {
      const type = state.types.get(name);
      return type === undefined || types.has(type) ? [] : [`column ${name} is of type ${type} instead of ${wanted}`];
    });
  const holders = columns.flatMap(({ column, index }) => [column, ...index.map((each) => each.column)]);
  return [
    ...missing.map((column) => `column ${column} is missing`),
    ...wrong(key, keyTypes, 'an integer type, uuid or text'),
    ...wrong(holders, textTypes, 'text'),
    ...(state.unique ? [] : [`no unique index covers exactly the key (${key.join(', ')}), all NOT NULL`]),
    ...state.comparing.map((rule) => refuseRule(address, rule)),
    ...(state.filtered
      ? [`row level security would hide rows from ${role}, whose sessions refuse that: alter role … bypassrls`]
      : []),
  ];
}

function planTable(columns: readonly RegisteredColumn[], role: string): Step {
  const place = columns[0]!;
  const added = listNewColumns(columns).map((column) => `add column if not exists ${q(column)} text`);
  return {
    what: `table ${place.table}`,
    why: 'Columns for tokens, and for envelopes beside their source; the others are there.',
    statements: added.length === 0 ? [] : [`alter table ${quotePlace(place)} ${added.join(', ')}`],
    atomic: true,
    differences: ({ tables }) => compareTable(columns, tables.get(place.address), role),
  };
}

function planRights(columns: readonly RegisteredColumn[], role: string): Step {
  const place = columns[0]!;
  const { read, write } = listNeeds(columns);
  const list = (names: readonly string[]) => names.map(q).join(', ');
  return {
    what: `rights of ${role} on ${place.table}`,
    why: 'It reads key, tenant, registered columns and their tokens, and writes the last two; nothing else.',
    statements: [
      `grant usage on schema ${q(place.schema)} to ${q(role)}`,
      `revoke all privileges on ${quotePlace(place)} from ${q(role)}`,
      `grant select (${list(read)}), update (${list(write)}) on ${quotePlace(place)} to ${q(role)}`,
    ],
    atomic: true,
    differences: ({ tables, rows }) => compareRights(tables.get(place.address), rows, read, write),
  };
}

function createRole(role: string): string {
  const found = `select from pg_catalog.pg_roles where rolname = ${quoteLiteral(role)}`;
  return `do $$ begin if not exists (${found}) then create role ${q(role)} login; end if; end $$`;
}

/** Says nothing where everybody may, as it is by default, and the owner of the tables is not that of the database. */
function mayConnect(role: string): string {
  const grant = `format('grant connect on database %I to %I', pg_catalog.current_database(), ${quoteLiteral(role)})`;
  const may = `pg_catalog.has_database_privilege(${quoteLiteral(role)}, pg_catalog.current_database(), 'connect')`;
  return `do $$ begin if not ${may} then execute ${grant}; end if; end $$`;
}

function planWorker(worker: string): Step {
  return {
    what: `role ${worker}`,
    why: `The role of the worker. Its password is set by its owner, by hand: \\password ${worker}`,
    statements: [createRole(worker), mayConnect(worker)],
    atomic: true,
    differences: ({ worker: role }) => compareRole(role),
  };
}

function planReader(reader: string): Step[] {
  const setting = `alter role ${q(reader)} set default_transaction_read_only = on`;
  const each = (sql: string, of: string) => `    execute format('${sql}', ${of}, ${quoteLiteral(reader)});`;
  const customers = `n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'fieldkeep', 'fieldkeep_jobs')`;
  return [
    {
      what: `role ${reader}`,
      why: `Looks for envelopes in columns that nobody registered. Its password is set by its owner: \\password ${reader}`,
      statements: [createRole(reader), mayConnect(reader), setting],
      atomic: true,
      differences: ({ reader: role }) => [
        ...compareRole(role),
        ...(role?.exists === true && !role.readOnly ? ['its sessions may write: default_transaction_read_only'] : []),
      ],
    },
    {
      what: `rights of ${reader}`,
      why: 'It reads every table of whoever runs this, and those that they make later.',
      statements: [
        [
          'do $$ declare s name; t regclass; begin',
          `  for s in select n.nspname from pg_catalog.pg_namespace n where ${customers}`,
          `           and pg_catalog.pg_has_role(n.nspowner, 'usage') loop`,
          each('grant usage on schema %I to %I', 's'),
          each('alter default privileges in schema %I grant select on tables to %I', 's'),
          '  end loop;',
          '  for t in select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace',
          `           where c.relkind in ('r', 'p', 'v', 'm', 'f') and ${customers}`,
          `           and pg_catalog.pg_has_role(c.relowner, 'usage') loop`,
          each('grant select on %s to %I', 't'),
          '  end loop;',
          'end $$',
        ].join('\n'),
      ],
      atomic: true,
      differences: compareReader,
    },
  ];
}

/** What brings the schema fieldkeep about: the worker's rights there are what the file grants, and nothing else. */
export function listFixed(text: string, worker: string): string[] {
  const revokes = ['tables', 'functions'].map(
    (things) =>
      `    execute format('revoke all on all ${things} in schema fieldkeep from %I', ${quoteLiteral(worker)});`,
  );
  return [
    [
      `do $$ begin -- not from their owner`,
      `  if pg_catalog.to_regnamespace('fieldkeep') is not null and current_user <> ${quoteLiteral(worker)} then`,
      ...revokes,
      '  end if;',
      'end $$',
    ].join('\n'),
    // Without what the file says of itself.
    text
      .replace(/^(--.*\n)+\n/, '')
      .replaceAll(':service', q(worker))
      .trim()
      .replace(/;$/, ''),
  ];
}

function planFixed(text: string, worker: string): Step {
  return {
    what: 'schema fieldkeep',
    why: 'What every target has: migrations/target.sql.',
    statements: listFixed(text, worker),
    atomic: true,
    differences: ({ fixed, intruders }) => [...fixed, ...intruders],
  };
}

function planGuarded(columns: readonly RegisteredColumn[]): Step {
  const rows = columns.map(({ schema, name, column }) => [schema, name, column]);
  const values = rows.map((row) => `(${row.map(quoteLiteral).join(', ')})`).join(',\n  ');
  return {
    what: 'columns that may be guarded',
    why: 'Where the service may let the database refuse envelopes of retired versions.',
    statements: [
      `insert into fieldkeep.guarded_columns (schema_name, table_name, column_name) values\n  ${values}\non conflict do nothing`,
    ],
    atomic: true,
    differences: ({ guarded, tables }) => [
      ...rows.flatMap((row) =>
        guarded === undefined || guarded.has(row.join('.')) ? [] : [`${row.join('.')} is not listed`],
      ),
      ...Array.from(tables, ([address, { ownerName, unguardedBy }]) =>
        unguardedBy === undefined
          ? []
          : [
              `${address} belongs to ${ownerName} and cannot be guarded by ${unguardedBy}: grant ${ownerName} to ${unguardedBy}`,
            ],
      ).flat(),
    ],
  };
}

function planApplication(application: string): Step {
  return {
    what: `rights of ${application}`,
    why: 'An application that claims values with fieldkeep.fe_claim may use the schema.',
    statements: [`grant usage on schema fieldkeep to ${q(application)}`],
    atomic: true,
    differences: ({ applicationMayUse }) =>
      applicationMayUse === false ? ['it lacks USAGE on the schema fieldkeep'] : [],
  };
}

function planElsewhere(role: string): Step {
  return {
    what: `rights of ${role} elsewhere`,
    why: 'None: they would have been given by somebody else.',
    statements: [],
    atomic: true,
    differences: ({ elsewhere }) => [...elsewhere],
  };
}

/** The login that works on rows: functions of ours, and no table of ours. */
function planRowsRole(rows: string): Step[] {
  return [
    {
      what: `role ${rows}`,
      why: `Reads and writes the registered columns; triggers and checks run in its sessions. Its password: \\password ${rows}`,
      statements: [createRole(rows), mayConnect(rows)],
      atomic: true,
      differences: ({ rows: role }) => compareRole(role),
    },
  ];
}

function planRowsSchema(rows: string): Step {
  return {
    what: `schema fieldkeep for ${rows}`,
    why: 'It calls fe_version.',
    statements: [`grant usage on schema fieldkeep to ${q(rows)}`],
    atomic: true,
    differences: ({ rowsMayUse }) => (rowsMayUse ? [] : ['it lacks USAGE on the schema fieldkeep']),
  };
}

/** Mirrors and guards are all that the worker's own login is for, once rows have a login of their own. */
function planWorkerRights(worker: string, tables: readonly (readonly RegisteredColumn[])[]): Step {
  return {
    what: `rights of ${worker} on tables`,
    why: 'None: rows are worked on by a login of their own.',
    statements: tables.map((columns) => `revoke all privileges on ${quotePlace(columns[0]!)} from ${q(worker)}`),
    atomic: true,
    differences: ({ workerElsewhere }) => [...workerElsewhere],
  };
}

/** The steps in the order in which they must be made. */
export function planTarget(options: TargetPlanOptions): Step[] {
  const { columns, fixed, worker, rows = worker, reader, application, partitions } = options;
  const isApart = rows !== worker;
  const tables = [...Map.groupBy(columns, ({ address }) => address).values()];
  return [
    planWorker(worker),
    ...(isApart ? planRowsRole(rows) : []),
    ...(fixed === undefined ? [] : [planFixed(fixed, worker)]),
    ...(isApart ? [planRowsSchema(rows)] : []),
    ...tables.map((each) => planTable(each, rows)),
    ...tables.flatMap((each) => planIndexes(each, partitions?.get(each[0]!.address))),
    ...tables.map((each) => planRights(each, rows)),
    ...(isApart ? [planWorkerRights(worker, tables)] : []),
    planElsewhere(rows),
    ...(options.guarded ? [planGuarded(columns)] : []),
    ...(reader === undefined ? [] : planReader(reader)),
    ...(application === undefined ? [] : [planApplication(application)]),
  ];
}

/** A comment of one line, whatever the names in it hold. */
const comment = (words: string) => `-- ${words.replaceAll(/\s+/g, ' ')}`;

/** Where a database reads a backslash in a string otherwise, our functions would be other ones. */
const asWritten = 'set standard_conforming_strings = on;';

/** All of it as a text for psql; without indexes that are seen to be there, by whatever name. */
export function formatPlan(steps: readonly Step[], seen?: TargetState): string {
  const texts = steps.flatMap(({ what, why, statements, atomic, indexes, differences }) => {
    if (statements.length === 0) return [];
    const found = indexes === undefined || seen === undefined ? undefined : differences(seen);
    if (found?.length === 0) return [`${comment(what)}\n-- is there.`];
    const told = (found ?? []).map((each) => comment(`now ${each}`)); // of an invalid one: --apply drops it first
    const lines = statements.map((each) => `${each};`);
    const body = atomic ? ['begin;', setLockTimeout, ...lines, 'commit;'] : lines;
    return [[comment(what), comment(why), ...told, ...body].join('\n')];
  });
  return `${asWritten}\n\n${texts.join('\n\n')}\n`;
}
