/** Envelopes in places that nobody registered, looked for as real roles that only read. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { openPool, type Pool } from '../../src/db.ts';
import { openReaders, type Readers, type TargetName } from '../../src/targets/targets.ts';
import { findUndeclared } from '../../src/retirement/undeclared.ts';
import { createDatabase, createTarget, type TestDatabase } from '../support/database.ts';
import { openProxy } from '../support/proxy.ts';
import { changePolicy, shippedPolicy } from '../rotation/support.ts';

const place = { key: ['id'], tenant: { value: 'acme' }, class: 'ssn' };
const policy = changePolicy({
  columns: [
    { ...place, table: 'demo.employees', column: 'ssn' },
    { ...place, database: 'hr', table: 'app.people', column: 'ssn' },
  ],
});
const old = 'fe1.ssn.2.AAAA';

describe('undeclared columns', () => {
  const role = `reader_${randomBytes(4).toString('hex')}`;
  let own: TestDatabase;
  let target: TestDatabase;
  let owner: Pool;
  let ownOwner: Pool;
  let readers: Readers;

  function asReader({ ownerUrl }: TestDatabase): string {
    const url = new URL(ownerUrl);
    url.username = role;
    url.password = role;
    return url.href;
  }
  const urls = () =>
    new Map<TargetName, string>([
      [undefined, asReader(own)],
      ['hr', asReader(target)],
    ]);

  before(async () => {
    [own, target] = await Promise.all([createDatabase(), createTarget()]);
    owner = openPool(target.ownerUrl, { max: 2, name: 'customer' });
    ownOwner = openPool(own.ownerUrl, { max: 2, name: 'owner' });
    await owner.query(`create role ${role} login password '${role}'`);
    await owner.query(`create schema app; create table app.people (id bigint primary key, ssn text, note text)`);
    await owner.query(`grant usage on schema app to ${role};
      alter default privileges in schema app grant select on tables to ${role};
      grant select on app.people to ${role}`);
    await ownOwner.query(`grant usage on schema demo to ${role}; grant select on demo.employees to ${role}`);
    readers = openReaders(urls());
  });
  after(async () => {
    await readers.close();
    await ownOwner.query(`drop owned by ${role}`);
    await owner.query(`drop owned by ${role}`);
    await owner.query(`drop role ${role}`);
    await Promise.all([owner.end(), ownOwner.end()]);
    await Promise.all([own.drop(), target.drop()]);
  });

  const search = (upTo = 2, family = 'ssn') => findUndeclared({ readers, policy }, family, upTo);

  /** Makes something in the target, looks for it, and takes it away. */
  async function plant(sql: string, remove: string, upTo = 2) {
    await owner.query(sql);
    try {
      return await search(upTo);
    } finally {
      await owner.query(remove);
    }
  }

  it('are none when there are none, registered columns do not count', async () => {
    await owner.query('insert into app.people values (1, $1, null)', [old]);
    await ownOwner.query(`insert into demo.employees (id, tenant, name, ssn) values (1, 'acme', 'n', $1)`, [old]);
    assert.deepEqual(await search(), { searched: true, found: [], unsearched: [] });
  });

  const places: [kind: string, type: string, value: string][] = [
    ['text', 'text', `'${old}'`],
    ['text inside others', 'text', `'was ${old}, is lost'`],
    ['varchar', 'varchar(80)', `'${old}'`],
    ['char', 'char(80)', `'${old}'`],
    ['json, nested', 'json', `'{"a":[{"b":"${old}"}]}'`],
    ['jsonb, nested', 'jsonb', `'{"a":[{"b":"${old}"}]}'`],
    ['jsonb, as a name', 'jsonb', `'{"${old}":1}'`],
    ['text[]', 'text[]', `array['x', '${old}']`],
    ['varchar[][]', 'varchar[]', `array[array['x'], array['${old}']]`],
    ['jsonb[]', 'jsonb[]', `array['"${old}"'::jsonb]`],
    ['a domain over text', 'app.short', `'${old}'`],
    ['an array of a domain', 'app.short[]', `array['${old}']::app.short[]`],
    ['a row type', 'app.pair', `row(1, '${old}')::app.pair`],
    ['a collation where unlike texts are equal', 'text collate app.loose', `'${old}'`],
    ['a newer one before it', 'text', `'fe1.ssn.7.AAAA ${old}'`],
    ['xml', 'xml', `'<a b="${old}"/>'`],
    ['bytea, among other bytes', 'bytea', `'\\x00ff'::bytea || convert_to('${old}', 'UTF8') || '\\x5c80'::bytea`],
    ['a domain over bytea', 'app.bytes', `convert_to('${old}', 'UTF8')`],
  ];
  describe('are found', () => {
    before(() =>
      owner.query(`create domain app.short as text check (length(value) < 100);
        create domain app.bytes as bytea;
        create type app.pair as (n int, s text);
        create collation app.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`),
    );
    for (const [kind, type, value] of places) {
      it(`in ${kind}`, async () => {
        const sql = `create table app.copies (id int, other text, c ${type}); insert into app.copies values (1, 'x', ${value})`;
        const found = [{ database: 'hr', table: 'app.copies', column: 'c' }];
        assert.deepEqual(await plant(sql, 'drop table app.copies'), { searched: true, found, unsearched: [] });
      });
    }

    it('in another column of a registered table, and in our own database', async () => {
      await ownOwner.query('update demo.employees set name = $1', [old]);
      const { found } = await plant(`update app.people set note = '${old}'`, 'update app.people set note = null');
      await ownOwner.query(`update demo.employees set name = 'n'`);
      assert.deepEqual(found, [
        { table: 'demo.employees', column: 'name' },
        { database: 'hr', table: 'app.people', column: 'note' },
      ]);
    });

    it('in a materialized view, and an empty one is no failure', async () => {
      const sql = `create materialized view app.seen as select id, ssn as seen from app.people;
        create materialized view app.later as select 'x'::text as c with no data`;
      const { found, unsearched } = await plant(sql, 'drop materialized view app.seen, app.later');
      assert.deepEqual(found, [{ database: 'hr', table: 'app.seen', column: 'seen' }]);
      assert.deepEqual(unsearched, []);
    });

    it('in a partition and in an heir, once each', async () => {
      const sql = `create table app.parts (id int, c text) partition by list (id);
        create table app.part_1 partition of app.parts for values in (1);
        insert into app.parts values (1, '${old}');
        create table app.parent (c text); create table app.heir (d text) inherits (app.parent);
        insert into app.heir values ('${old}', 'x')`;
      const { found } = await plant(sql, 'drop table app.parts, app.parent, app.heir');
      assert.deepEqual(found, [
        { database: 'hr', table: 'app.heir', column: 'c' },
        { database: 'hr', table: 'app.parts', column: 'c' },
      ]);
    });

    it('in another schema, under names that need quotes', async () => {
      const sql = `create schema "Else Where"; grant usage on schema "Else Where" to ${role};
        create table "Else Where"."T ""1""" ("C d" text); grant select on "Else Where"."T ""1""" to ${role};
        insert into "Else Where"."T ""1""" values ('${old}')`;
      const { found } = await plant(sql, 'drop schema "Else Where" cascade');
      assert.deepEqual(found, [{ database: 'hr', table: 'Else Where.T "1"', column: 'C d' }]);
    });
  });

  it('of newer versions, other families and no version at all are not found', async () => {
    const others = ['fe1.ssn.3.A', 'fe1.ssn.20.A', 'fe1.ssn.02.A', 'fe1.ssn.2', 'fe1.bank.2.A', 'fe1.ssn2.2.A'];
    const list = others.map((each) => `('${each}')`).join();
    const sql = `create table app.copies (c text); insert into app.copies values ${list}, ('fe1xssn.2.A')`;
    const drop = 'drop table app.copies';
    assert.deepEqual((await plant(sql, drop)).found, []);
    assert.equal((await plant(sql, drop, 3)).found.length, 1, 'of version 3 it is found up to 3');
    assert.equal((await plant(`${sql}; delete from app.copies where c ~ '[.]3[.]'`, drop, 20)).found.length, 1);
  });

  it('that the reader may not read are named, and the rest of the table is searched', async () => {
    const sql = `create table app.half (id int, open text, shut text); revoke all on app.half from ${role};
      grant select (id, open) on app.half to ${role}; insert into app.half values (1, '${old}', '${old}');
      create schema shut; create table shut.t (c text)`;
    const { searched, found, unsearched } = await plant(sql, 'drop table app.half; drop schema shut cascade');
    assert.equal(searched, true);
    assert.deepEqual(found, [{ database: 'hr', table: 'app.half', column: 'open' }]);
    assert.deepEqual(unsearched, [
      'hr:app.half.shut: the reader may not read it',
      'hr:shut.t.c: the reader may not read it',
    ]);
  });

  it('behind row level security are named: a filtered look is no look', async () => {
    const sql = `create table app.rows (c text); alter table app.rows enable row level security;
      create policy p on app.rows using (true)`;
    const { found, unsearched } = await plant(sql, 'drop table app.rows');
    assert.deepEqual(found, []);
    assert.match(unsearched.join(), /^hr:app\.rows: the reader may not read all of it .*BYPASSRLS/);
  });

  it('of a process that ends are no longer looked for: the server is told, and nothing is said of what was found', async () => {
    const dying = openReaders(urls());
    await owner.query(
      `create table app.huge (c text); insert into app.huge select repeat('fe1.ssn.', 200000) from generate_series(1, 400)`,
    );
    try {
      const searching = findUndeclared({ readers: dying, policy }, 'ssn', 2);
      const reading = `select from pg_stat_activity where application_name = 'fieldkeep reader' and query like '%app"."huge%' and state = 'active'`;
      while ((await owner.query(reading)).rowCount === 0) await sleep(5);
      dying.end();
      await assert.rejects(searching, { code: 'database_unavailable', message: /The process ends/ });
      for (const deadline = performance.now() + 2_000; (await owner.query(reading)).rowCount !== 0; await sleep(20)) {
        assert.ok(performance.now() < deadline, 'the server goes on with it');
      }
      await assert.rejects(findUndeclared({ readers: dying, policy }, 'ssn', 2), { code: 'database_unavailable' });
    } finally {
      await dying.close();
      await owner.query('drop table app.huge');
    }
  });

  it('of a database without a reader, or with none that answers, are not called searched', async () => {
    const proxy = await openProxy(target.ownerUrl);
    const some = openReaders(new Map([['hr', proxy.through(asReader(target))]]));
    try {
      const one = await findUndeclared({ readers: some, policy }, 'ssn', 2);
      assert.equal(one.searched, false);
      assert.deepEqual(one.unsearched, ['the database of Fieldkeep: it has no reader; set DATABASE_READER_URL']);
      proxy.mode = 'refuse';
      proxy.cut();
      const none = await findUndeclared({ readers: some, policy }, 'ssn', 2);
      assert.match(none.unsearched.join('; '), /; target hr: (it cannot be reached|the database went away)$/);
      const shut = openReaders(new Map());
      assert.match((await findUndeclared({ readers: shut, policy }, 'ssn', 2)).unsearched[1]!, /TARGET_HR_READER_URL/);
    } finally {
      await some.close();
      await proxy.close();
    }
  });

  it('are told as not searched where a statement takes too long or its connection dies', async () => {
    await owner.query(
      `create table app.busy (c text); create table app.zoo (c text); insert into app.zoo values ('${old}')`,
    );
    const hasty = openReaders(urls(), 300);
    const holder = await owner.connect();
    try {
      await holder.query('begin; lock table app.busy in access exclusive mode');
      const found = [{ database: 'hr', table: 'app.zoo', column: 'c' }];
      const late = await findUndeclared({ readers: hasty, policy }, 'ssn', 2);
      assert.deepEqual(late, { searched: true, found, unsearched: ['hr:app.busy: reading it took too long'] });
      const running = search();
      for (let killed = false; !killed; await sleep(50)) {
        const { rowCount } = await owner.query(
          `select pg_terminate_backend(pid) from pg_stat_activity
           where usename = $1 and wait_event_type = 'Lock' and datname = current_database()`,
          [role],
        );
        killed = rowCount === 1;
      }
      const cut = await running;
      assert.deepEqual(cut, { searched: true, found, unsearched: ['hr:app.busy: the database went away'] });
    } finally {
      await holder.query('rollback');
      holder.release();
      await hasty.close();
      await owner.query('drop table app.busy, app.zoo');
    }
  });

  it('are looked for by sessions that cannot write', async () => {
    await assert.rejects(readers.find('hr')!.query('create temporary table t (c int)'), { code: '25006' });
  });

  it('are looked for in our own database alone where the policy names no other', async () => {
    const { unsearched } = await findUndeclared({ readers: openReaders(new Map()), policy: shippedPolicy }, 'ssn', 2);
    assert.equal(unsearched.length, 1);
  });
});
