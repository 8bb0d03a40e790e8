/** Calls that an api process hands to a worker: who is obeyed, what happens once, and what when nobody is there. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { ask, isWanted, type AskedCall } from '../../src/asked/ask.ts';
import { openPool, type Pool } from '../../src/db.ts';
import { NewTenants } from '../../src/keys/new-tenants.ts';
import { FieldkeepError } from '../../src/errors.ts';
import { waitUntil } from '../operations/support.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { entriesOf, openTestService, type TestService } from '../support/service.ts';

/** Everything that a call of the operator's carries, as an api process writes it. */
function contentOf(id: string, params: object, body: object): object {
  const principal = { person: 'operator', system: true };
  return { requestId: id, principal, body, params, query: {} };
}

describe('asked calls', function () {
  this.timeout(60_000);
  let database: TestDatabase;
  let worker: TestService;
  let api: TestService;
  /** With the login of an api process, and nothing else. */
  let thief: Pool;
  const count = async (what: string) => (await worker.owner.query(`select from fieldkeep.${what}`)).rowCount;

  before(async () => {
    database = await createDatabase();
    worker = await openTestService({ database, role: 'worker' });
    api = await openTestService({ database, role: 'api', rootKeys: worker.service.rootKeys });
    thief = openPool(database.apiUrl, { max: 2, name: 'thief' });
  });
  after(async () => {
    await thief.end();
    await api.close();
    await worker.close();
    await database.drop();
  });

  it('an api process hands a rotation over, and the worker writes run and entry', async () => {
    const answer = await api.call('operator', 'POST', '/v1/keys/bank/rotate', { reason: 'try' });
    assert.equal(answer.status, 202, answer.text);
    const { rows } = await worker.owner.query('select family, reason, requested_by from fieldkeep.rotations');
    assert.deepEqual(rows, [{ family: 'bank', reason: 'try', requested_by: 'operator' }]);
    const { items } = (await api.call('security-auditor', 'GET', '/v1/audit/entries?action=rotate&limit=500')).body;
    const own = items!.filter(
      ({ entry }) => (entry as { requestId: string }).requestId === answer.headers['x-request-id'],
    );
    assert.equal(own.length, 1, 'one entry');
  });

  it('the worker decides anew: a principal without the right is refused, with one entry', async () => {
    const { status, body, headers } = await api.call('payroll-agent', 'POST', '/v1/keys/salary/rotate', {});
    assert.deepEqual([status, body['code'], body['missingScope']], [403, 'forbidden', 'rotate:salary']);
    await api.call('security-auditor', 'GET', '/v1/audit/entries'); // has everything put in order
    const [entry, ...more] = await entriesOf(worker.owner, headers['x-request-id'] as string);
    assert.deepEqual([entry!['outcome'], entry!['code'], more.length], ['denied', 'forbidden', 0]);
  });

  it('errors keep their code and members: a second rotation names the first', async () => {
    const { status, body } = await api.call('operator', 'POST', '/v1/keys/bank/rotate', {});
    assert.deepEqual([status, body['code']], [409, 'rotation_in_progress']);
    assert.match(String(body['rotationId']), /^[0-9a-f-]{36}$/);
  });

  it('whoever has only the login of an api process is not obeyed: a call without the MAC is dropped', async () => {
    const runs = await count('rotations');
    for (const mac of ['', '1.', `1.${'A'.repeat(43)}`, '9.AAAA', 'x'.repeat(128)]) {
      const id = randomUUID();
      const content = contentOf(id, { family: 'ssn' }, { reason: 'mine' });
      const call: AskedCall = { id, name: 'rotate', content, askedAt: Date.now(), waitMs: 9_000, takeMs: 4_000 };
      await thief.query('insert into fieldkeep.asked_calls (id, call, mac) values ($1, $2, $3)', [
        id,
        JSON.stringify(call),
        mac,
      ]);
    }
    await thief.query('notify fieldkeep_asked');
    await waitUntil(
      async () => (await count(`asked_calls c where mac !~ '^1\\.[\\w-]{43}$' or call like '%mine%'`)) === 0,
      'they are dropped',
    );
    assert.equal(await count('rotations'), runs);
    assert.match(worker.logged(), /written by no process of ours/);
  });

  it('a call that was answered is not done again, whoever writes it down a second time', async () => {
    const id = randomUUID();
    const content = contentOf(id, { family: 'nothing' }, {});
    await ask(api.service, { id, name: 'rotate', content, waitMs: 5_000 });
    const { rows } = await worker.owner.query<{ call: string; mac: string }>(
      'delete from fieldkeep.asked_calls where id = $1 returning call, mac',
      [id],
    );
    const { call, mac } = rows[0]!;
    const entries = await count('audit_intake');
    await thief.query('insert into fieldkeep.asked_calls (id, call, mac) values ($1, $2, $3)', [id, call, mac]);
    const other = randomUUID(); // the same words under another name: the name is covered, too
    await thief.query('insert into fieldkeep.asked_calls (id, call, mac) values ($1, $2, $3)', [other, call, mac]);
    await thief.query('notify fieldkeep_asked');
    await sleep(500);
    assert.equal(await count(`asked_answers where id = '${other}'`), 0);
    assert.equal(await count('audit_intake'), entries, 'nothing was done, so nothing was written down');
  });

  it('an old call is none: nobody waits for its answer any more', () => {
    const call: AskedCall = { id: 'x', name: 'rotate', content: {}, askedAt: 1_000_000, waitMs: 9_000, takeMs: 4_000 };
    const at = (ms: number) => new Date(1_000_000 + ms);
    assert.ok(isWanted(call, at(10), at(3_000)));
    assert.ok(!isWanted(call, at(10), at(3_600)), 'whoever asked is about to give up');
    assert.ok(!isWanted(call, at(61_000), at(61_001)), 'written down again later');
    assert.ok(!isWanted(call, at(-61_000), at(-61_000)), 'from a future');
  });

  it('without a worker a call is answered in words after four seconds, leaves one entry, and is not done later', async () => {
    const alone = await createDatabase();
    const first = await openTestService({ database: alone, role: 'worker' });
    const lonely = await openTestService({ database: alone, role: 'api', rootKeys: first.service.rootKeys });
    const context = { table: 'demo.employees', column: 'bank', row: '1' };
    const encrypt = () => lonely.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: 'x', context });
    assert.equal((await encrypt()).status, 200);
    // Whoever answered is gone, but for what keeps the keys.
    await first.close();
    const asked = performance.now();
    const { status, body, headers } = await lonely.call('operator', 'POST', '/v1/keys/ssn/rotate', {});
    assert.deepEqual([status, body['code']], [504, 'deadline_exceeded']);
    assert.match(String(body['detail']), /ROLE=worker has to run/);
    assert.ok(performance.now() - asked < 6_000);
    const { rows } = await lonely.owner.query<{ lines: string }>('select lines from fieldkeep.audit_intake');
    const own = rows
      .flatMap(({ lines }) => lines.split('\n'))
      .filter((line) => line.includes(headers['x-request-id'] as string));
    assert.equal(own.length, 1);
    const { envelope } = (await encrypt()).body;
    const opened = await lonely.call('payroll-agent', 'POST', '/v1/decrypt', { envelope, context, view: 'full' });
    assert.equal(opened.body['value'], 'x', 'keys that were made go on working');
    const reads = ['/v1/keys', '/v1/keys/bank', '/v1/rotations', '/v1/adoptions'];
    const answers = await Promise.all(reads.map((path) => lonely.call('operator', 'GET', path)));
    assert.deepEqual(
      answers.map((answer) => answer.status),
      reads.map(() => 504),
    );
    const entries = await lonely.call('security-auditor', 'GET', '/v1/audit/entries');
    assert.deepEqual([entries.status, entries.body['code']], [503, 'database_unavailable']);
    const second = await openTestService({ database: alone, role: 'worker', rootKeys: lonely.service.rootKeys });
    await sleep(1_000);
    assert.equal((await lonely.owner.query('select from fieldkeep.rotations')).rowCount, 0);
    await lonely.close();
    await second.close();
    await alone.drop();
  });

  it('notices from any login make no data key', async () => {
    const before = await count('data_keys');
    for (let n = 0; n < 300; n += 1) {
      await thief.query('select pg_notify($1, $2), pg_notify($3, $2)', [
        'fieldkeep_keys_wanted',
        JSON.stringify([`tenant-${n}`, 'ssn', 1]),
        'fieldkeep_asked',
      ]);
    }
    await sleep(300);
    assert.equal(await count('data_keys'), before);
  });

  it('a data key is made for a tenant that an api process was asked about', async () => {
    const context = { table: 'demo.employees', column: 'bank', row: '1' };
    const answer = await api.call(
      'payroll-agent',
      'POST',
      '/v1/encrypt',
      { class: 'bank', value: 'x', context },
      { tenant: 'fresh' },
    );
    assert.equal(answer.status, 200, answer.text);
    assert.equal(await count(`data_keys where tenant = 'fresh' and family = 'bank'`), 1);
  });

  it('NewTenants admits 300 tenants at once and five a second after that; known ones always', async () => {
    let now = 0;
    const tenants = new NewTenants(() => now);
    for (let n = 0; n < 300; n += 1) await tenants.admit(worker.service.pool, `new-${n}`);
    await assert.rejects(
      tenants.admit(worker.service.pool, 'one-more'),
      (error) => error instanceof FieldkeepError && error.code === 'keys_not_ready',
    );
    await tenants.admit(worker.service.pool, 'fresh');
    now += 200;
    await tenants.admit(worker.service.pool, 'one-more');
    await assert.rejects(tenants.admit(worker.service.pool, 'yet-another'));
  });
});
