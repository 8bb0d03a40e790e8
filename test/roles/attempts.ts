/** What logins try with every object of a database: statements that need one right each, and what became of them. */
import assert from 'node:assert/strict';
import { connect, quoteIdentifier as q, quoteLiteral } from '../../src/db.ts';
import type { Cell, Table } from './table.ts';

export interface Relation {
  readonly schema: string;
  readonly name: string;
  readonly kind: 'table' | 'sequence';
  readonly partition: boolean;
  readonly columns: readonly string[];
}

interface Routine {
  readonly schema: string;
  readonly name: string;
  readonly types: readonly string[];
}

export interface Attempt {
  readonly sql: string;
  readonly allowed: boolean;
}

export const ours = ['fieldkeep', 'fieldkeep_jobs', 'demo', 'app'];

export const relationsSql = `select n.nspname as schema, c.relname as name, c.relispartition as partition,
    case c.relkind when 'S' then 'sequence' else 'table' end as kind,
    array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = any ($1) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') order by 1, 2`;
const routinesSql = `select n.nspname as schema, p.proname as name,
    array(select format_type(t, null) from unnest(p.proargtypes) t) as types
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = any ($1) order by 1, 2`;
/** Rights of others than the owner on tables that nobody tries, such as TRIGGER and REFERENCES. */
export const otherRightsSql = `select c.oid::regclass || ': ' || a.privilege_type as found from pg_class c
  cross join lateral (select * from aclexplode(c.relacl)
    union all select e.* from pg_attribute t cross join lateral aclexplode(t.attacl) e where t.attrelid = c.oid) a
  where c.relnamespace::regnamespace::text = any ($1) and a.grantee <> c.relowner
    and a.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'USAGE')`;
/** What a role has beside rights: attributes, and other roles. */
export const powersSql = `select rolname from pg_roles r where rolname = any ($1) and (rolsuper or rolcreaterole or rolcreatedb
  or rolreplication or rolbypassrls or exists (select from pg_auth_members m where m.member = r.oid))`;
/** Answers the SQLSTATE of each statement, '' where it ran. */
const attemptSql = `create function pg_temp.attempt(statements text[]) returns text[] language plpgsql as $$
  declare
    each text;
    answers text[] := '{}';
  begin
    foreach each in array statements loop
      begin
        execute each;
        answers := array_append(answers, '');
      exception when others then answers := array_append(answers, sqlstate::text);
      end;
    end loop;
    return answers;
  end $$`;

/** What a registered table's columns are called in the page. */
const words: Readonly<Record<string, string>> = {
  ...{ key: 'id', tenant: 'company', column: 'ssn', token: 'ssn_eq', source: 'plain' },
};

/** Statements that need one right each, change nothing, and are refused for the lack of that right alone. */
export function attemptTable({ schema, name, columns }: Relation, cell: Cell): Attempt[] {
  const table = `${q(schema)}.${q(name)}`;
  const named = (right: string) => cell.get(right)?.map((word) => (name === 'people' ? words[word]! : word));
  for (const column of [...cell.keys()].flatMap((right) => named(right) ?? [])) {
    assert.ok(columns.includes(column), `${schema}.${name} has the column ${column} of the page`);
  }
  const byColumn = (right: string, sqlOf: (column: string) => string) =>
    columns.map((column) => ({
      sql: sqlOf(q(column)),
      allowed: cell.has(right) && (named(right)?.includes(column) ?? true),
    }));
  return [
    ...byColumn('select', (column) => `select ${column} from ${table} limit 0`),
    ...byColumn(
      'insert',
      (column) => `insert into ${table} (${column}) overriding system value select null where false`,
    ),
    ...byColumn('update', (column) => `update ${table} set ${column} = default where false`),
    { sql: `delete from ${table} where false`, allowed: cell.has('delete') },
    { sql: `truncate ${table}`, allowed: cell.has('truncate') },
  ];
}

function attemptSequence({ schema, name }: Relation, cell: Cell): Attempt[] {
  const sequence = `${q(schema)}.${q(name)}`;
  return [
    { sql: `select nextval(${quoteLiteral(sequence)})`, allowed: cell.has('usage') },
    { sql: `select last_value from ${sequence}`, allowed: cell.has('select') },
    { sql: `select setval(${quoteLiteral(sequence)}, 1)`, allowed: cell.has('update') },
  ];
}

/** `where false`: the right is asked for before anything runs. */
function attemptRoutine({ schema, name, types }: Routine, cell: Cell): Attempt {
  const nulls = types.map((type) => `null::${type}`).join(', ');
  return { sql: `select ${q(schema)}.${q(name)}(${nulls}) where false`, allowed: cell.has('execute') };
}

/** The row of an object: its own, or that of its kind. */
function findRow(table: Table, names: readonly string[]): string {
  const row = names.find((name) => table.has(name));
  assert.ok(row !== undefined, `${names[0]} stands in docs/roles.md`);
  return row;
}

function namesOf({ schema, name, kind, partition }: Relation): string[] {
  if (kind === 'sequence') return [`sequence ${schema}.${name}`];
  if (schema === 'app') return [name === 'people' ? 'a registered table' : 'every other table'];
  return partition && schema === 'fieldkeep'
    ? ['every partition of fieldkeep']
    : [`${schema}.${name}`, `every table of ${schema}`];
}

export async function read<T extends object>(url: string, sql: string, values: readonly unknown[]): Promise<T[]> {
  const client = await connect(url, { name: 'tests' });
  try {
    return (await client.query<T>(sql, [...values])).rows;
  } finally {
    await client.end();
  }
}

/** Everything that the logins of a table try, and whether the page lets them. */
export async function listAttempts(ownerUrl: string, table: Table): Promise<Map<string, Attempt[]>> {
  const attempts = new Map<string, Attempt[]>();
  const seen = new Set<string>();
  const add = (names: readonly string[], of: (cell: Cell) => readonly Attempt[]) => {
    const row = findRow(table, names);
    seen.add(row);
    for (const [login, cell] of table.get(row)!) attempts.set(login, [...(attempts.get(login) ?? []), ...of(cell)]);
  };
  for (const each of await read<Relation>(ownerUrl, relationsSql, [ours])) {
    add(namesOf(each), (cell) => (each.kind === 'sequence' ? attemptSequence(each, cell) : attemptTable(each, cell)));
  }
  for (const each of await read<Routine>(ownerUrl, routinesSql, [ours])) {
    const { schema, name } = each;
    const names = [`function ${schema}.${name}`, `every other function of ${schema}`, `every function of ${schema}`];
    add(names, (cell) => [attemptRoutine(each, cell)]);
  }
  assert.deepEqual(
    [...table.keys()].filter((row) => !seen.has(row)),
    [],
    'the page names nothing that is not there',
  );
  const made = await read<{ name: string }>(
    ownerUrl,
    'select nspname as name from pg_namespace where nspname = any ($1)',
    [[...ours, 'public']],
  );
  const creating = ['create schema mine', ...made.map(({ name }) => `create table ${q(name)}.mine ()`)];
  for (const list of attempts.values()) list.push(...creating.map((sql) => ({ sql, allowed: false })));
  return attempts;
}

/** Runs them in a transaction of the login that is rolled back. Answers what went otherwise than the page says. */
export async function findDifferences(url: string, attempts: readonly Attempt[], role?: string): Promise<string[]> {
  const settings = { default_transaction_read_only: 'on' };
  const client = await connect(url, { name: 'tests', statementTimeoutMs: 60_000, settings });
  try {
    // No setting keeps anybody from writing: whoever has it can turn it off.
    await client.query('begin read write');
    await client.query(attemptSql);
    if (role !== undefined) await client.query(`set local role ${role}`);
    const { rows } = await client.query<{ answers: string[] }>('select pg_temp.attempt($1) as answers', [
      attempts.map(({ sql }) => sql),
    ]);
    await client.query('rollback');
    return attempts.flatMap(({ sql, allowed }, i) => {
      const answer = rows[0]!.answers[i]!;
      return answer === (allowed ? '' : '42501') ? [] : [`${sql}: ${answer === '' ? 'ran' : answer}`];
    });
  } finally {
    await client.end();
  }
}
