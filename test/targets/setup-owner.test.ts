/** `npm run target:setup` as owners have it who are no superusers, whose tables are busy, and who are not alone. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, openPool, type Pool } from '../../src/db.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { policyText } from '../rotation/support.ts';
import { runSetup, type Ran } from './support.ts';

const base = { database: 'hr', key: ['id'], tenant: { column: 'tenant' }, adopt: true };
const text = JSON.stringify({
  ...(JSON.parse(policyText) as object),
  columns: [
    {
      ...{ ...base, table: 'app.people', column: 'ssn', class: 'ssn' },
      index: [{ name: 'eq', column: 'ssn_eq', unique: true }],
    },
    { ...base, table: 'app.lines', column: 'secret', class: 'bank' },
  ],
});

describe('target:setup by an owner who is no superuser', function () {
  this.timeout(60_000);
  const id = randomBytes(4).toString('hex');
  const [owner, other, worker, reader] = ['owner', 'other', 'worker', 'reader'].map((name) => `${name}_${id}`) as [
    string,
    string,
    string,
    string,
  ];
  let target: TestDatabase;
  let admin: Pool;
  let folder: string;

  const urlOf = (role: string) => Object.assign(new URL(target.ownerUrl), { username: role, password: id }).href;
  async function setup(...args: string[]): Promise<Ran> {
    const ran = await runSetup(folder, ['hr', '--worker', worker, '--reader', reader, ...args], {
      TARGET_HR_OWNER_URL: urlOf(owner),
    });
    assert.ok(!(ran.out + ran.err).includes(`${id}@`));
    return ran;
  }
  const asOwner = () => connect(urlOf(owner), { name: 'application' });

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-owner-'));
    writeFileSync(join(folder, 'policy.json'), text);
    target = await createTarget(false);
    admin = openPool(target.ownerUrl, { max: 2, name: 'admin' });
    await admin.query(`create role ${owner} login password '${id}'; create role ${other};
      do $$ begin execute format('alter database %I owner to ${owner}', current_database()); end $$`);
    const db = await asOwner();
    await db.query(`create schema app; create table app.people (id bigint primary key, tenant text not null, ssn text);
      create table app.lines (id bigint primary key, tenant text, secret varchar(400)) partition by range (id);
      create table app.lines_1 partition of app.lines for values from (1) to (100)`);
    await db.end();
  });
  after(async () => {
    await target.drop();
    const server = openPool(new URL('/postgres', target.ownerUrl).href, { max: 1, name: 'admin' });
    for (const role of [owner, other, worker, reader]) await server.query(`drop role if exists ${role}`);
    await server.end();
    await admin.end();
    rmSync(folder, { recursive: true, force: true });
  });

  it('tells who may not make roles what somebody else runs, and how things stand', async () => {
    const { code, out, err } = await setup('--apply');
    assert.equal(code, 1);
    assert.match(out, /^! role worker_\w+ .*\n {4}the role does not exist$/m);
    assert.match(
      err,
      /role worker_\w+: the database says 42501, permission denied to create role\. Whoever may runs this:/,
    );
    await admin.query(err.slice(err.indexOf('begin;')));
    assert.match((await setup('--apply')).err, /role reader_\w+: the database says 42501/);
    await admin.query(`alter role ${owner} createrole`);
  });

  it('says that a table cannot be looked at, and tries again where others keep it locked', async () => {
    const busy = await asOwner();
    await busy.query('alter table app.people drop ssn_eq');
    await busy.query('begin; lock table app.people');
    assert.match((await setup('--check')).err, /^Others keep a table there locked, and it cannot be looked at/);
    await busy.query('rollback; begin; lock table app.people in access share mode');
    const running = setup('--apply');
    const waiting = async () => {
      const { rows } = await admin.query<{ n: number }>(
        `select count(*)::int as n from pg_locks where not granted and relation = 'app.people'::regclass`,
      );
      return rows[0]!.n > 0;
    };
    while (!(await waiting())) await sleep(20);
    while (await waiting()) await sleep(20); // it gave up once, and lets others go on
    await busy.query('commit');
    await busy.end();
    const { code, out, err } = await running;
    assert.equal(code, 0, out + err);
  });

  it('is the only one that makes anything', async () => {
    const builder = await asOwner();
    await builder.query(`select pg_advisory_lock(hashtextextended('fieldkeep target:setup', 0))`);
    const { code, err } = await setup('--apply');
    assert.equal(code, 1);
    assert.match(err, /^Somebody else sets this database up, or what they began still runs there/);
    await builder.end();
    assert.equal((await setup('--check')).code, 0);
  });

  it('names tables of others that the reader cannot read and that cannot be guarded, and does the rest', async () => {
    await admin.query(`create schema theirs; create table theirs.t (a text); create table app.theirs (a text);
      alter table app.people owner to ${other}`);
    const db = await asOwner();
    await db.query(`create table app.later (a text); revoke all on app.later from ${reader}`);
    await db.end();
    const { code, out } = await setup('--apply');
    assert.equal(code, 1);
    const told = (name: string) => `    it may not read ${name}\n`;
    assert.ok(out.includes(told('app.theirs') + told('theirs.t')), out);
    assert.ok(!out.includes('app.later'), out);
    assert.ok(
      out.includes(`hr:app.people belongs to ${other} and cannot be guarded by ${owner}: grant ${other} to ${owner}`),
    );
    await admin.query(`grant ${other} to ${owner}; drop schema theirs cascade; drop table app.theirs`);
    const again = await setup('--check');
    assert.equal(again.code, 0, again.out);
  });

  it('tells the right to maintain a table, which came with Postgres 17', async function () {
    const { rows } = await admin.query<{ version: number }>(
      `select current_setting('server_version_num')::int as version`,
    );
    if (rows[0]!.version < 170_000) this.skip();
    await admin.query(
      `grant maintain on app.people to ${worker}; create table app.more (); grant maintain on app.more to ${worker}`,
    );
    const { out } = await setup('--apply');
    assert.match(out, /^\+ rights of worker_\w+ on app\.people +made$/m);
    assert.match(out, /^! rights of worker_\w+ elsewhere .*\n {4}it may MAINTAIN app\.more$/m);
    await admin.query('drop table app.more');
  });

  it('says of a view that it is no table', async () => {
    await admin.query('alter table app.people rename to persons; create view app.people as select * from app.persons');
    const { out } = await setup('--check');
    assert.match(
      out,
      /! table app\.people .*\n {4}there is no table of that name \(a view or a foreign table is none\)/,
    );
  });
});
