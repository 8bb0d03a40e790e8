/** Guards on our own table and on a customer's: what they refuse, who may make them, and that nobody waits for them. */
import assert from 'node:assert/strict';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { openPool, quoteIdentifier, roleOf, type Pool } from '../../src/db.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { listConstraints } from '../../src/retirement/guard-store.ts';
import { listProblems } from '../../src/retirement/retire-store.ts';
import { listRuns } from '../../src/rotation/store.ts';
import { watchDone } from '../../src/retirement/watch.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { adopt, fill, openBench, openFor, rotate, sealFor, type Bench } from '../rotation/support.ts';
import { guardsOf, hold, policyOf, watchUntilDone } from './retiring.ts';

const look = (bench: Bench) => watchDone(bench.service, { now: true });

describe('guards on a table of our own', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench({ policy: policyOf() });
    await fill(bench.owner, 40, (id) => `536-22-${id}`);
    await adopt(bench.service);
  });
  after(() => bench.close());

  it('are added when a rotation is done, and refuse what is older', async () => {
    await rotate(bench);
    assert.deepEqual(await look(bench), []);
    assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_2', true]]);
    const late = await hold(bench.service, 1, '1', '536-22-1');
    await assert.rejects(bench.owner.query('update demo.employees set ssn = $1 where id = 1', [late]), {
      code: '23514',
      constraint: 'fe_guard_ssn_2',
    });
    await bench.owner.query(
      `insert into demo.employees (id, tenant, name, ssn) values (900, 'acme', 'n', 'plaintext')`,
    );
    await bench.owner.query('delete from demo.employees where id = 900');
    await assert.rejects(bench.owner.query(`update demo.employees set ssn = 'fe1.ssn.x' where id = 1`), {
      code: '23514',
    });
    await bench.owner.query('update demo.employees set ssn = $1 where id = 1', [
      await hold(bench.service, 2, '1', '536-22-1'),
    ]);
  });

  it('are raised by the next rotation, the lower one last', async () => {
    const { rows } = await bench.owner.query('select * from fieldkeep.guards');
    await rotate(bench);
    await look(bench);
    assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_3', true]]);
    const late = await hold(bench.service, 2, '1', '536-22-1');
    await assert.rejects(bench.owner.query('update demo.employees set ssn = $1 where id = 1', [late]), {
      code: '23514',
    });
    const now = await bench.owner.query('select * from fieldkeep.guards order by version');
    assert.deepEqual(now.rows[0], rows[0], 'since when version 1 is kept out is remembered');
    assert.equal(now.rows.length, 2);
  });

  it('leave an entry for every step, with its intent before', async () => {
    await unfoldAcknowledged(bench.service.pool);
    const { rows } = await bench.owner.query<{ line: string }>(
      `select line from fieldkeep.audit_entries where action = 'guard' order by index`,
    );
    const told = rows.map(({ line }) => JSON.parse(line) as Record<string, string | number>);
    assert.deepEqual(
      told.map((each) => [each['keyVersion'], each['purpose'], each['outcome']]),
      [2, 3].flatMap((version) =>
        ['adding', 'validating'].flatMap((step) =>
          ['intent', 'result'].map((what) => [version, `${step}, ${what} of a guard against older versions`, 'ok']),
        ),
      ),
    );
    assert.deepEqual([told[0]!['table'], told[0]!['column'], told[0]!['class']], ['demo.employees', 'ssn', 'ssn']);
  });

  it('are made anew where somebody dropped them, and count from then', async () => {
    await bench.owner.query('alter table demo.employees drop constraint fe_guard_ssn_3');
    const since = new Date();
    await look(bench);
    assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_3', true]]);
    const { rows } = await bench.owner.query<{ version: number; validated_at: Date; lost: boolean }>(
      'select version, validated_at, lost_at is not null as lost from fieldkeep.guards order by version',
    );
    assert.deepEqual(
      rows.map(({ version, lost }) => [version, lost]),
      [
        [2, true],
        [3, false],
      ],
    );
    assert.ok(rows[1]!.validated_at > since);
  });

  it('are known by what they say, not by their name', async () => {
    await bench.owner.query(`alter table demo.employees drop constraint fe_guard_ssn_3,
                             add constraint fe_guard_ssn_3 check (length(ssn) > 0 or fieldkeep.fe_version(ssn) >= 3)`);
    const table = bench.service.catalog.tables.get('demo.employees')!;
    assert.deepEqual(await listConstraints(bench.owner, table, 'ssn'), []);
    await look(bench);
    const late = await hold(bench.service, 2, '1', '536-22-1');
    await assert.rejects(bench.owner.query('update demo.employees set ssn = $1 where id = 1', [late]), {
      constraint: 'fe_guard_ssn_3',
    });
  });

  it('are tried again when their table is locked, and nobody who works with it waits long', async () => {
    await rotate(bench);
    const reader = await bench.owner.connect();
    try {
      await reader.query('begin');
      await reader.query('select count(*) from demo.employees'); // ACCESS SHARE until it ends
      const started = performance.now();
      const looking = look(bench);
      let slowest = 0;
      let running = true;
      const works = (async () => {
        while (running) {
          const at = performance.now();
          await bench.owner.query(`update demo.employees set name = 'm' where id = 3`);
          slowest = Math.max(slowest, performance.now() - at);
        }
      })();
      assert.deepEqual(await looking, []);
      running = false;
      await works;
      assert.ok(performance.now() - started > 200, 'it waited for the lock');
      assert.ok(slowest < 1_500, `an application waited ${slowest} ms`);
      assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_3', true]]);
      assert.match((await listProblems(bench.service.pool, 'ssn'))[0]!.problem, /locked for longer/);
      await reader.query('commit');
    } finally {
      reader.release();
    }
    await look(bench);
    assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_4', true]]);
    assert.deepEqual(await listProblems(bench.service.pool, 'ssn'), []);
  });

  it('that are added and not validated, because an older row slipped in, are validated after another pass', async () => {
    await rotate(bench);
    const late = await hold(bench.service, 4, '5', '536-22-5');
    await bench.owner.query('update demo.employees set ssn = $1 where id = 5', [late]);
    // As if it had come after the count: somebody died between the two steps.
    await bench.service.pool.query(`select fieldkeep.fe_guard_add('demo', 'employees', 'ssn', 5, true)`);
    const run = await watchUntilDone(bench);
    assert.deepEqual([run?.phase, run?.requestedBy, run?.version], ['done', 'watch', 5]);
    await look(bench);
    assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_5', true]]);
    const { rows } = await bench.owner.query<{ ssn: string }>('select ssn from demo.employees where id = 5');
    assert.equal(await openFor(bench.service, 'ssn', '5', rows[0]!.ssn), '536-22-5');
  });

  it('are not made for families that never rotated', async () => {
    const before = await listRuns(bench.owner, { limit: 100 });
    await look(bench);
    assert.equal((await listRuns(bench.owner, { limit: 100 })).length, before.length);
    assert.ok((await guardsOf(bench.owner)).every(([name]) => name.startsWith('fe_guard_ssn_')));
  });

  it('are for listed columns, from version 2 on, and for the service alone', async () => {
    const add = (...values: unknown[]) =>
      bench.service.pool.query('select fieldkeep.fe_guard_add($1, $2, $3, $4, $5)', values);
    await assert.rejects(add('demo', 'employees', 'name', 2, false), { code: '42501' });
    await assert.rejects(add('demo', 'employees', 'ssn', 1, false), { code: '22023' });
    await assert.rejects(add('demo', 'employees', 'ssn', null, false), { code: '22023' });
    await assert.rejects(add('demo', 'employees', 'bank', 7, null), { code: '22023' });
    await assert.rejects(
      bench.service.pool.query(`insert into fieldkeep.guarded_columns values ('demo', 'employees', 'name')`),
      { code: '42501' },
    );
    await assert.rejects(bench.service.pool.query(`select fieldkeep.fe_guard_validate('demo', 'employees', 'x', 2)`), {
      code: '42501',
    });
    const { rows } = await bench.owner.query<{ open: boolean }>(
      `select bool_or(has_function_privilege('public', oid, 'execute')) as open from pg_proc
       where pronamespace = 'fieldkeep'::regnamespace and proname in ('fe_guard_add', 'fe_guard_validate')`,
    );
    assert.equal(rows[0]!.open, false);
  });
});

describe('guards on the tables of a customer, whose role is not ours', () => {
  let target: TestDatabase;
  let owner: Pool;
  let bench: Bench;
  const long = 'n'.repeat(60);
  const column = (table: string, more: object) => ({
    ...{ database: 'hr', table, key: ['id'], tenant: { value: 'acme' }, column: 'secret', class: 'bank' },
    ...more,
  });
  const policy = policyOf(undefined, [
    column('app.people', { adopt: true }),
    column('app.lines', {}),
    column('app.lines', { column: long }),
  ]);

  before(async () => {
    target = await createTarget();
    const name = new URL(target.ownerUrl).pathname.slice(1).replace('customer_test', 'customer_role');
    const admin = openPool(target.ownerUrl, { max: 1, name: 'admin' });
    await admin.query(`create role ${name} login password '${name}'; create schema app authorization ${name}`);
    await admin.query(`grant usage on schema app to ${quoteIdentifier(roleOf(target.workerUrl))}`);
    // The owner of the tables, no superuser, installs the functions.
    await admin.query(
      `alter schema fieldkeep owner to ${name}; alter table fieldkeep.guarded_columns owner to ${name};
       alter function fieldkeep.fe_guard_add owner to ${name}; alter function fieldkeep.fe_guard_validate owner to ${name}`,
    );
    await admin.end();
    const url = new URL(target.ownerUrl);
    [url.username, url.password] = [name, name];
    owner = openPool(url.href, { max: 2, name: 'customer' });
    await owner.query(
      `create table app.people (id bigint primary key, secret varchar(900));
       create table app.lines (id bigint primary key, secret text, ${long} text) partition by hash (id);
       create table app.lines_0 partition of app.lines for values with (modulus 2, remainder 0);
       create table app.lines_1 partition of app.lines for values with (modulus 2, remainder 1);
       grant select, update on app.people, app.lines to ${quoteIdentifier(roleOf(target.workerUrl))}`,
    );
    bench = await openBench({ policy, targets: new Map([['hr', target.workerUrl]]) });
    for (const table of ['people', 'lines']) {
      for (const id of ['1', '2', '3']) {
        const key = await bench.service.keyring.getOrMake('acme', 'bank', 1);
        const envelope = sealFor(key, 1, 'secret', id, `value ${id}`, 'bank', `hr:app.${table}`);
        await owner.query(`insert into app.${table} (id, secret) values ($1, $2)`, [id, envelope]);
      }
    }
    await rotate(bench, 'bank');
  });
  after(async () => {
    await bench.close();
    const role = (await owner.query<{ r: string }>('select current_user as r')).rows[0]!.r;
    await owner.end();
    await target.drop();
    const admin = openPool(bench.database.ownerUrl.replace(/\/[^/]*$/, '/postgres'), { max: 1, name: 'admin' });
    await admin.query(`drop role ${role}`);
    await admin.end();
  });

  it('wait for the owner to list their columns, and say so', async () => {
    await look(bench);
    assert.deepEqual(await guardsOf(owner, 'app.people'), []);
    const problems = await listProblems(bench.service.pool, 'bank');
    assert.deepEqual(
      problems.map(({ table, column: name }) => [table, name]),
      [
        ['hr:app.people', 'secret'],
        ['hr:app.lines', 'secret'],
        ['hr:app.lines', long],
      ],
    );
    for (const { problem } of problems)
      assert.match(problem, /not in fieldkeep\.guarded_columns: npm run target:setup/);
  });

  it('stand on partitions, long names and columns of other text types too', async () => {
    await owner.query(
      `insert into fieldkeep.guarded_columns values ('app', 'people', 'secret'), ('app', 'lines', 'secret'), ('app', 'lines', $1)`,
      [long],
    );
    await look(bench);
    assert.deepEqual(await listProblems(bench.service.pool, 'bank'), []);
    assert.deepEqual(await guardsOf(owner, 'app.people'), [['fe_guard_secret_2', true]]);
    for (const table of ['app.lines', 'app.lines_0', 'app.lines_1']) {
      const names = await guardsOf(owner, table);
      assert.equal(names.length, 2, table);
      assert.ok(
        names.every(([name, valid]) => valid && Buffer.byteLength(name) <= 63),
        JSON.stringify(names),
      );
    }
    const shapes = (await loadCatalog(bench.service.targets, policy.columns)).tables;
    const [found] = await listConstraints(bench.service.targets.findRows('hr')!, shapes.get('hr:app.lines')!, long);
    assert.deepEqual([found?.version, found?.validated, found?.plaintext], [2, true, false]);
    const envelope = 'fe1.bank.1.AAAA';
    for (const statement of [
      'insert into app.people (id, secret) values (9, $1)',
      'insert into app.lines (id, secret) values (9, $1)',
      'insert into app.lines_1 (id, secret) values (3, $1)',
      'update app.lines set secret = $1 where id = 2',
      `update app.lines set ${long} = $1 where id = 2`,
    ]) {
      await assert.rejects(owner.query(statement, [envelope]), { code: '23514' }, statement);
    }
    // Plaintext that nobody said to adopt is kept out as well.
    await assert.rejects(owner.query(`update app.lines set secret = 'plain' where id = 2`), { code: '23514' });
    await owner.query(`update app.people set secret = 'plain' where id = 2`);
    await owner.query('create table app.lines_2 (id bigint not null, secret text, n text)');
  });

  it('are raised there, too, and say why when the functions are not the owner’s or not there', async () => {
    await adopt(bench.service);
    await rotate(bench, 'bank');
    await look(bench);
    assert.deepEqual(await guardsOf(owner, 'app.people'), [['fe_guard_secret_3', true]]);
    assert.equal((await guardsOf(owner, 'app.lines_1')).length, 2);
    const admin = openPool(target.ownerUrl, { max: 1, name: 'admin' });
    try {
      const service = quoteIdentifier(roleOf(target.workerUrl));
      await admin.query(`create role other_${roleOf(target.workerUrl)} nologin`).catch(() => undefined);
      await admin.query(`alter function fieldkeep.fe_guard_add owner to other_${roleOf(target.workerUrl)}`);
      await admin.query(
        `grant usage on schema fieldkeep, app to other_${roleOf(target.workerUrl)};
         grant select on fieldkeep.guarded_columns to other_${roleOf(target.workerUrl)}`,
      );
      await rotate(bench, 'bank');
      await look(bench);
      const [first] = await listProblems(bench.service.pool, 'bank');
      assert.match(first!.problem, /may not change the table: its owner has to install it/);
      await admin.query(`revoke execute on function fieldkeep.fe_guard_add from ${service}`);
      await look(bench);
      assert.match((await listProblems(bench.service.pool, 'bank'))[0]!.problem, /may not use fieldkeep\.fe_guard_add/);
      await admin.query('drop function fieldkeep.fe_guard_add');
      await look(bench);
      assert.match((await listProblems(bench.service.pool, 'bank'))[0]!.problem, /lacks fieldkeep\.fe_guard_add/);
      assert.deepEqual(await guardsOf(owner, 'app.people'), [['fe_guard_secret_3', true]], 'what stood stands');
    } finally {
      await admin.query(`drop owned by other_${roleOf(target.workerUrl)}; drop role other_${roleOf(target.workerUrl)}`);
      await admin.end();
    }
  });
});
