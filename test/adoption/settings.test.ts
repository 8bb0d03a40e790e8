/**
 * Whatever the owner of a database has set for it or for our role there, a column is adopted, rotated, finished and given
 * back as it was; or our sessions are refused in words, and nothing is written.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { findRefusal, openPool, quoteLiteral, roleOf, transaction, withClient, type Pool } from '../../src/db.ts';
import { setStarted, setUndone } from '../../src/rotation/adoption-store.ts';
import { viewRun } from '../../src/rotation/progress.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { findRun, insertRun, type Run } from '../../src/rotation/store.ts';
import type { ColumnKind } from '../../src/rotation/work.ts';
import { settingsToSend } from '../../src/session.ts';
import { formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { writeBatch } from '../../src/rotation/batch.ts';
import { advance } from '../../src/rotation/run.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { hasPgBouncer, openForgetful, startPgBouncer } from '../support/pooler.ts';
import { changePolicy, drive, isSettled, openBench, openFor, rotate, type Bench } from '../rotation/support.ts';
import { withMoments } from '../rotation/intercept.ts';
import { itLong } from '../support/long.ts';

const address = 'hr:public.people';
const policy = changePolicy({
  columns: [
    {
      ...{ database: 'hr', table: 'public.people', key: ['id'], tenant: { column: 'tenant' }, adopt: true },
      ...{ column: 'v_enc', class: 'bank', from: 'v' },
    },
  ],
  classes: { bank: { nonAscii: 'fold' } },
});
const triggers = formatTriggers({
  ...{ schema: 'public', name: 'people', column: 'v_enc', source: 'v', indexColumns: [], bound: ['id', 'tenant'] },
});

/** A setting, what others set it to, and a type that it would spell or read otherwise: a value and its text. */
const cases: readonly (readonly [name: string, wrong: string, type: string, value: string])[] = [
  ['array_nulls', 'off', 'text', 'NULL and void'],
  ['search_path', 'public, pg_catalog', 'text', 'v'],
  ['client_encoding', 'LATIN1', 'text', 'Zoë, 5 €'],
  ['standard_conforming_strings', 'off', 'text', `back\\slash ' " quotes`],
  ['quote_all_identifiers', 'on', 'text', 'v'],
  ['transform_null_equals', 'on', 'text', 'v'],
  ['backslash_quote', 'off', 'text', `\\'`],
  ['bytea_output', 'escape', 'bytea', '\\x00ff5c'],
  ['datestyle', 'SQL, DMY', 'date', '2026-02-01'],
  ['timezone', 'Asia/Tokyo', 'timestamptz', '2026-01-31 22:15:00+00'],
  ['intervalstyle', 'sql_standard', 'interval', '1 year 2 mons -3 days +04:05:06'],
  ['extra_float_digits', '-15', 'float8', '0.30000000000000004'],
  ['lc_monetary', 'C.UTF-8', 'money', '-$1,234.50'],
  ['xmloption', 'document', 'xml', 'a<b/>'],
  ['default_transaction_isolation', 'serializable', 'text', 'v'],
  ['default_transaction_deferrable', 'on', 'text', 'v'],
  ['gin_fuzzy_search_limit', '1', 'text', 'v'],
  ['row_security', 'on', 'text', 'v'],
  ['synchronous_commit', 'off', 'text', 'v'],
  ['exit_on_error', 'on', 'text', 'v'],
  ['lock_timeout', '1ms', 'text', 'v'],
  ['statement_timeout', '1ms', 'text', 'v'],
  ['fieldkeep.reencrypting', 'off', 'text', 'v'],
];
/** What a role must be given where a pooler drops what sessions start with. */
const targetOwn = { lock_timeout: '250ms', 'fieldkeep.reencrypting': 'on' };
const targetSettings = settingsToSend({ ...targetOwn, statement_timeout: '5min' });
const listOf = (value: string) => value.split(', ').map(quoteLiteral).join(', ');

describe('settings of the target', function () {
  this.timeout(60_000);
  let target: TestDatabase;
  let admin: Pool;
  let owner: Pool;
  let name: string;
  let role: string;
  let bench: Bench | undefined;

  before(async () => {
    target = await createTarget();
    const server = new URL(target.ownerUrl);
    name = server.pathname.slice(1);
    server.pathname = '/postgres';
    admin = openPool(server.href, { max: 1, name: 'admin' });
    owner = openPool(target.ownerUrl, { max: 2, name: 'customer', statementTimeoutMs: 60_000 });
    role = roleOf(target.workerUrl);
  });
  after(async () => {
    await owner.end();
    await admin.end();
    await target.drop();
  });
  afterEach(async () => {
    await admin.query(`alter database ${name} reset all; alter role ${role} in database ${name} reset all`);
    await bench?.close();
    bench = undefined;
  });

  async function set(setting: string, value: string): Promise<void> {
    await admin.query(`alter database ${name} set ${setting} = ${listOf(value)};
                       alter role ${role} in database ${name} set ${setting} = ${listOf(value)}`);
  }
  /** Ends the sessions that the worker has there: those that follow start as the database has it now. */
  const endSessions = () =>
    owner.query(`select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1 and usename = $2`, [
      ...[name, role],
    ]);

  /** Four rows, two of them null, and the triggers of a live adoption. */
  async function open(type: string, value: string, url = target.workerUrl): Promise<Bench> {
    await owner.query(`truncate fieldkeep.wrapped_keys; drop table if exists public.people;
      create table public.people (id int primary key, tenant text not null, v ${type}, v_enc text);
      grant select, update on public.people to ${role}`);
    await owner.query(
      `insert into public.people select n, 'acme', case when n % 2 = 0 then $1::${type} end from generate_series(1, 4) n`,
      [value],
    );
    for (const statement of triggers) await owner.query(statement);
    bench = await openBench({ policy, targets: new Map([['hr', url]]) });
    return bench;
  }
  const look = async ({ service }: Bench) =>
    (service.catalog = await loadCatalog(service.targets, service.policy.columns));
  async function start(it_: Bench): Promise<void> {
    await transaction(it_.service.pool, (tx) => setStarted(tx, address, 'v_enc'));
    await look(it_);
  }
  async function work({ service }: Bench, kind: ColumnKind): Promise<Run> {
    const about = { table: address, column: 'v_enc', source: 'v' };
    const id = randomUUID();
    assert.ok(await insertRun(service.pool, { id, kind, family: 'bank', ...about, requestedBy: 'test' }));
    return await drive(service, id, isSettled);
  }
  async function fill(it_: Bench): Promise<Run> {
    const id = await startAdoption(it_.service, true);
    assert.ok(id !== undefined, 'there is something to adopt');
    return await drive(it_.service, id, isSettled);
  }
  const read = async () =>
    (
      await owner.query<{ id: string; v: string | null; v_enc: string | null }>(
        'select id::text, v::text, v_enc from public.people order by id',
      )
    ).rows;

  /** Adopts, rotates, finishes and takes it all back; at each step the values are what they were. */
  async function roundTrip(it_: Bench, value: string): Promise<void> {
    const expected = [null, value, null, value];
    const opened = async () => {
      const texts: (string | null)[] = [];
      for (const { id, v_enc: text } of await read()) {
        texts.push(text === null ? null : await openFor(it_.service, 'v_enc', id, text, address));
      }
      return texts;
    };
    const sources = async () => (await read()).map(({ v }) => v);
    await start(it_);
    assert.equal((await fill(it_)).phase, 'done');
    assert.deepEqual([await opened(), await sources()], [expected, expected]);
    await rotate(it_, 'bank');
    assert.ok((await read()).every(({ v_enc: text }) => text === null || text.startsWith('fe1.bank.2.')));
    const finished = await work(it_, 'finish');
    assert.deepEqual([finished.phase, finished.failed], ['done', 0]);
    assert.deepEqual([await opened(), await sources()], [expected, [null, null, null, null]]);
    await transaction(it_.service.pool, (tx) => setUndone(tx, address, 'v_enc'));
    for (const kind of ['undo', 'leave'] as const) assert.equal((await work(it_, kind)).phase, 'done');
    assert.deepEqual(await sources(), expected);
    assert.ok((await read()).every(({ v_enc: text }) => text === null));
  }

  for (const [setting, value, type, text] of cases) {
    itLong(`${setting} = ${value} changes nothing for a column of type ${type}`, async () => {
      await set(setting, value);
      await roundTrip(await open(type, text), text);
    });
  }

  /** As far as ranges that wait to be worked on. */
  async function plan({ service }: Bench, id: string): Promise<void> {
    for (let tries = 0; tries < 20; tries += 1) {
      if ((await findRun(service.pool, id))?.phase === 're-encrypting') return;
      await advance(service, id);
    }
    assert.fail('the run was not planned');
  }

  const goesOn = async (it_: Bench, id: string) => {
    await it_.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch'`);
    const run = await drive(it_.service, id, ({ phase }) => phase === 'done');
    assert.equal((await read()).filter(({ v_enc: sealed }) => sealed !== null).length, 2);
    return run;
  };

  for (const [setting, value] of [
    ['session_replication_role', 'replica'],
    ['default_transaction_read_only', 'on'],
  ] as const) {
    it(`${setting} = ${value} stops a run, which says why and goes on when that is taken back`, async () => {
      const it_ = await open('text', 'v');
      await start(it_);
      const id = (await startAdoption(it_.service, true))!;
      await set(setting, value);
      await endSessions();
      const run = await drive(it_.service, id, ({ phase }) => phase === 'blocked');
      assert.match(run.blocked!, new RegExp(`${setting} is ${value}, and must be .* alter role … reset ${setting}`));
      const { problems } = await look(it_);
      assert.match(
        problems.get(address)!,
        new RegExp(`^Target hr of table ${address} answers in a session .*${setting}`),
      );
      assert.ok((await read()).every(({ v_enc: sealed }) => sealed === null));
      await admin.query(`alter database ${name} reset all; alter role ${role} in database ${name} reset all`);
      await goesOn(it_, id);
    });
  }

  it('is not reached at all through what drops how a session starts, and nothing is written', async () => {
    const pooler = await openForgetful(target.ownerUrl);
    try {
      const it_ = await open('text', 'v', pooler.through(target.workerUrl));
      await start(it_);
      assert.match(it_.service.catalog.problems.get(address)!, /search_path is .* Connect to Postgres itself\.$/);
      assert.equal(await startAdoption(it_.service, true), undefined);
      assert.ok((await read()).every(({ v_enc: sealed }) => sealed === null));
    } finally {
      await bench?.close();
      bench = undefined;
      await pooler.close();
    }
  });

  /** Another client's statement in the worker's sessions, as through a pooler that hands them round. */
  async function meddle(it_: Bench, statement: string): Promise<void> {
    const pool = it_.service.targets.findRows('hr')!;
    const all = await Promise.all(Array.from({ length: 8 }, () => pool.connect()));
    for (const client of all) await client.query(statement);
    for (const client of all) client.release();
  }

  for (const statement of [
    'set fieldkeep.reencrypting = off',
    'set search_path = public',
    'set row_security = on',
    'set array_nulls = off',
    `do $$ begin perform set_config('default_transaction_isolation', 'serializable', false); end $$`,
  ]) {
    it(`a batch writes nothing after \`${statement}\` in its session`, async () => {
      const it_ = await open('text', 'v');
      await start(it_);
      const table = it_.service.catalog.tables.get(address)!;
      const change = { key: ['2'], tenant: 'acme', values: [null, 'v'], next: ['new', null] };
      const columns = { read: ['v_enc', 'v'], written: ['v_enc', 'v'] };
      const before = await read();
      await meddle(it_, statement);
      const written = withClient(it_.service.targets.findRows('hr')!, (db) =>
        writeBatch(db, table, columns, [change], false),
      );
      await assert.rejects(written, (error) => findRefusal(error) !== undefined);
      assert.deepEqual(await read(), before);
    });
  }

  it('changed between reading and writing a batch stops the run, which says so and then goes on', async () => {
    const it_ = await open('text', 'v');
    await start(it_);
    const id = (await startAdoption(it_.service, true))!;
    await plan(it_, id);
    const [range] = await listFreeRanges(it_.service.pool);
    const disturbed = withMoments(it_.service, {
      afterRead: () => meddle(it_, 'set fieldkeep.reencrypting = off'),
    });
    const before = await read();
    await assert.rejects(
      workRange(disturbed, range!, () => false),
      /fieldkeep\.reencrypting was changed after it began/,
    );
    assert.deepEqual(await read(), before);
    const run = (await findRun(it_.service.pool, id))!;
    const { throttle } = await viewRun(it_.service.pool, run);
    assert.match(throttle!, /^a session that is not as it must be: fieldkeep\.reencrypting was changed/);
    await endSessions();
    await goesOn(it_, id);
  });

  it('changed by a trigger of the table for the whole session stops what comes next', async () => {
    const it_ = await open('text', 'v');
    await owner.query(`
      create function public.meddle() returns trigger language plpgsql as
        $$ begin perform set_config('array_nulls', 'off', false); return new; end $$;
      create trigger meddle after update on public.people for each row execute function public.meddle()`);
    try {
      await start(it_);
      const id = (await startAdoption(it_.service, true))!;
      const run = await drive(it_.service, id, isSettled);
      assert.match(run.blocked!, /array_nulls was changed after it began, by a trigger that sets it for longer/);
      await owner.query('drop function public.meddle() cascade');
      await goesOn(it_, id);
    } finally {
      await owner.query('drop function if exists public.meddle() cascade');
    }
  });

  describe('through PgBouncer', function () {
    before(function () {
      if (hasPgBouncer) return;
      assert.ok(
        !process.env.FIELDKEEP_REQUIRE_PGBOUNCER,
        'FIELDKEEP_REQUIRE_PGBOUNCER is set, and there is none on PATH',
      );
      process.stderr.write(
        '\n*** No pgbouncer on PATH (apt-get install pgbouncer): how it is refused is SKIPPED. ***\n\n',
      );
      this.skip();
    });

    for (const [mode, settings, words] of [
      ['as it comes', {}, /a pooler in between does not let it start with settings of its own/],
      ['a session each', { ignore_startup_parameters: 'options' }, /search_path is .*\(and \d+ more\)/],
      ['a transaction each', { ignore_startup_parameters: 'options', pool_mode: 'transaction' }, /\(and \d+ more\)/],
    ] as const) {
      it(`${mode}: the target is refused, and no trigger fires`, async () => {
        const pooler = await startPgBouncer(target.workerUrl, settings);
        try {
          const it_ = await open('text', 'v', pooler.through(target.workerUrl));
          await start(it_);
          assert.match(it_.service.catalog.problems.get(address)!, words);
          assert.equal(await startAdoption(it_.service, true), undefined);
          assert.deepEqual(
            (await read()).map(({ v }) => v),
            [null, 'v', null, 'v'],
          );
        } finally {
          await bench?.close();
          bench = undefined;
          await pooler.close();
        }
      });
    }

    it('a transaction each, with all settings given to the role: another client’s change stops the batch', async () => {
      for (const [setting, value] of Object.entries(targetSettings)) {
        await admin.query(`alter role ${role} in database ${name} set ${setting} = ${listOf(value)}`);
      }
      const pooler = await startPgBouncer(target.workerUrl, {
        ...{ ignore_startup_parameters: 'options', pool_mode: 'transaction', default_pool_size: '1' },
      });
      try {
        const url = pooler.through(target.workerUrl);
        const it_ = await open('text', 'v', url);
        await start(it_);
        assert.deepEqual([...it_.service.catalog.problems], []);
        const id = (await startAdoption(it_.service, true))!;
        await plan(it_, id);
        const other = openPool(url, { max: 1, name: 'other', statementTimeoutMs: 300_000, settings: targetOwn });
        await other.query('set fieldkeep.reencrypting = off');
        const before = await read();
        const [range] = await listFreeRanges(it_.service.pool);
        await assert.rejects(
          workRange(it_.service, range!, () => false),
          /fieldkeep\.reencrypting (was changed|is off)/,
        );
        await advance(it_.service, id);
        assert.deepEqual(await read(), before);
        await other.query('set fieldkeep.reencrypting = on');
        await other.end();
        await goesOn(it_, id);
      } finally {
        await bench?.close();
        bench = undefined;
        await pooler.close();
      }
    });
  });
});
