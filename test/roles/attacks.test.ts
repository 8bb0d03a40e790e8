/**
 * What somebody can do who has one of the service's database logins, or owns a table that it works on, and nothing else: no
 * data is opened, no key is made or lost, no run begins.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { openPool, quoteIdentifier, roleOf, type Pool } from '../../src/db.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { waitUntil } from '../operations/support.ts';
import { policyText } from '../rotation/support.ts';
import { createDatabase, createTarget, type TestDatabase } from '../support/database.ts';
import { openTestService, type TestService } from '../support/service.ts';

const denied = { code: '42501' };

/** What the attacker's code tries in whatever session it comes to run in, each on its own; it notes who it is. */
const attempts = [
  `insert into fieldkeep.adoptions ("table", "column", started_at) values ('demo.employees', 'bank', now())`,
  `insert into fieldkeep.rotations (id, kind, family, "table", "column", requested_by)
   values (gen_random_uuid(), 'undo', 'bank', 'demo.employees', 'bank', 'operator')`,
  `update fieldkeep.key_versions set state = 'compromised'`,
  `delete from fieldkeep.data_keys`,
  `delete from fieldkeep.wrapped_keys`,
  `insert into fieldkeep.approvals (id, action, about, details, reason, person, required, request_digest, decide_by)
   values (gen_random_uuid(), 'decrypt', '/', '{}', 'x', 'operator', 1, 'x', now())`,
  `insert into fieldkeep.asked_calls (id, call, mac) values (gen_random_uuid(), '{}', '1.x')`,
  `insert into fieldkeep.audit_intake (stream, seq, lines, entries, prev_hash, hash) values (1, 1, 'x', 1, '', '')`,
  `select wrapped from fieldkeep.data_keys`,
  `select wrapped from fieldkeep.wrapped_keys`,
  `select fieldkeep.fe_guard_add('demo', 'employees', 'bank', 2, false)`,
  `insert into fieldkeep_jobs.job (name) values ('ranges')`,
  `set session authorization fieldkeep_owner`,
  `set role fieldkeep_worker`,
  `reset role; insert into fieldkeep.adoptions ("table", "column") values ('a', 'b')`,
];

/** Installs `evil.strike()`, which tries everything and notes what it could do, as whoever calls it, once it is armed. */
async function installStrike(owner: Pool, attacker: string): Promise<void> {
  const each = attempts.map(
    (sql) => `begin
        execute $sql$${sql}$sql$;
        insert into evil.seen values (session_user, $sql$${sql}$sql$);
      exception when others then null; end;`,
  );
  await owner.query(`
    create schema evil authorization ${attacker};
    create table evil.seen (who text, could text);
    create table evil.armed ();
    alter table evil.seen owner to ${attacker};
    grant usage on schema evil to public;
    grant insert, select on evil.seen to public;
    grant select on evil.armed to public;
    create function evil.strike() returns boolean language plpgsql volatile as $strike$
    begin
      if not exists (select from evil.armed) then return true; end if;
      insert into evil.seen values (session_user, null);
      ${each.join('\n')}
      return true;
    end $strike$;
    alter function evil.strike() owner to ${attacker}`);
}

/** Ways in which code of a table's owner comes to run in the session of whoever works on its rows. */
const ways: Readonly<Record<string, string>> = {
  'a trigger': `create function evil.row() returns trigger language plpgsql as
      'begin perform evil.strike(); return new; end';
    create trigger strike before update on demo.employees for each row execute function evil.row()`,
  'a deferred constraint trigger': `create function evil.late() returns trigger language plpgsql as
      'begin perform evil.strike(); return null; end';
    create constraint trigger strike after update on demo.employees deferrable initially deferred
      for each row execute function evil.late()`,
  'a check': `alter table demo.employees add constraint strike check (evil.strike()) not valid`,
  'a generated column': `create function evil.made(text) returns text language plpgsql immutable as
      'begin perform evil.strike(); return null; end';
    alter table demo.employees add made text generated always as (evil.made(bank)) stored`,
  'an index expression': `create function evil.keyed(text) returns text language plpgsql immutable as
      'begin perform evil.strike(); return $1; end';
    create index strike on demo.employees (evil.keyed(bank))`,
  'a rule': `create function evil.ruled() returns void language plpgsql as 'begin perform evil.strike(); end';
    create rule strike as on update to demo.employees do also select evil.strike()`,
};

describe('the owner of a table that is worked on', function () {
  this.timeout(90_000);
  let attacker = '';

  before(() => {
    attacker = `attacker_${randomUUID().slice(0, 8)}`;
  });

  for (const [way, sql] of Object.entries(ways)) {
    it(`gains nothing by ${way}`, async () => {
      const it_ = await openTestService();
      try {
        const { owner } = it_;
        await owner.query(
          `do $$ begin if not exists (select from pg_roles where rolname = '${attacker}') then create role ${attacker}; end if; end $$`,
        );
        await installStrike(owner, attacker);
        await owner.query(sql);
        await owner.query(`insert into demo.employees (tenant, name, bank) select 'acme', 'n', 'b' || n from generate_series(1, 5) n;
          alter table demo.employees owner to ${attacker};
          insert into evil.armed default values`);
        // Adoption in place: the worker reads and writes these rows.
        const isThere = async () => (await owner.query('select from evil.seen')).rowCount! > 0;
        const isSettled = async () =>
          (await isThere()) ||
          (await owner.query('select from fieldkeep.rotation_ranges where error is not null')).rowCount! > 0;
        await waitUntil(isSettled, 'the rows were worked on', 60_000);
        const { rows: who } = await owner.query<{ who: string }>('select distinct who from evil.seen');
        assert.deepEqual(
          who.map((row) => row.who).filter((name) => name !== roleOf(it_.database.rowsUrl)),
          [],
          'nobody but the login for rows runs it',
        );
        const { rows: could } = await owner.query<{ could: string }>(
          'select distinct could from evil.seen where could is not null',
        );
        assert.deepEqual(could, []);
        const { rows: runs } = await owner.query(`select from fieldkeep.rotations where kind <> 'adoption'`);
        assert.equal(runs.length, 0);
      } finally {
        await it_.close();
      }
    });
  }
});

describe('the owner of a table in a target', function () {
  this.timeout(90_000);

  it('gains nothing by a trigger, where rows have a login of their own: mirror and guards are out of its reach', async () => {
    const target = await createTarget();
    const owner = openPool(target.ownerUrl, { max: 2, name: 'owner' });
    const rows = quoteIdentifier(roleOf(target.rowsUrl));
    const attacker = `attacker_${randomUUID().slice(0, 8)}`;
    const column = {
      ...{ database: 'hr', table: 'app.people', key: ['id'], tenant: { column: 'tenant' } },
      ...{ column: 'bank', class: 'bank', adopt: true },
    };
    const policy = parsePolicy(JSON.stringify({ ...(JSON.parse(policyText) as object), columns: [column] }));
    await owner.query(`create role ${attacker}; create schema app;
      create table app.people (id bigint primary key, tenant text not null, bank text);
      insert into app.people select n, 'acme', 'b' || n from generate_series(1, 5) n;
      create index on app.people (fieldkeep.fe_version(bank), id);
      grant usage on schema app, fieldkeep to ${rows};
      grant select, update (bank) on app.people to ${rows};
      insert into fieldkeep.guarded_columns values ('app', 'people', 'bank')`);
    await installStrike(owner, attacker);
    await owner.query(`alter table app.people owner to ${attacker};
      create function evil.row() returns trigger language plpgsql as 'begin perform evil.strike(); return new; end';
      create trigger strike before update on app.people for each row execute function evil.row();
      insert into evil.armed default values`);
    const it_ = await openTestService({
      ...{ policy, targets: new Map([['hr', target.workerUrl]]), rows: new Map([['hr', target.rowsUrl]]) },
    });
    try {
      const sealed = async () => (await owner.query(`select from app.people where bank like 'fe1.%'`)).rowCount === 5;
      await waitUntil(sealed, 'the column is adopted', 60_000);
      const { rows: seen } = await owner.query<{ who: string; could: string | null }>(
        'select distinct who, could from evil.seen',
      );
      assert.deepEqual(seen, [{ who: roleOf(target.rowsUrl), could: null }]);
      assert.ok((await owner.query('select from fieldkeep.wrapped_keys')).rowCount! > 0, 'the mirror is whole');
    } finally {
      await it_.close();
      await owner.query(`drop owned by ${attacker} cascade; drop role ${attacker}`);
      await owner.end();
      await target.drop();
    }
  });
});

describe('whoever has a login of the service and nothing else', function () {
  this.timeout(60_000);
  let database: TestDatabase;
  let it_: TestService;
  const pools: Pool[] = [];
  const login = (url: string): Pool => {
    const pool = openPool(url, { max: 2, name: 'thief' });
    pools.push(pool);
    return pool;
  };
  before(async () => {
    database = await createDatabase();
    it_ = await openTestService({ database });
  });
  after(async () => {
    await Promise.all(pools.map((pool) => pool.end()));
    await it_.close();
    await database.drop();
  });

  it('with that of an api process starts no run, decides nothing, and changes no key, job or entry', async () => {
    const api = login(database.apiUrl);
    const id = randomUUID();
    for (const sql of [
      `insert into fieldkeep.adoptions ("table", "column") values ('demo.employees', 'bank')`,
      `insert into fieldkeep.rotations (id, kind, family, "table", "column", requested_by)
       values ('${id}', 'undo', 'bank', 'demo.employees', 'bank', 'operator')`,
      `insert into fieldkeep.destructions (id) values ('${id}')`,
      `insert into fieldkeep.approvals (id) values ('${id}')`,
      `insert into fieldkeep.approval_decisions (approval) values ('${id}')`,
      `insert into fieldkeep.approval_uses (approval) values ('${id}')`,
      `insert into fieldkeep.asked_answers (id, worker) values ('${id}', '${id}')`,
      `insert into fieldkeep.asked_calls (id, call, mac, asked_at) values ('${id}', '', '', now())`,
      `insert into fieldkeep.data_keys (tenant, family, version, wrapped, fingerprint) values ('acme', 'bank', 1, '', '')`,
      `insert into fieldkeep.audit_entries (index, line) values (0, '')`,
      `insert into fieldkeep.audit_intake (stream, seq, lines, entries, prev_hash, hash, committed_at) values (1, 1, '', 1, '', '', now())`,
      `insert into fieldkeep.registered_tables (address, key_types) values ('demo.employees', '{text}')`,
      `insert into fieldkeep.idempotency_keys (principal, key, request_digest, status, body) values ('', '', '', 200, '')`,
      `update fieldkeep.key_versions set state = 'compromised'`,
      `update fieldkeep.audit_intake set lines = ''`,
      `delete from fieldkeep.audit_intake`,
      `truncate fieldkeep.audit_intake`,
      `update fieldkeep.unfolding set one = true`,
      `select fieldkeep.audit_make_partitions()`,
      `select fieldkeep.fe_guard_add('demo', 'employees', 'bank', 2, false)`,
      `select bank from demo.employees`,
      `update demo.employees set bank = null`,
      `select from fieldkeep_jobs.job`,
      `create table fieldkeep.mine ()`,
    ]) {
      await assert.rejects(api.query(sql), denied, sql);
    }
  });

  it('with that for rows reads no key and no entry, and changes nothing of ours', async () => {
    const rows = login(database.rowsUrl);
    for (const sql of attempts) await assert.rejects(rows.query(sql), sql);
    await assert.rejects(rows.query('select line from fieldkeep.audit_entries'), denied);
    await assert.rejects(rows.query('select name from demo.employees'), denied);
    await assert.rejects(rows.query('delete from demo.employees'), denied);
  });

  it('holds up neither the log nor a run by any advisory lock', async () => {
    const thief = await login(database.rowsUrl).connect();
    await thief.query(`select pg_advisory_lock('fieldkeep.audit_unfolded'::regclass::oid::int, 0)`);
    await thief.query(`select pg_advisory_lock(hashtextextended(n::text, 0)) from generate_series(1, 100) n`);
    const { body } = await it_.call('operator', 'POST', '/v1/keys/salary/rotate', {});
    await thief.query('select pg_advisory_lock(hashtextextended($1, 0))', [body['id']]);
    const answer = await it_.call('security-auditor', 'GET', '/v1/audit/entries');
    assert.equal(answer.status, 200, answer.text);
    thief.release(true);
  });
});
