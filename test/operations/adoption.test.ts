/** The life cycle of a column that is filled from another one, over HTTP: who may, what is refused, and what it says. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { roleOf, transaction } from '../../src/db.ts';
import { insertRun } from '../../src/rotation/store.ts';
import { formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { changePolicy } from '../rotation/support.ts';
import { openTestService, type Reply, type TestService } from '../support/service.ts';

const name = 'demo.employees.salary_enc';
const canary = 98765432.17;
const path = `/v1/adoptions/${name}`;
const policy = changePolicy({
  columns: [
    {
      ...{ table: 'demo.employees', key: ['id'], tenant: { column: 'tenant' } },
      ...{ column: 'salary_enc', class: 'salary', from: 'pay', adopt: true },
    },
    { table: 'demo.employees', key: ['id'], tenant: { column: 'tenant' }, column: 'bank', class: 'bank' },
  ],
});
const triggers = (source: string) =>
  formatTriggers({
    schema: 'demo',
    name: 'employees',
    column: 'salary_enc',
    source,
    indexColumns: [],
    bound: ['id', 'tenant'],
  }).join('\n');

describe('operations/adoption', () => {
  let it_: TestService;
  before(async () => {
    it_ = await openTestService({ policy });
    await it_.owner.query(`
      alter table demo.employees add pay numeric(10,2) not null default 0, add salary_enc text, add plain text;
      insert into demo.employees (tenant, name, pay)
        select 'acme', 'n', case n when 60 then ${canary} else n * 1.5 end from generate_series(1, 60) n;
      grant select (pay, salary_enc, plain), update (pay, salary_enc, plain) on demo.employees to ${roleOf(it_.database.rowsUrl)}`);
  });
  after(() => it_.close());

  const post = (verb: string, body?: object, headers: Record<string, string> = {}, as = 'operator') =>
    it_.call(as, 'POST', `${path}/${verb}`, body, { headers });
  const view = async () => (await it_.call('operator', 'GET', path)).body;
  async function settle(reply: Reply): Promise<Record<string, unknown>> {
    assert.equal(reply.status, 202, reply.text);
    for (;;) {
      const { body } = await it_.call('operator', 'GET', `/v1/rotations/${String(reply.body['id'])}`);
      if (body['phase'] === 'done' || body['phase'] === 'blocked') return body;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  async function until(state: string) {
    for (let tries = 0; ; tries += 1) {
      const now = await view();
      if (now['state'] === state) return now;
      if (tries > 200) assert.fail(`it is still ${JSON.stringify(now)}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  it('is refused to agents, and to whoever may not rotate the class', async () => {
    for (const agent of ['payroll-agent', 'security-auditor']) {
      assert.equal((await post('start', {}, {}, agent)).status, 403);
      assert.equal((await post('undo', { reason: 'x' }, {}, agent)).status, 403);
    }
    const unknown = '/v1/adoptions/demo.employees.none';
    assert.equal((await it_.call('payroll-agent', 'POST', `${unknown}/start`, {})).status, 403);
    assert.equal((await it_.call('operator', 'POST', `${unknown}/start`, {})).body['code'], 'column_unknown');
    assert.equal((await it_.call('operator', 'GET', unknown)).body['code'], 'column_unknown');
  });

  it('does not start without the triggers, nor where the policy does not say so', async () => {
    const reply = await post('start');
    assert.equal(reply.status, 409);
    assert.match(String(reply.body['detail']), /lacks the triggers .*npm run adopt -- sql demo\.employees\.salary_enc/);
    const other = await it_.call('operator', 'POST', '/v1/adoptions/demo.employees.bank/start', {});
    assert.match(String(other.body['detail']), /does not say "adopt": true/);
    assert.equal((await view())['state'], 'waiting');
    assert.match(String((await post('finish')).body['detail']), /is not being adopted/);
  });

  it('fills, and does not finish while the source must hold something', async () => {
    await it_.owner.query(triggers('pay'));
    await it_.owner.query('create index on demo.employees (id) where pay is not null and salary_enc is null');
    assert.equal((await post('start', { reason: 'quarter' })).status, 200);
    const filled = await until('filled');
    assert.deepEqual([filled['unfilled'], filled['plaintext']], [0, 60]);
    const reply = await post('finish');
    assert.match(String(reply.body['detail']), /Column pay of table demo\.employees is NOT NULL/);
    await it_.owner.query('alter table demo.employees alter pay drop not null, alter pay drop default');
  });

  it('does not finish while a plaintext has no envelope', async () => {
    await it_.owner.query('alter table demo.employees disable trigger user');
    await it_.owner.query('update demo.employees set salary_enc = null where id = 1');
    const reply = await post('finish');
    assert.equal(reply.status, 409);
    assert.match(String(reply.body['detail']), /1 of the values of demo\.employees\.pay have no envelope yet/);
    await it_.owner.query('alter table demo.employees enable trigger user');
    await until('filled');
  });

  it('compares, finishes, and says what remains', async () => {
    const verified = await settle(await post('verify'));
    assert.deepEqual(verified['columns'], [
      { table: 'demo.employees', column: 'salary_enc', total: 60, done: 60, left: 0, failed: 0 },
    ]);
    assert.ok((await view())['verifiedAt'] !== undefined);
    assert.equal((await settle(await post('finish')))['phase'], 'done');
    const finished = await until('finished');
    assert.equal(finished['plaintext'], 0);
    assert.match((finished['remains'] as string[]).join(' '), /vacuum.*log.*Backups hold it until \d{4}-\d\d-\d\d/s);
    const { rows } = await it_.owner.query<{ n: string }>(
      'select count(*) as n from demo.employees where pay is not null',
    );
    assert.equal(rows[0]!.n, '0');
  });

  it('comes back as plaintext only when two other people agree, and leaves a trace', async () => {
    const body = { reason: 'we leave' };
    const asked = await post('undo', body);
    assert.equal(asked.status, 202);
    const approval = String(asked.body['approvalId']);
    const shown = (await it_.call('security-lead', 'GET', `/v1/approvals/${approval}`)).body;
    assert.deepEqual(shown['details'], { decrypts: { table: 'demo.employees', column: 'salary_enc', to: 'pay' } });
    const headers = { 'approval-id': approval };
    assert.equal((await post('undo', body, headers)).body['status'], 'pending');
    for (const person of ['security-auditor', 'security-lead']) {
      await it_.call(person, 'POST', `/v1/approvals/${approval}/decisions`, { decision: 'approve', reason: 'seen' });
    }
    assert.equal((await post('undo', { reason: 'something else' }, headers)).status, 422);
    const leave = await post('leave');
    assert.match(String(leave.body['detail']), /60 envelopes .* have no plaintext in pay yet/);
    const run = await settle(await post('undo', body, headers));
    assert.equal(run['phase'], 'done');
    assert.equal((await post('undo', body, headers)).body['code'], 'approval_used');
    const { rows } = await it_.owner.query<{ id: string; pay: string }>(
      'select id, pay from demo.employees order by id',
    );
    assert.ok(rows.every(({ id, pay }) => Number(pay) === (id === '60' ? canary : Number(id) * 1.5)));
    const entries = await it_.call('security-auditor', 'GET', '/v1/audit/entries?action=decrypt&limit=50');
    const batches = entries.body.items!.map((item) => item['entry'] as Record<string, unknown>);
    assert.ok(batches.some((entry) => entry['view'] === 'full' && Number(entry['count']) > 0 && 'itemsRoot' in entry));
    assert.equal((await settle(await post('leave')))['phase'], 'done');
    assert.equal((await view())['state'], 'undone');
    assert.match(String((await post('finish')).body['detail']), /is not being adopted/);
  });

  it('has left no value in a table of ours, in the log, or in an answer', async () => {
    const tables = await it_.owner.query<{ name: string }>(
      `select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname in ('fieldkeep', 'fieldkeep_jobs')`,
    );
    let texts = 0;
    for (const { name: table } of tables.rows) {
      const { rows } = await it_.owner.query<{ row: string }>(`select t::text as row from ${table} t`);
      texts += rows.length;
      for (const { row } of rows) assert.ok(!row.includes('98765432'), table);
    }
    assert.ok(texts > 100, `${texts} rows were searched`);
    for (const text of [it_.logged(), await it_.metrics()]) assert.ok(!text.includes('98765432'));
  });

  it('decrypts into another column, with triggers there as well', async () => {
    await post('start');
    await until('filled');
    const reply = await post('undo', { reason: 'x', to: 'plain' });
    assert.match(String(reply.body['detail']), /npm run adopt -- sql demo\.employees\.salary_enc --to plain/);
    const none = await post('undo', { reason: 'x', to: 'nothing' });
    assert.match(String(none.body['detail']), /has no column nothing/);
  });

  it('decrypts over nothing that is somebody else’s, nor past a guard', async () => {
    for (const to of ['id', 'tenant', 'bank']) {
      for (const verb of ['undo', 'leave']) {
        const { body } = await post(verb, { reason: 'x', to });
        assert.match(String(body['detail']), /is its key or its tenant|belongs to demo\.employees\.bank by the policy/);
      }
    }
    const bank = await it_.call('operator', 'POST', '/v1/adoptions/demo.employees.bank/undo', { reason: 'x' });
    assert.match(String(bank.body['detail']), /no "from" for .*decrypt-column -- demo\.employees\.bank --to COLUMN/);
    await it_.owner.query(`alter table demo.employees add constraint fe_guard_salary_enc_2
      check (fieldkeep.fe_version(salary_enc) >= 2) not valid`);
    const { body } = await post('undo', { reason: 'x', to: 'salary_enc' });
    assert.match(String(body['detail']), /The guard fe_guard_salary_enc_2 refuses plaintext/);
    await it_.owner.query('alter table demo.employees drop constraint fe_guard_salary_enc_2');
    assert.equal((await post('undo', { reason: 'x', to: 'salary_enc' })).status, 202);
  });

  it('does not start while the envelopes go, until that is cancelled', async () => {
    const id = randomUUID();
    const run = {
      id,
      kind: 'leave',
      family: 'salary',
      table: 'demo.employees',
      column: 'salary_enc',
      source: 'pay',
    } as const;
    await transaction(it_.owner, async (tx) => {
      await insertRun(tx, { ...run, requestedBy: 'test' });
      await tx.query('update fieldkeep.rotations set paused_at = now() where id = $1', [id]);
    });
    assert.match(String((await post('start')).body['detail']), new RegExp(`under way: leave ${id}`));
    assert.equal((await post('verify')).status, 409);
    const next = () => it_.owner.query('select next_rotation_at from fieldkeep.key_families order by family');
    const due = (await next()).rows;
    assert.equal((await it_.call('operator', 'POST', `/v1/rotations/${id}/cancel`, {})).status, 200);
    assert.deepEqual((await next()).rows, due, 'no rotation is put off by that');
    assert.equal((await post('start')).status, 200);
  });

  it('refuses what triggers do not reach, what the worker may not write, and what is null by its fields', async () => {
    const refused = async (words: RegExp, verb = 'start') =>
      assert.match(String((await post(verb)).body['detail']), words);
    await it_.owner.query('create table demo.heir () inherits (demo.employees)');
    await refused(/do not fire for rows of the tables that inherit from it \(demo\.heir\)/);
    const remake = async (type: string) =>
      await it_.owner.query(`
        alter table demo.employees drop pay cascade; alter table demo.employees add pay ${type};
        grant select (pay), update (pay) on demo.employees to ${roleOf(it_.database.rowsUrl)}; ${triggers('pay')}`);
    await it_.owner.query(
      'drop table demo.heir; create schema hidden; create domain hidden.pay as numeric not null default 1',
    );
    await remake('hidden.pay');
    await refused(/may not .*use its type hidden\.pay/);
    await it_.owner.query(`grant usage on schema hidden to ${roleOf(it_.database.rowsUrl)}`);
    await refused(/Column pay of table demo\.employees is NOT NULL, by itself, by its domain/, 'finish');
    await it_.owner.query('create type demo.pair as (a numeric, b text)');
    await remake('demo.pair');
    await refused(/is of the composite type demo\.pair/);
    await refused(/is of the composite type demo\.pair/, 'finish');
  });
});
