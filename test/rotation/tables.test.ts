/** Tables as customers have them: in databases of their own, with keys of every kind, partitioned, with and without index. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { openPool, roleOf, type Pool } from '../../src/db.ts';
import { formatRow, loadCatalog } from '../../src/targets/catalog.ts';
import { rehearse } from '../../src/rotation/rehearsal.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { adopt, changePolicy, drive, isSettled, openBench, openFor, rotate, type Bench } from './support.ts';

interface Table {
  readonly name: string;
  readonly key: readonly string[];
  readonly sql: string;
  readonly indexed?: boolean;
  readonly keys: readonly (readonly string[])[];
}

const rows = 250;
const numbers = Array.from({ length: rows }, (_, i) => i + 1);

const tables: readonly Table[] = [
  {
    name: 'public.people',
    key: ['id'],
    sql: 'create table public.people (id bigint primary key, tenant text, secret text)',
    indexed: true,
    keys: numbers.map((n) => [String(n * 1_000_000_007)]),
  },
  {
    name: 'public.documents',
    key: ['id'],
    sql: 'create table public.documents (id uuid primary key, tenant text, secret text)',
    indexed: true,
    keys: numbers.map(() => [randomUUID()]),
  },
  {
    name: 'public.notes',
    key: ['name'],
    sql: 'create table public.notes (name text primary key, tenant text, secret text)',
    keys: numbers.map((n) => [`${['Ä', 'a b', 'Z', '"q\'', '\u{1f511}', 'z\\'][n % 6]} ${n}`]),
  },
  {
    name: 'public.lines',
    key: ['order', 'line'],
    sql: `create table public.lines ("order" bigint, line smallint, tenant text, secret varchar(400), primary key ("order", line))
          partition by hash ("order");
          create table public.lines_0 partition of public.lines for values with (modulus 2, remainder 0);
          create table public.lines_1 partition of public.lines for values with (modulus 2, remainder 1)`,
    indexed: true,
    keys: numbers.map((n) => [String(Math.ceil(n / 7)), String(n % 7)]),
  },
  {
    name: 'public."Odd Table"',
    key: ['Key', 'Part'],
    sql: `create table public."Odd Table" ("Key" varchar(40) not null, "Part" int not null, tenant text, secret text);
          create unique index on public."Odd Table" ("Part", "Key")`,
    keys: numbers.map((n) => [`k${n % 11}`, String(n)]),
  },
];

const plainName = (name: string) => name.replaceAll('"', '');
const addressOf = ({ name }: Table) => `hr:${plainName(name)}`;
const quote = (name: string) => `"${name}"`;

const policy = changePolicy({
  columns: tables.map((table) => ({
    database: 'hr',
    table: plainName(table.name),
    key: table.key,
    tenant: { value: 'acme' },
    column: 'secret',
    class: 'bank',
    adopt: true,
  })),
  classes: { bank: { nonAscii: 'fold', rotation: { concurrency: 3 } } },
});

async function make(owner: Pool, service: string, table: Table): Promise<void> {
  await owner.query(table.sql);
  for (const key of table.keys) {
    await owner.query(
      `insert into ${table.name} (${[...table.key, 'secret'].map(quote).join(', ')})
       values (${table.key.map((_, i) => `$${i + 1}`).join(', ')}, $${table.key.length + 1})`,
      [...key, `secret of ${key.join('/')}`],
    );
  }
  await owner.query(
    `grant select (${[...table.key, 'secret'].map(quote).join(', ')}), update (secret) on ${table.name} to ${service}`,
  );
  if (table.indexed !== true) return;
  await owner.query(`create index on ${table.name} (fieldkeep.fe_version(secret), ${table.key.map(quote).join(', ')})`);
}

describe('tables in a target', () => {
  let target: TestDatabase;
  let owner: Pool;
  let bench: Bench;
  before(async () => {
    target = await createTarget();
    owner = openPool(target.ownerUrl, { max: 2, name: 'customer' });
    for (const table of tables) await make(owner, roleOf(target.workerUrl), table);
    bench = await openBench({ policy, targets: new Map([['hr', target.workerUrl]]) });
  });
  after(async () => {
    await bench.close();
    await owner.end();
    await target.drop();
  });

  async function check(version: number): Promise<void> {
    for (const table of tables) {
      const parts = table.key.map((name) => `${quote(name)}::text`).join(', ');
      const found = await owner.query<string[]>({
        text: `select ${parts}, secret from ${table.name}`,
        rowMode: 'array',
      });
      assert.equal(found.rows.length, rows);
      for (const row of found.rows) {
        const key = row.slice(0, -1);
        assert.match(row.at(-1)!, new RegExp(`^fe1\\.bank\\.${version}\\.`), addressOf(table));
        const value = await openFor(bench.service, 'secret', formatRow(key), row.at(-1)!, addressOf(table));
        assert.equal(value, `secret of ${key.join('/')}`);
      }
    }
  }

  it('count versions as our own database does: the functions are the same', async () => {
    const sql = `select pg_get_functiondef(oid) as text from pg_proc
                 where pronamespace = 'fieldkeep'::regnamespace and proname like 'fe\\_%' order by 1`;
    const [theirs, ours] = [await owner.query(sql), await bench.owner.query(sql)];
    assert.equal(theirs.rows.length, 7);
    assert.deepEqual(theirs.rows, ours.rows);
    const columns = `select attname, format_type(atttypid, atttypmod) as type, attnotnull from pg_attribute
                     where attrelid = 'fieldkeep.guarded_columns'::regclass and attnum > 0 order by attnum`;
    assert.deepEqual((await owner.query(columns)).rows, (await bench.owner.query(columns)).rows);
    const installed = await owner.query('select * from fieldkeep.guarded_columns');
    assert.deepEqual(installed.rows, [], 'what is guarded is for the owner to say');
  });

  it('are found usable, and their version indexes known', () => {
    const { catalog } = bench.service;
    assert.deepEqual([...catalog.problems.values()], []);
    for (const table of tables) {
      assert.equal(catalog.tables.get(addressOf(table))!.indexed.has('secret'), table.indexed === true, table.name);
    }
  });

  it('are adopted and rotated, whatever their key is', async () => {
    assert.equal((await adopt(bench.service)).phase, 'done');
    await check(1);
    const rehearsal = await rehearse(bench.service, 'bank');
    assert.deepEqual(rehearsal.sample, { values: tables.length * rows, failed: 0 });
    assert.equal(rehearsal.warnings.length, 2, rehearsal.warnings.join('\n'));
    assert.match(
      rehearsal.warnings.join('\n'),
      /create index concurrently on "public"\."Odd Table" \(fieldkeep\.fe_version\("secret"\), "Key", "Part"\);/,
    );
    const run = await rotate(bench, 'bank');
    assert.equal(run.phase, 'done');
    await check(2);
    assert.ok(run.predicted !== undefined && run.walBytes !== undefined);
  }).timeout(60_000);

  it('that are gone, hidden or not prepared are told by name, and everything else goes on', async () => {
    await owner.query('alter table public.notes rename to elsewhere');
    await owner.query(`revoke update (secret) on public.documents from ${roleOf(target.workerUrl)}`);
    await owner.query('update public.people set secret = $1 where id = 1000000007', ['plain again']);
    const catalog = await loadCatalog(bench.service.targets, policy.columns);
    assert.match(catalog.problems.get('hr:public.notes')!, /does not exist/);
    assert.match(catalog.problems.get('hr:public.documents')!, /may not update column secret/);
    bench.service.catalog = catalog;
    const id = (await startAdoption(bench.service, true))!;
    const run = await drive(bench.service, id, isSettled);
    assert.equal(run.phase, 'blocked');
    assert.match(run.blocked!, /hr:public\.(notes|documents)/);
    const { rows: people } = await owner.query<{ secret: string }>(
      'select secret from public.people where id = 1000000007',
    );
    assert.match(people[0]!.secret, /^fe1\.bank\.2\./, 'the others went on');
    await owner.query('alter table public.elsewhere rename to notes');
    await owner.query(`grant update (secret) on public.documents to ${roleOf(target.workerUrl)}`);
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch' where id = $1`, [id]);
    bench.service.catalog = await loadCatalog(bench.service.targets, policy.columns);
    assert.equal((await drive(bench.service, id, (each) => each.phase === 'done')).phase, 'done');
  }).timeout(60_000);

  it('of a process that is not connected are known by what another one saw', async () => {
    const other = await loadCatalog(
      {
        find: (name) => (name === undefined ? bench.service.targets.find(undefined) : undefined),
        findRows: () => undefined,
        close: () => Promise.resolve(),
      },
      policy.columns,
    );
    assert.deepEqual(other.keyTypes.get('hr:public.lines'), ['bigint', 'smallint']);
    assert.match(other.problems.get('hr:public.lines')!, /set TARGET_HR_URL/);
  });

  it('say to triggers that it is re-encryption that writes', async () => {
    await owner.query('alter table public.people add column touched int not null default 0');
    await owner.query(`create function public.touch() returns trigger language plpgsql as $$ begin
      if current_setting('fieldkeep.reencrypting', true) = 'on' then return new; end if;
      new.touched := old.touched + 1; return new; end $$`);
    await owner.query(
      'create trigger touch before update on public.people for each row execute function public.touch()',
    );
    await owner.query(`update public.people set tenant = 'x' where id = 1000000007`);
    assert.equal((await rotate(bench, 'bank')).phase, 'done');
    const touched = await owner.query('select sum(touched)::int as n from public.people');
    assert.deepEqual(touched.rows, [{ n: 1 }]);
    const { rows: found } = await owner.query<{ id: string; secret: string }>('select id, secret from public.people');
    for (const { id, secret } of found) {
      const value = await openFor(bench.service, 'secret', id, secret, 'hr:public.people');
      assert.equal(value, id === '1000000007' ? 'plain again' : `secret of ${id}`);
    }
  }).timeout(60_000);
});
