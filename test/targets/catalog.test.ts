/** What makes a registered table one that cannot be worked on: unique indexes and foreign keys on tokens above all. */
import assert from 'node:assert/strict';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { openPool, roleOf, type Pool } from '../../src/db.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { openTargets, type Targets } from '../../src/targets/targets.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { changePolicy } from '../rotation/support.ts';

const { columns } = changePolicy({
  columns: [
    {
      ...{ table: 'public.people', key: ['id'], tenant: { column: 'tenant' }, column: 'ssn', class: 'ssn' },
      index: [{ name: 'eq', column: 'ssn_eq', unique: true }],
    },
  ],
});

describe('targets/catalog', () => {
  let database: TestDatabase;
  let owner: Pool;
  let targets: Targets;
  before(async () => {
    database = await createDatabase();
    owner = openPool(database.ownerUrl, { max: 2, name: 'owner' });
    targets = openTargets(database.workerUrl, new Map(), { rows: new Map([[undefined, database.rowsUrl]]) });
  });
  after(async () => {
    await targets.close();
    await owner.end();
    await database.drop();
  });

  /** What stands against the table when it was made by `sql`, with more columns where `more` says so. */
  async function problemOf(sql: string, end = ''): Promise<string | undefined> {
    const role = roleOf(database.rowsUrl);
    await owner.query(`create table public.people (id bigint, tenant text, ssn text, ssn_eq text, email text,
      primary key (id)) ${end}; ${sql}; grant select, update on public.people to ${role}`);
    try {
      return (await loadCatalog(targets, columns)).problems.get('public.people');
    } finally {
      await owner.query('drop table if exists public.people, public.others cascade');
    }
  }

  const refused: [what: string, sql: string, kind: string, end?: string][] = [
    ['a unique constraint', 'alter table public.people add constraint r unique (tenant, ssn_eq)', 'unique index r'],
    ['a unique index', 'create unique index r on public.people (ssn_eq) where tenant is not null', 'unique index r'],
    ['one on an expression', 'create unique index r on public.people (lower(ssn_eq))', 'unique index r'],
    [
      'an exclusion',
      'alter table public.people add constraint r exclude using btree (ssn_eq with =)',
      'unique index r',
    ],
    [
      'one of a partition',
      'create table public.part partition of public.people for values from (1) to (9); create unique index r on public.part (ssn_eq)',
      'unique index r',
      'partition by range (id)',
    ],
    [
      'a foreign key',
      `create table public.others (ssn_eq text primary key);
       alter table public.people add constraint r foreign key (ssn_eq) references public.others`,
      'foreign key r',
    ],
  ];
  for (const [what, sql, kind, end] of refused) {
    it(`${what} stops the table, by name`, async () => {
      const problem = await problemOf(sql, end);
      assert.match(
        problem ?? 'none',
        new RegExp(`^Table public\\.people has the ${kind} on ssn_eq, whose tokens change`),
      );
    });
  }

  it('a table that a foreign key refers to is named, too', async () => {
    const problem = await problemOf(`create unique index on public.people (ssn_eq);
      create table public.others (n text constraint r references public.people (ssn_eq))`);
    assert.match(problem!, /unique index people_ssn_eq_idx on ssn_eq/);
  });

  it('a target that lets nobody in is named with its variable, and stops nobody else', async () => {
    const wrong = (part: 'password' | 'pathname') => {
      return Object.assign(new URL(database.workerUrl), { [part]: 'none-CANARY' }).href;
    };
    const told = async (url: string) => {
      const asked = openTargets(database.workerUrl, new Map([['hr', url]]));
      try {
        const inTarget = { ...columns[0]!, database: 'hr', address: 'hr:public.people' };
        return (await loadCatalog(asked, [inTarget])).problems.get(inTarget.address);
      } finally {
        await asked.close();
      }
    };
    const prefix = 'Target hr of table hr:public.people';
    assert.equal(await told(wrong('password')), `${prefix} refuses the credentials of TARGET_HR_URL.`);
    assert.equal(await told(wrong('pathname')), `${prefix} does not exist: check TARGET_HR_URL.`);
  });

  it('a target that never answers is named with since when, and delays no other', async () => {
    const sockets: Socket[] = [];
    const silent = createServer((socket) => sockets.push(socket.on('error', () => undefined)));
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    const url = `postgres://who:ever@127.0.0.1:${(silent.address() as AddressInfo).port}/hr`;
    const asked = openTargets(database.workerUrl, new Map([['hr', url]]), {
      rows: new Map([[undefined, database.rowsUrl]]),
    });
    try {
      const inTarget = ['a', 'b', 'c'].map((name) => {
        const table = `public.${name}`;
        return { ...columns[0]!, database: 'hr', table, name, address: `hr:${table}` };
      });
      const own = {
        ...columns[0]!,
        table: 'demo.employees',
        schema: 'demo',
        name: 'employees',
        address: 'demo.employees',
      };
      const startedAt = performance.now();
      const { problems, tables } = await loadCatalog(asked, [...inTarget, own]);
      assert.ok(performance.now() - startedAt < 5_000, 'it is asked once for all of its tables');
      assert.ok(tables.has('demo.employees'));
      const said = [...problems.values()];
      assert.equal(said.length, 3);
      for (const each of said)
        assert.match(each, /^Target hr of table hr:public\.[abc] has not answered since \d{4}-.*Z\.$/);
      const since = (text: string) => text.slice(text.indexOf('since'));
      const [later] = (await loadCatalog(asked, inTarget)).problems.values();
      assert.equal(since(later!), since(said[0]!), 'the time is that of the first silence');
    } finally {
      for (const socket of sockets) socket.destroy();
      silent.close();
      await asked.close();
    }
  }).timeout(30_000);

  it('indexes that compare no token are left alone', async () => {
    const sql = `create index on public.people (tenant, ssn_eq);
      create unique index on public.people (email) include (ssn_eq) where ssn_eq is not null;
      create unique index on public.people (lower(email))`;
    assert.equal(await problemOf(sql), undefined);
  });
});
