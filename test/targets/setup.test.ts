/** `npm run target:setup` on a real database of a customer's, with roles of its own; what drifts there is named. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect, openPool, type Pool } from '../../src/db.ts';
import { parsePolicy, type Policy } from '../../src/policy/policy.ts';
import { nameFor } from '../../src/targets/adoption-triggers.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { openReaders } from '../../src/targets/targets.ts';
import { applyStep, findPartitions, lookAtTarget } from '../../src/targets/look.ts';
import { planTarget, type TargetPlanOptions } from '../../src/targets/plan.ts';
import { findUndeclared } from '../../src/retirement/undeclared.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { runSetup, type Ran } from './support.ts';
import { adopt, openBench, openFor, policyText, rotate, type Bench } from '../rotation/support.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const fixed = readFileSync(join(root, 'migrations/target.sql'), 'utf8');
const base = { database: 'hr', key: ['id'], tenant: { column: 'tenant' } };
const text = JSON.stringify({
  ...(JSON.parse(policyText) as object),
  columns: [
    {
      ...{ ...base, table: 'app.people', column: 'ssn', class: 'ssn', adopt: true },
      index: [{ name: 'eq', column: 'ssn_eq', unique: true }],
    },
    { ...base, table: 'app.people', column: 'Bank enc', class: 'bank', from: 'bank', adopt: true },
    { ...base, table: 'app.lines', column: 'secret', class: 'bank', adopt: true },
  ],
});

describe('target:setup', function () {
  this.timeout(60_000);
  const id = randomBytes(4).toString('hex');
  const [worker, reader, application] = [`work er_${id}`, `reader_${id}`, `app_${id}`];
  const policy: Policy = parsePolicy(text);
  let target: TestDatabase;
  let owner: Pool;
  let folder: string;

  function urlOf(role: string): string {
    const url = new URL(target.ownerUrl);
    url.username = encodeURIComponent(role);
    url.password = `secret ${id}`;
    return url.href;
  }

  async function setup(args: readonly string[], env: Record<string, string> = {}): Promise<Ran> {
    const ran = await runSetup(folder, args, env);
    for (const secret of [id + '@', `secret%20${id}`, `secret ${id}`]) {
      assert.ok(!(ran.out + ran.err).includes(secret));
    }
    return ran;
  }
  const roles = () => ({ TARGET_HR_URL: urlOf(worker), TARGET_HR_READER_URL: urlOf(reader) });
  const asOwner = () => ({ ...roles(), TARGET_HR_OWNER_URL: target.ownerUrl });

  /** What psql does with a text: one statement after the other, in one session. */
  async function feed(sql: string): Promise<void> {
    const client = await connect(target.ownerUrl, { name: 'psql' });
    try {
      let statement = '';
      for (const line of sql.split('\n')) {
        statement += `${line}\n`;
        if (!line.endsWith(';') || statement.split('$$').length % 2 === 0) continue;
        await client.query(statement);
        statement = '';
      }
    } finally {
      await client.end();
    }
  }

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-target-'));
    writeFileSync(join(folder, 'policy.json'), text);
    target = await createTarget(false);
    owner = openPool(target.ownerUrl, { max: 2, name: 'customer' });
    await owner.query(`create schema app; create role ${application};
      create table app.people (id bigint primary key, tenant text not null, name text, ssn text, bank bytea);
      create table app.lines (id bigint, tenant text, secret varchar(400), primary key (id)) partition by range (id);
      create table app.lines_1 partition of app.lines for values from (1) to (100) partition by range (id);
      create table app.lines_1_1 partition of app.lines_1 for values from (1) to (50);
      create table app.lines_2 partition of app.lines for values from (100) to (200);
      create table app.other (id int, note text);
      insert into app.people select n, 'acme', 'n', '536-22-' || (1000 + n) from generate_series(1, 40) n;
      insert into app.lines select n, 'acme', 'line ' || n from generate_series(1, 120, 7) n where n not between 50 and 99`);
  });
  after(async () => {
    for (const role of [worker, reader, application]) {
      await owner.query(`drop owned by "${role}"`).catch(() => undefined); // a failed test may have left it unmade
      await owner.query(`drop role if exists "${role}"`);
    }
    await owner.end();
    await target.drop();
    rmSync(folder, { recursive: true, force: true });
  });

  it('says on an empty database what is missing, and what it would need to know', async () => {
    const { code, out, err } = await setup(['hr', '--check'], asOwner());
    assert.equal(code, 1, err);
    assert.match(out, /! role work er_\w+ +not as it should be\n {4}the role does not exist/);
    assert.match(out, /! schema fieldkeep +not/);
    assert.match(out, /column ssn_eq is missing\n {4}column Bank enc is missing/);
    assert.match((await setup(['hr'])).err, /Set TARGET_HR_URL or say --worker ROLE/);
    assert.match((await setup(['pay'], asOwner())).err, /registers no column in pay; it does in hr/);
    assert.match((await setup(['hr', '--apply'], roles())).err, /Set TARGET_HR_OWNER_URL/);
    assert.match((await setup(['hr', '--check', '--apply'], asOwner())).err, /^Usage/);
    const gone = { ...asOwner(), TARGET_HR_OWNER_URL: 'postgresql://o:CANARY@127.0.0.1:1/x' };
    const refused = await setup(['hr', '--check'], gone);
    assert.equal(refused.err, 'The database of TARGET_HR_OWNER_URL cannot be reached.\n');
  });

  it('prints SQL that makes all of it, twice, and knows no password', async () => {
    const printed = await setup(['hr', '--application', application], asOwner());
    assert.equal(printed.code, 0, printed.err);
    assert.doesNotMatch(printed.out, /^(?!--).*password/im);
    assert.match(printed.out, /-- .* Its password is set by its owner, by hand/);
    await feed(printed.out);
    await feed(printed.out);
    const { code, out, err } = await setup(['hr', '--check', '--application', application], asOwner());
    assert.equal(code, 0, out + err);
    assert.ok(!/^[^=]/m.test(out.trim()), out);
    const applied = await setup(['hr', '--apply'], asOwner());
    assert.equal(applied.code, 0, applied.err);
    assert.ok(!/^[^=]/m.test(applied.out.trim()), 'nothing was left to make');
    await owner.query(
      `alter index app.${nameFor('fieldkeep_tokens', { name: 'people', column: 'ssn_eq' })} rename to people_own`,
    );
    const again = await setup(['hr'], asOwner());
    assert.match(again.out, /-- token index of app\.people\.ssn_eq\n-- is there\.\n/, 'no second one is made');
    assert.doesNotMatch(again.out, /create index (concurrently )?if not exists "/);
    await owner.query('drop index app.people_own');
    const remade = await setup(['hr', '--apply'], asOwner());
    assert.match(remade.out, /^\+ token index of app\.people\.ssn_eq +made$/m);
    const bare = await setup(['hr', '--worker', 'w']);
    assert.match(bare.out, /-- Nobody looked there/);
    assert.match(bare.out, /-- No role reads here to find undeclared columns: set TARGET_HR_READER_URL/);
  });

  it('is seen as right by the other roles, too', async () => {
    for (const role of [worker, reader]) {
      await owner.query(`alter role "${role}" password 'secret ${id}'`);
    }
    const asWorker = await setup(['hr', '--check'], roles());
    assert.equal(asWorker.code, 0, asWorker.out + asWorker.err);
    assert.match(asWorker.err, /was not compared: that needs TARGET_HR_OWNER_URL/);
    const asReader = await setup(['hr', '--check', '--worker', worker], { TARGET_HR_READER_URL: urlOf(reader) });
    assert.equal(asReader.code, 0, asReader.out + asReader.err);
  });

  describe('afterwards', () => {
    let bench: Bench;
    before(async () => {
      bench = await openBench({ policy, targets: new Map([['hr', urlOf(worker)]]) });
    });
    after(() => bench.close());

    it('the worker adopts and rotates there, and the reader finds what is elsewhere', async () => {
      assert.deepEqual([...bench.service.catalog.problems.values()], []);
      for (const table of bench.service.catalog.tables.values()) {
        for (const { column } of table.columns) assert.ok(table.indexed.has(column), column);
      }
      assert.equal((await adopt(bench.service)).phase, 'done');
      assert.equal((await rotate(bench, 'ssn')).phase, 'done');
      const { rows } = await owner.query<{ id: string; ssn: string; ssn_eq: string }>(
        'select id, ssn, ssn_eq from app.people',
      );
      for (const { id: row, ssn, ssn_eq } of rows) {
        assert.match(ssn, /^fe1\.ssn\.2\./);
        assert.match(ssn_eq, /^b2\./);
        assert.equal(await openFor(bench.service, 'ssn', row, ssn, 'hr:app.people'), `536-22-${1000 + Number(row)}`);
      }
      await owner.query('insert into app.other values (1, $1)', [rows[0]!.ssn]);
      const readers = openReaders(new Map([['hr', urlOf(reader)]]));
      const { found } = await findUndeclared({ readers, policy }, 'ssn', 2);
      assert.deepEqual(found, [{ database: 'hr', table: 'app.other', column: 'note' }]);
      await readers.close();
    });

    it('a worker that may not use the schema is told the command that mends it', async () => {
      await owner.query(`revoke usage on schema fieldkeep from "${worker}"`);
      const { problems } = await loadCatalog(bench.service.targets, policy.columns);
      await owner.query(`grant usage on schema fieldkeep to "${worker}"`);
      const told = /lacks the function .*, or the role .* may not use it: its owner runs npm run target:setup -- hr\.$/;
      assert.match(problems.get('hr:app.people')!, told);
    });
  });

  describe('names', () => {
    const options: TargetPlanOptions = {
      ...{ columns: policy.columns, fixed, worker, reader, application },
      guarded: /^create table (if not exists )?fieldkeep\.guarded_columns\b/m.test(fixed),
    };

    /** All that is not as it should be, a line each; brought about as far as that goes when `mend`. */
    async function look(mend = false): Promise<string> {
      const db = await connect(target.ownerUrl, { name: 'test', statementTimeoutMs: 60_000 });
      try {
        const steps = planTarget({ ...options, partitions: await findPartitions(db, policy.columns) });
        const state = await lookAtTarget(db, options, true);
        if (mend)
          for (const step of steps) {
            if (step.statements.length > 0 && step.differences(state).length > 0) await applyStep(db, step);
          }
        const now = mend ? await lookAtTarget(db, options, true) : state;
        return steps.flatMap((step) => step.differences(now).map((each) => `${step.what}: ${each}`)).join('\n');
      } finally {
        await db.end();
      }
    }

    const w = `"${worker}"`;
    const atTable = 'app.people';
    const versions = nameFor('fieldkeep_version', { name: 'people', column: 'ssn' });
    const tokens = nameFor('fieldkeep_tokens', { name: 'people', column: 'ssn_eq' });
    const todo = nameFor('fieldkeep_todo', { name: 'people', column: 'Bank enc' });
    const [whole, part] = ['lines', 'lines_2'].map((name) => nameFor('fieldkeep_version', { name, column: 'secret' }));
    /** What was done, what is told, and how it is undone where the plan does not mend it. */
    const drifts: [what: string, sql: string, told: string, undo?: string][] = [
      [
        'a function that is another one',
        `create or replace function fieldkeep.fe_version(v text) returns int language sql immutable return 7`,
        'schema fieldkeep: function fieldkeep.fe_version(v text) is not as migrations/target.sql makes it',
      ],
      [
        'a function that is gone',
        'drop function fieldkeep.fe_claim(text[])',
        'schema fieldkeep: function fieldkeep.fe_claim(tokens text[]) is missing',
      ],
      [
        'a function of another shape',
        `drop function fieldkeep.fe_claim(text[]);
         create function fieldkeep.fe_claim(tokens text[]) returns int language sql return 1`,
        'schema fieldkeep: function fieldkeep.fe_claim(tokens text[]) is not as migrations/target.sql makes it',
        'drop function fieldkeep.fe_claim(text[])',
      ],
      [
        'a list that the worker may write itself',
        `grant insert on fieldkeep.guarded_columns to ${w}`,
        'schema fieldkeep: table fieldkeep.guarded_columns is not as migrations/target.sql makes it',
      ],
      [
        'a list that others may write',
        `grant insert on fieldkeep.guarded_columns to ${application}; grant delete on fieldkeep.wrapped_keys to public;
         grant execute on function fieldkeep.fe_guard_add(text, text, text, int, boolean) to ${application}`,
        [
          'schema fieldkeep: PUBLIC may DELETE wrapped_keys',
          `schema fieldkeep: ${application} may EXECUTE fe_guard_add`,
          `schema fieldkeep: ${application} may INSERT guarded_columns`,
        ].join('\n'),
        `revoke insert on fieldkeep.guarded_columns from ${application}; revoke delete on fieldkeep.wrapped_keys from public;
         revoke execute on function fieldkeep.fe_guard_add(text, text, text, int, boolean) from ${application}`,
      ],
      [
        'guards with the rights of somebody who owns no table',
        `alter function fieldkeep.fe_guard_add(text, text, text, int, boolean) owner to ${application}`,
        `and cannot be guarded by ${application}: grant `,
        'alter function fieldkeep.fe_guard_add(text, text, text, int, boolean) owner to current_user',
      ],
      [
        'a list of another shape',
        'alter table fieldkeep.wrapped_keys drop column bind',
        'table fieldkeep.wrapped_keys is not as',
        'drop table fieldkeep.wrapped_keys',
      ],
      [
        'a function beside ours',
        'create function fieldkeep.fe_version(v varchar) returns int language sql immutable return 1',
        'function fieldkeep.fe_version(v character varying) stands beside that of migrations/target.sql: drop it',
        'drop function fieldkeep.fe_version(varchar)',
      ],
      ['an index that is gone', `drop index app.${versions}`, `version index of ${atTable}.ssn: it is missing`],
      [
        'an index that is invalid',
        `update pg_index set indisvalid = false where indexrelid = 'app.${tokens}'::regclass`,
        `token index of ${atTable}.ssn_eq: index ${tokens} is invalid`,
      ],
      [
        'an index of a partition that is invalid',
        `update pg_index set indisvalid = false where indexrelid = 'app.${part}'::regclass;
         update pg_index set indisvalid = false where indexrelid = 'app.${whole}'::regclass`,
        `version index of app.lines.secret: index ${part} is invalid`,
        `drop index app.${whole}`,
      ],
      [
        'an index that is another one',
        `drop index app."${todo}"; create index "${todo}" on app.people (name)`,
        `adoption index of ${atTable}.Bank enc: index ${todo} is another one`,
        `drop index app."${todo}"`,
      ],
      ['a right that is missing', `revoke select (tenant) on ${atTable} from ${w}`, 'it lacks SELECT on tenant'],
      [
        'a right to write that is missing',
        `revoke update (ssn_eq) on ${atTable} from ${w}`,
        'it lacks UPDATE on ssn_eq',
      ],
      ['the whole table', `grant select on ${atTable} to ${w}`, 'it may SELECT the whole table'],
      ['inserting', `grant insert on ${atTable} to ${w}`, 'it may INSERT the whole table'],
      ['deleting', `grant delete on ${atTable} to ${w}`, 'it may DELETE the whole table'],
      ['another column', `grant select (name) on ${atTable} to ${w}`, 'it may SELECT column name'],
      ['a key that may be written', `grant update (id) on ${atTable} to ${w}`, 'it may UPDATE column id'],
      [
        'a right by way of PUBLIC',
        `grant delete on ${atTable} to public`,
        'it may DELETE the whole table',
        `revoke delete on ${atTable} from public`,
      ],
      [
        'rights on other tables',
        `grant select on app.other to ${w}`,
        'elsewhere: it may SELECT app.other',
        `revoke all on app.other from ${w}`,
      ],
      ['a schema out of reach', `revoke usage on schema app from ${w}`, 'it lacks USAGE on the schema'],
      [
        'a worker that makes objects',
        `grant create on schema app to ${w}`,
        'it may create objects in schema app',
        `revoke create on schema app from ${w}`,
      ],
      [
        'a worker that may become more than it is',
        `alter role ${w} createrole replication; grant pg_execute_server_program to ${w}`,
        ['it may create roles', 'it may replicate', 'it may act as pg_execute_server_program']
          .map((told) => `role ${worker}: ${told}`)
          .join('\n'),
        `alter role ${w} nocreaterole noreplication; revoke pg_execute_server_program from ${w}`,
      ],
      ['a worker that cannot log in', `alter role ${w} nologin`, 'it lacks LOGIN', `alter role ${w} login`],
      [
        'a database that not everybody may connect to',
        `do $$ begin execute format('revoke connect on database %I from public', current_database()); end $$`,
        `role ${worker}: it lacks CONNECT on the database`,
      ],
      ['a superuser', `alter role ${w} superuser`, 'it is a superuser', `alter role ${w} nosuperuser`],
      [
        'the owner of the table',
        `alter table ${atTable} owner to ${w}`,
        'it has the rights of the owner of the table',
        `alter table ${atTable} owner to current_user`,
      ],
      [
        'row level security',
        `alter table ${atTable} enable row level security; create policy p on ${atTable} using (true)`,
        `table ${atTable}: row level security would hide rows from ${worker}`,
        `alter table ${atTable} disable row level security; drop policy p on ${atTable}`,
      ],
      [
        'a unique index on tokens',
        `create unique index u on ${atTable} (ssn_eq)`,
        'Table hr:app.people has the unique index u on ssn_eq',
        'drop index app.u',
      ],
      [
        'a key that is not unique',
        `alter table ${atTable} drop constraint people_pkey`,
        'no unique index covers exactly the key (id), all NOT NULL',
        `alter table ${atTable} add primary key (id)`,
      ],
      [
        'a column of another type',
        `alter table ${atTable} alter ssn_eq type char(90)`,
        'column ssn_eq is of type character instead of text',
        `alter table ${atTable} alter ssn_eq type text`,
      ],
      ['a column that is gone', `alter table ${atTable} drop ssn_eq`, `table ${atTable}: column ssn_eq is missing`],
      [
        'a reader that may write',
        `grant insert on app.other to ${reader}; alter role ${reader} reset default_transaction_read_only`,
        `its sessions may write: default_transaction_read_only\nrights of ${reader}: it may write app.other`,
        `revoke insert on app.other from ${reader}`,
      ],
      ['a table that the reader cannot read', `revoke select on app.other from ${reader}`, 'it may not read app.other'],
      [
        'a schema of other people’s',
        `create schema later; create table later.t (a text)`,
        `rights of ${reader}: it may not read later.t`,
      ],
      [
        'an application without the schema',
        `revoke usage on schema fieldkeep from ${application}`,
        `rights of ${application}: it lacks USAGE on the schema fieldkeep`,
      ],
    ];
    it('nothing that is as it should be', async () => {
      assert.equal(await look(), '');
    });

    for (const [what, sql, told, undo] of drifts) {
      it(what, async () => {
        await owner.query(sql); // to what the one before left as it should be
        const before = await look();
        assert.ok(before.includes(told), before);
        if (undo !== undefined) await owner.query(undo);
        assert.equal(await look(true), '');
      });
    }

    it('what a column that the service may guard lacks, once there is a list of those', async () => {
      const made = !options.guarded;
      if (made) {
        await owner.query(`create table fieldkeep.guarded_columns (schema_name text, table_name text, column_name text,
          primary key (schema_name, table_name, column_name))`);
      }
      const db = await connect(target.ownerUrl, { name: 'test' });
      try {
        await db.query('delete from fieldkeep.guarded_columns');
        const step = planTarget({ ...options, guarded: true }).find((each) => each.what.includes('guarded'))!;
        const differences = async () => step.differences(await lookAtTarget(db, options, true));
        assert.deepEqual(
          await differences(),
          ['people.ssn', 'people.Bank enc', 'lines.secret'].map((name) => `app.${name} is not listed`),
        );
        await applyStep(db, step);
        await applyStep(db, step);
        assert.deepEqual(await differences(), []);
      } finally {
        await db.end();
        if (made) await owner.query('drop table fieldkeep.guarded_columns');
      }
    });

    it('with the command: exits 1, mends it with --apply, and says what it cannot mend', async () => {
      await owner.query(`grant delete on app.people to "${worker}"; grant delete on app.other to "${worker}"`);
      const { code, out, err } = await setup(['hr', '--check'], asOwner());
      assert.equal(code, 1);
      assert.match(
        out,
        /! rights of work er_\w+ on app\.people +not as it should be\n {4}it may DELETE the whole table/,
      );
      assert.match(err, /^2 of \d+ are not as they should be/);
      const applied = await setup(['hr', '--apply'], asOwner());
      assert.equal(applied.code, 1);
      assert.match(applied.out, /\+ rights of work er_\w+ on app\.people +made/);
      assert.match(applied.out, /! rights of work er_\w+ elsewhere +not as it should be\n {4}it may DELETE app\.other/);
      await owner.query(`revoke delete on app.other from "${worker}"; alter table app.people rename to persons`);
      const broken = await setup(['hr', '--apply'], asOwner());
      assert.equal(broken.code, 1);
      assert.match(
        broken.err,
        /^table app\.people: the database says 42P01, relation "app\.people" does not exist\.$/m,
      );
      await owner.query('alter table app.persons rename to people');
    });
  });
});
