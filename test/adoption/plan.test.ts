/** Plans made of live tables: each thing that would break is found, and nothing is said of a table in which nothing would. */
import assert from 'node:assert/strict';
import { openPool, roleOf, type Pool } from '../../src/db.ts';
import type { RegisteredColumn } from '../../src/policy/policy.ts';
import { findStatementsView, listStatements } from '../../src/adoption/dependents-store.ts';
import type { Finding } from '../../src/adoption/finding.ts';
import { inspectColumn, type InspectOptions } from '../../src/adoption/inspect.ts';
import { planAdoption } from '../../src/adoption/plan.ts';
import { envelopeCharsMax } from '../../src/adoption/shape.ts';
import { formatTriggers, toTriggers } from '../../src/targets/adoption-triggers.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { changePolicy } from '../rotation/support.ts';

const canary = 'CANARY-51';

/** A column of app.t as a policy registers it. */
function register(more: object = {}, family = 'ssn'): RegisteredColumn {
  const entry = {
    ...{ table: 'app.t', key: ['id'], tenant: { column: 'tenant' }, column: 'pay_enc', class: family, from: 'pay' },
    ...{ adopt: true, ...more },
  };
  return changePolicy({ columns: [entry] }).columns[0]!;
}
const classOf = (name: string) => changePolicy({}).classes.get(name)!;

describe('adoption/plan', () => {
  let target: TestDatabase;
  let pool: Pool;
  before(async () => {
    target = await createTarget();
    pool = openPool(target.ownerUrl, { max: 1, name: 'plan' });
    await pool.query('create schema app; create extension citext schema public; create extension btree_gist');
  });
  after(async () => {
    await pool.end();
    await target.drop();
  });
  beforeEach(async () => {
    await pool.query('drop schema app cascade; create schema app');
  });

  /** A table in which nothing is wrong, unless `change` says otherwise. */
  async function make(change: { pay?: string; enc?: string; more?: string; tenant?: string; key?: string } = {}) {
    const { pay = 'text', enc = 'pay_enc text,', more = '', tenant = 'text not null' } = change;
    await pool.query(
      `create table app.t (id ${change.key ?? 'int primary key'}, tenant ${tenant}, pay ${pay}, ${enc} name text ${more})`,
    );
  }
  async function plan(column = register(), options: InspectOptions = {}): Promise<Finding[]> {
    const fieldClass = classOf(column.class);
    const findings = planAdoption(column, fieldClass, await inspectColumn(pool, column, { fieldClass, ...options }));
    assert.doesNotMatch(JSON.stringify(findings), /CANARY/);
    return findings;
  }
  /** What is found, where `how` is not what the test is about. */
  const told = (findings: readonly Finding[]) => findings.map(({ level, what }) => `${level}: ${what}`);
  function assertFound(findings: readonly Finding[], ...patterns: RegExp[]): void {
    const lines = told(findings);
    for (const pattern of patterns)
      assert.ok(
        lines.some((line) => pattern.test(line)),
        `${String(pattern)} in\n${lines.join('\n')}`,
      );
  }
  const stops = (findings: readonly Finding[]) => told(findings).filter((line) => line.startsWith('stop'));

  it('says nothing of what would not break', async () => {
    await make({ more: `, check (name <> '')` });
    await pool.query('create index on app.t (name)');
    await pool.query('create index on app.t (fieldkeep.fe_version(pay_enc), id)');
    for (const sql of formatTriggers(toTriggers(register(), 'pay'))) {
      await pool.query(sql);
    }
    await pool.query(`insert into app.t select i, 'acme', '${canary}' from generate_series(1, 1000) i`);
    const findings = await plan(register(), { exact: true });
    assert.deepEqual(told(findings), [
      'note: Statements are not recorded, or not for this role',
      findings.map(({ what }) => `note: ${what}`).at(-1)!,
    ]);
    assert.match(findings.at(-1)!.what, /^1,000 values in 1,000 rows, 1 MiB$/);
  });

  it('stops where there is no table, no source, no key, no tenant, and no function of ours', async () => {
    assertFound(await plan(), /^stop: There is no table app\.t/);
    await make();
    assertFound(await plan(register({ from: 'absent' })), /^stop: The column absent does not exist/);
    assertFound(await plan(register({ key: ['absent'] })), /^stop: The key absent does not exist/);
    assertFound(await plan(register({ key: ['name'] })), /^stop: The key \(name\) is not unique, or may be null/);
    assertFound(await plan(register({ tenant: { column: 'absent' } })), /^stop: The column absent of the tenant/);
    assert.deepEqual(stops(await plan(register({ tenant: { value: 'acme' } }))), []);
    await pool.query('alter table app.t alter id type numeric; create view app.v as select * from app.t');
    assertFound(await plan(), /^stop: Key id is of type numeric/);
    assertFound(await plan(register({ table: 'app.v' })), /^stop: app\.v is a view/);
    const bare = await createTarget();
    const db = openPool(bare.ownerUrl, { max: 1, name: 'bare' });
    try {
      await db.query(
        'drop schema fieldkeep cascade; create schema app; create table app.t (id int primary key, pay text)',
      );
      const seen = await inspectColumn(db, register({ tenant: { value: 'a' } }));
      assertFound(
        planAdoption(register({ tenant: { value: 'a' } }), classOf('ssn'), seen),
        /^stop: The database lacks fieldkeep/,
      );
    } finally {
      await db.end();
      await bare.drop();
    }
  });

  describe('room for envelopes', () => {
    const charsMax = envelopeCharsMax(classOf('ssn'), 16_384);

    it('knows the longest one', () => {
      // fe1.ssn.999999999. and 64 + 16 bytes in base64url
      assert.equal(envelopeCharsMax(classOf('ssn'), 11), 18 + 107);
      assert.equal(envelopeCharsMax(classOf('ssn'), 16), 18 + 128);
    });

    const cases: [string, Parameters<typeof make>[0], RegExp][] = [
      ['no column', { enc: '' }, /^change: Column pay_enc does not exist/],
      ['another type', { enc: 'pay_enc bytea,' }, /^stop: Column pay_enc is of type bytea/],
      ['padded text', { enc: 'pay_enc char(200),' }, /^stop: Column pay_enc is of type character\(200\)/],
      ['too short', { enc: 'pay_enc varchar(200),' }, new RegExp(`^stop: Column pay_enc holds at most 200 characters`)],
      ['NOT NULL', { enc: `pay_enc text not null,` }, /^stop: Column pay_enc is NOT NULL/],
      ['a default', { enc: `pay_enc text default '',` }, /^stop: Column pay_enc has a default/],
      ['generated', { enc: `pay_enc text generated always as ('x') stored,` }, /^stop: Column pay_enc is generated/],
    ];
    for (const [what, change, pattern] of cases) {
      it(`misses it: ${what}`, async () => {
        await make(change);
        assertFound(await plan(), pattern);
      });
    }

    it('is enough where the source is short', async () => {
      await make({ pay: 'varchar(3)', enc: 'pay_enc varchar(125),' });
      assert.deepEqual(
        stops(await plan(register({ sealed: undefined }))),
        ['stop: Column pay_enc holds at most 125 characters'].slice(1),
      );
      await pool.query('alter table app.t alter pay type varchar(4)');
      assert.equal(stops(await plan()).length, 1);
      assert.ok(charsMax > 21_800);
    });

    it('counts for tokens, too, which are never unique by themselves', async () => {
      await make({ more: ', eq varchar(10), other text unique' });
      const index = [
        { name: 'eq', column: 'eq', bits: 60 },
        { name: 'other', column: 'other', bits: 60 },
        { name: 'absent', column: 'absent', bits: 60 },
      ];
      assertFound(
        await plan(register({ index })),
        ...[/^stop: Column eq holds at most 10/, /^stop: t_other_key makes the tokens in other unique/],
        /^change: Column absent does not exist/,
      );
    });
  });

  describe('the source', () => {
    const cases: [string, Parameters<typeof make>[0], RegExp, object?][] = [
      ['NOT NULL', { pay: 'text not null' }, /^change: Source pay is NOT NULL/],
      ['a default', { pay: `text default '${canary}'` }, /^change: Source pay has a default/],
      ['generated', { pay: `text generated always as (name) stored` }, /^stop: Source pay is a generated column/],
      ['identity', { pay: 'int generated by default as identity' }, /^stop: Source pay is an identity column/],
      ['numeric', { pay: 'numeric(12,2)' }, /^note: Source pay is of type numeric\(12,2\)/],
      ['char(n)', { pay: 'char(11)' }, /^note: Source pay is of type character\(11\)/],
      ['money', { pay: 'money' }, /^change: Source pay is of type money/],
      ['float', { pay: 'float8' }, /^note: Source pay is of type double precision/],
      ['timestamps', { pay: 'timestamptz' }, /^note: Source pay is of type timestamp with time zone/],
      ['bytea', { pay: 'bytea' }, /^note: Source pay is of type bytea/],
      ['jsonb', { pay: 'jsonb' }, /^note: Source pay is of type jsonb/],
      ['citext', { pay: 'public.citext' }, /^note: Source pay is of type public\.citext/],
      [
        'transit in bytea',
        { pay: 'bytea' },
        /^stop: Source pay is of type bytea/,
        { sealed: { by: 'transit', key: 'k' } },
      ],
      ['pgcrypto in numeric', { pay: 'numeric' }, /^stop: Source pay/, { sealed: { by: 'pgcrypto', key: 'k' } }],
    ];
    for (const [what, change, pattern, more] of cases) {
      it(`is told: ${what}`, async () => {
        await make(change);
        assertFound(await plan(register(more)), pattern);
      });
    }

    it('looks through domains, and takes no composite type', async () => {
      await pool.query(
        `create domain app.d1 as varchar(5) not null; create domain app.d2 as app.d1; create type app.c as (a int)`,
      );
      await make({ pay: 'app.d2', enc: 'pay_enc varchar(200),' });
      const findings = await plan();
      assertFound(findings, /^change: Source pay is NOT NULL, perhaps by its domain/);
      assert.deepEqual(stops(findings), []);
      await pool.query('alter table app.t drop pay, add pay app.c');
      assertFound(await plan(), /^stop: Source pay is of type app\.c/);
    });

    it('shows no buckets of what is no number', async () => {
      await make({ pay: 'float8' });
      assertFound(await plan(register({}, 'salary')), /^change: .*class salary shows buckets/);
    });

    it('counts what is too long or belongs to nobody, where it may read the table', async () => {
      await make({ tenant: 'text' });
      await pool.query(
        `insert into app.t values (1, 'a', repeat('ü', 8193)), (2, 'a', 'x'), (3, null, 'x'), (4, '', 'x'), (5, null, null)`,
      );
      assertFound(await plan(), /^note: The column tenant of the tenant may be null/, /^note: Nothing says how long/);
      const exact = await plan(register(), { exact: true });
      assertFound(
        exact,
        /^stop: 1 value of pay is too long \(the longest: 16386 bytes\)/,
        /^stop: 2 rows with a value name no/,
      );
      await pool.query('analyze app.t');
      assertFound(await plan(), /^stop: About 40\.0% of the rows name no tenant/);
    });
  });

  it('finds constraints, in both directions', async () => {
    await make({
      pay: 'int',
      more: `, check (pay > 0), unique (pay), constraint near exclude using gist (pay with =)`,
    });
    await pool.query(
      `create table app.other (id int primary key, pay int references app.t (pay));
       alter table app.t add constraint out foreign key (pay) references app.other (id)`,
    );
    const findings = await plan();
    assertFound(
      findings,
      ...[/^change: CHECK t_pay_check is about pay/, /^change: UNIQUE t_pay_key/, /^change: Exclusion constraint near/],
      ...[/^change: Foreign key out checks pay/, /^stop: Foreign key other_pay_fkey of app\.other refers to pay/],
    );
    assert.equal(stops(findings).length, 1);
    await pool.query(
      'drop table app.other cascade; alter table app.t drop constraint t_pay_key, add unique nulls not distinct (pay)',
    );
    assertFound(await plan(), /^stop: UNIQUE t_pay_key calls two nulls equal/);
  });

  it('finds indexes of every kind', async () => {
    await make();
    await pool.query(
      `create index plain on app.t (pay); create index late on app.t (name) where pay > 'x';
       create index made on app.t (lower(pay)); create unique index one on app.t (pay text_pattern_ops) nulls not distinct;
       create index fieldkeep_todo_x on app.t (id) where pay is not null;
       create statistics app.ext on pay, name from app.t`,
    );
    const findings = await plan();
    assertFound(
      findings,
      ...[/^change: Index plain \(btree\) is on pay/, /^change: Index late \(btree\) has pay in its predicate/],
      ...[/^change: Index made \(btree\) computes with pay/, /^stop: Unique index one calls two nulls equal/],
      /^change: Extended statistics ext/,
    );
    assert.doesNotMatch(told(findings).join(), /fieldkeep_todo/);
  });

  it('finds views, rules, policies, generated columns and functions', async () => {
    await make({
      more: ', made text generated always as (upper(pay)) stored, fixed int generated always as (length(pay)) stored not null',
    });
    await pool.query(
      `create view app.v as select id from app.t where pay > 'x'; create view app.blind as select id, name from app.t;
       create materialized view app.m as select pay from app.t; create view app.over as select * from app.m;
       create rule r as on update to app.t where new.pay = 'x' do also select 1;
       create policy pol on app.t using (pay <> '${canary}');
       create function app.body() returns bigint language sql begin atomic; select count(pay) from app.t; end;
       create function app.f() returns int language plpgsql as 'begin perform pay from app.t; return 1; end';
       create function app.g() returns int language plpgsql as 'begin perform payment from app.t; return 1; end';
       create function app.h() returns trigger language plpgsql as 'begin perform pay from app.t; return new; end';
       create table app.other (id int); create trigger h after insert on app.other for each row execute function app.h()`,
    );
    const findings = await plan();
    assertFound(
      findings,
      ...[/^change: View app\.v reads pay$/, /^change: Materialized view app\.m reads pay$/],
      ...[/^change: View app\.over reads pay through another view/, /^change: Rule r reads pay/],
      ...[/^change: Row level security policy pol reads pay/, /^change: Column made is generated from pay/],
      ...[/^stop: Column fixed is generated from pay/, /^change: Function app\.body\(\) reads pay/],
      ...[
        /^change: Function app\.f\(\) names the table and pay/,
        /^change: Function app\.h\(\) names the table and pay/,
      ],
    );
    assert.doesNotMatch(told(findings).join(), /app\.blind|app\.g\(/);
  });

  it('finds triggers, and those that would fire after ours', async () => {
    await make();
    await pool.query(
      `create function app.f() returns trigger language plpgsql as 'begin new.pay := 1; return new; end';
       create function app.g() returns trigger language plpgsql as 'begin -- of new or old
                 perform new.name; return new; end';
       create trigger early before insert on app.t for each row execute function app.f();
       create trigger "zzz_late" before update on app.t for each row execute function app.f();
       create trigger "zzzz" before update on app.t for each row execute function app.g();
       create trigger ours after update on app.t for each row when (old.pay is null) execute function app.g();
       create function app.audit() returns trigger language plpgsql as 'begin perform to_jsonb(old); return new; end';
       create trigger audit after update on app.t for each row execute function app.audit();
       create trigger batch after update on app.t referencing new table as fresh for each statement execute function app.g();
       create trigger off before update on app.t for each row execute function app.f(); alter table app.t disable trigger off`,
    );
    const findings = await plan();
    assertFound(
      findings,
      ...[
        /^change: Trigger early \(before each row, app\.f\) mentions pay/,
        /^stop: Trigger zzz_late .*fires after ours/,
      ],
      ...[/^note: Trigger zzzz .*fires after ours/, /^change: Trigger ours \(after each row, app\.g\) mentions pay/],
      ...[/^change: Trigger audit .* takes rows as a whole/, /^change: Trigger batch .* takes rows as a whole/],
    );
    assert.doesNotMatch(told(findings).join(), /Trigger off/);
  });

  it('stops where the worker would see a part of the rows', async () => {
    await make();
    await pool.query('alter table app.t enable row level security');
    const worker = roleOf(target.workerUrl);
    assertFound(await plan(register(), { workerRole: worker }), /^stop: Row level security would hide rows/);
    assertFound(await plan(), /^note: The table has row level security/);
    const own = roleOf(target.ownerUrl);
    assert.deepEqual(stops(await plan(register(), { workerRole: own })), []);
  });

  it('finds heirs and partitions by the column', async () => {
    await make();
    await pool.query('create table app.heir () inherits (app.t)');
    assertFound(await plan(), /^stop: Other tables inherit from it: app\.heir/);
    await pool.query(
      'drop table app.t cascade; create table app.t (id int, tenant text, pay int, pay_enc text) partition by list (pay)',
    );
    assertFound(await plan(), /^stop: The table is partitioned by pay/);
    await pool.query(
      'drop table app.t cascade; create table app.t (id int, tenant text, pay int, pay_enc text) partition by hash (abs(pay))',
    );
    assertFound(await plan(), /^stop: The table is partitioned by pay/);
    await pool.query(
      'drop table app.t cascade; create table app.t (id int primary key, tenant text, pay int, pay_enc text) partition by hash (id);' +
        'create table app.t1 partition of app.t for values with (modulus 1, remainder 0); create index low on app.t1 (pay)',
    );
    const findings = await plan();
    assert.deepEqual(stops(findings), []);
    assertFound(findings, /^change: Index low/);
    assert.doesNotMatch(told(findings).join(), /NOT NULL/);
    await pool.query('alter table app.t1 alter pay set not null');
    assertFound(await plan(), /^change: Source pay is NOT NULL, itself or in a partition/);
  });

  it('finds where plaintext goes: publications, grants, statistics', async () => {
    await make({ key: 'int not null unique' });
    await pool.query(
      `create publication every for all tables; create publication listed for table app.t (id, pay);
       create publication part for table app.t where (pay > '${canary}'); create publication apart for tables in schema app;
       grant select (pay), update (pay) on app.t to ${roleOf(target.workerUrl)}; grant select (pay) on app.t to public;
       insert into app.t select i, 'a', '${canary}' || i % 5 from generate_series(1, 500) i; analyze app.t`,
    );
    const findings = await plan();
    await pool.query('drop publication every, listed, part, apart');
    assertFound(
      findings,
      ...[/^stop: Publication every publishes updates, and the table has no replica identity/],
      ...[/^change: Publication every publishes all columns/, /^change: Publication apart publishes all columns/],
      ...[/^change: Publication listed publishes pay/, /^change: The columns of publication listed are listed/],
      ...[/^stop: The row filter of publication part is about pay/, /^note: Statistics \(pg_stats\) hold/],
      new RegExp(`^note: Granted on pay itself: (?=.*public).*${roleOf(target.workerUrl)}`),
      /^note: About 500 values in 500 rows/,
    );
    await pool.query('alter table app.t replica identity full; revoke select (pay) on app.t from public');
    const known = told(await plan(register(), { workerRole: roleOf(target.workerUrl) })).join();
    assert.ok(known.includes('note: Its replica identity is FULL') && !known.includes('Granted on pay'));
  });

  it('finds statements by what they do with the column, and shows none', async () => {
    await pool.query(
      `create table app.seen (dbid oid, queryid bigint, calls bigint, query text);
       insert into app.seen select d.oid, v.* from pg_database d, (values
         (1, 5, 'SELECT * FROM app.t WHERE pay > $1'), (2, 9, 'select id from t order by id, "pay" desc'),
         (3, 1, 'select pay from app.t'), (4, 1, 'update app.t set pay = $1 where id = $2'),
         (5, 1, 'select max(id) from app.t group by lower(pay)'), (6, 1, 'select id from app.t where payment = $1'),
         (7, 1, 'alter table app.t add check (pay > ''${canary}'')'), (8, 1, 'select 1 from app.other where pay = 1')) v
       where d.datname = current_database()`,
    );
    const found = await listStatements(pool, 'app.seen', 't', 'pay', 10);
    assert.deepEqual(found, [
      { id: '2', calls: 9, filters: false, orders: true, groups: false },
      { id: '1', calls: 5, filters: true, orders: false, groups: false },
      { id: '5', calls: 1, filters: false, orders: false, groups: true },
    ]);
    const column = register();
    await make();
    const seen = (await inspectColumn(pool, column))!;
    const findings = planAdoption(column, classOf('ssn'), {
      ...seen,
      dependents: { ...seen.dependents, statements: found },
    });
    assertFound(findings, /^change: Statement 2 of pg_stat_statements \(9 calls\) orders, and has pay in it/);
    assert.equal(await findStatementsView(pool), undefined);
    await pool.query('create extension pg_stat_statements schema public');
    assert.equal(await findStatementsView(pool), 'public.pg_stat_statements');
    assertFound(await plan(), /^note: Statements are not recorded/);
    await pool.query('drop extension pg_stat_statements');
  });

  it('asks more of a column that is adopted in place', async () => {
    await make({ pay: 'varchar(11)', enc: '', more: ', check (length(pay) = 11)' });
    await pool.query(
      'create table app.other (code text primary key); alter table app.t add foreign key (pay) references app.other',
    );
    await pool.query('create index on app.t (fieldkeep.fe_version(pay), id)');
    const inPlace = register({ column: 'pay', from: undefined });
    const findings = await plan(inPlace);
    assertFound(
      findings,
      ...[/^change: pay is adopted in place/, /^stop: Column pay holds at most 11 characters/],
      ...[/^stop: CHECK t_pay_check is about pay/, /^stop: Foreign key t_pay_fkey checks pay/],
    );
    assert.doesNotMatch(told(findings).join('\n'), /Triggers are missing|Index/);
  });

  it('names triggers that are not there, and a column that the policy does not adopt', async () => {
    await make();
    const findings = await plan();
    assertFound(findings, /^change: Triggers are missing, off, or other than printed: zzz_fieldkeep_pay_enc_1/);
    assert.ok(findings.some(({ how }) => how === 'npm run adopt -- sql app.t.pay_enc'));
    const column = { ...register(), adopt: false };
    assertFound(await plan(column), /^stop: The policy does not adopt the column/);
  });

  it('takes odd names', async () => {
    const [name, pay] = [`T"a.b\\x`, `Pa'y (%_$`];
    await pool.query(
      `create table app."T""a.b\\x" (id int primary key, tenant text not null, "Pa'y (%_$" text, enc text)`,
    );
    await pool.query(`create index odd on app."T""a.b\\x" (lower("Pa'y (%_$"))`);
    const column = { ...register({ column: 'enc' }), name, from: pay, table: `app.${name}` };
    assertFound(await plan(column, { exact: true }), /^change: Index odd \(btree\) computes with Pa'y/);
  });
});
