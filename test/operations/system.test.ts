import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { unfoldAcknowledged, waitOutIntake } from '../../src/audit/store.ts';
import { transaction } from '../../src/db.ts';
import { activateVersion, insertVersion, raiseEpoch } from '../../src/keys/store.ts';
import { entriesOf, openTestService, type Reply, type TestService } from '../support/service.ts';

const at = (column: string, row: string) => ({ table: 'demo.employees', column, row });

describe('calls on keys, rotations and the audit', () => {
  let it_: TestService;
  before(async () => {
    it_ = await openTestService();
  });
  after(() => it_.close());

  it('says who the caller is', async () => {
    const agent = await it_.call('invoice-agent', 'GET', '/v1/whoami');
    assert.deepEqual(agent.body, {
      principal: { system: false, agent: 'invoice-agent' },
      tenant: 'acme',
      grants: ['encrypt:bank', 'decrypt:bank:last4'],
    });
    const person = await it_.call('operator', 'GET', '/v1/whoami');
    assert.deepEqual(person.body['principal'], { system: true, person: 'operator' });
    assert.equal(person.body['tenant'], undefined);
  });

  it('shows keys to system principals only', async () => {
    assert.equal((await it_.call('payroll-agent', 'GET', '/v1/keys')).status, 403);
    const { body } = await it_.call('operator', 'GET', '/v1/keys/bank');
    assert.equal(body['active'], 1);
    assert.equal((await it_.call('security-auditor', 'GET', '/v1/keys')).status, 200);
    assert.equal((await it_.call('payroll-agent', 'GET', '/v1/keys/nothing')).status, 403);
    assert.equal((await it_.call('operator', 'GET', '/v1/keys/nothing')).body['code'], 'class_unknown');
  });

  it('rotates once for an Idempotency-Key, refuses a second rotation, and finishes', async function () {
    this.timeout(60_000);
    const start = (headers: Record<string, string> = {}, body: object = { reason: 'test' }) =>
      it_.call('operator', 'POST', '/v1/keys/bank/rotate', body, { headers });
    assert.equal((await it_.call('payroll-agent', 'POST', '/v1/keys/bank/rotate', {})).status, 403);
    const rehearsal = await start({}, { dryRun: true });
    assert.deepEqual([rehearsal.status, rehearsal.body['phase'], rehearsal.body['version']], [200, 'dry-run', 2]);
    const first = await start({ 'idempotency-key': 'once' });
    assert.equal(first.status, 202, first.text);
    assert.equal(first.headers['location'], `/v1/rotations/${String(first.body['id'])}`);
    const again = await start({ 'idempotency-key': 'once' });
    assert.deepEqual([again.status, again.body['id']], [202, first.body['id']]);
    const other = await start({ 'idempotency-key': 'once' }, { reason: 'another' });
    assert.deepEqual([other.status, other.body['code']], [409, 'conflict']);
    const second = await start();
    assert.deepEqual(
      [second.status, second.body['code'], second.body['rotationId']],
      [409, 'rotation_in_progress', first.body['id']],
    );
    let run: Reply;
    do {
      await new Promise((resolve) => setTimeout(resolve, 200));
      run = await it_.call('operator', 'GET', `/v1/rotations/${String(first.body['id'])}`);
    } while (run.body['phase'] !== 'done');
    const keys = await it_.call('operator', 'GET', '/v1/keys/bank');
    assert.deepEqual(
      (keys.body['versions'] as { version: number; state: string }[]).map(({ version, state }) => [version, state]),
      [
        [1, 'decrypt-only'],
        [2, 'active'],
      ],
    );
    assert.equal((await it_.call('operator', 'GET', '/v1/rotations/none')).body['code'], 'not_found');
    const list = await it_.call('operator', 'GET', '/v1/rotations?family=bank&limit=1');
    assert.equal(list.body.items![0]!['id'], first.body['id']);
  });

  it('never lets an envelope of the old version out after an activation', async () => {
    // Calls all the time, while versions become active behind the service's back: whoever is answered after the moment of
    // activation (and the wait for open commits) holds an envelope of the new version.
    let active = 1;
    let running = true;
    let answers = 0;
    const caller = async () => {
      while (running) {
        const before = active;
        const body = { class: 'salary', value: '1', context: at('salary', String(randomInt(1000))) };
        const answer = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body);
        assert.equal(answer.status, 200, answer.text);
        assert.ok(
          (answer.body['version'] as number) >= before,
          `version ${String(answer.body['version'])} after ${before} was active`,
        );
        answers += 1;
      }
    };
    const callers = Array.from({ length: 16 }, caller);
    const { pool } = it_.service;
    for (let version = 2; version <= 12; version += 1) {
      const made = {
        family: 'salary',
        version,
        state: 'pending',
        transitVersion: version,
        bind: 'row',
        indexes: [],
      } as const;
      await it_.service.rootKeys.rotate('salary');
      await transaction(pool, async (tx) => {
        await insertVersion(tx, made);
        await raiseEpoch(tx);
      });
      await transaction(pool, async (tx) => {
        await activateVersion(tx, 'salary', version);
        await raiseEpoch(tx);
      });
      await waitOutIntake(pool);
      await new Promise((resolve) => setTimeout(resolve, 30)); // answers that were committed before are on their way
      active = version;
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    running = false;
    await Promise.all(callers);
    assert.ok(answers > 100, `${answers} answers`);
  });

  it('gives every attempt one entry and every agent what the policy says, ten thousand times', async function () {
    this.timeout(120_000);
    const total = Number(process.env.CALLS ?? 10_000);
    const sealed = new Map<string, string>();
    for (const column of ['ssn', 'bank', 'salary']) {
      const body = { class: column, value: '123456789', context: at(column, '1') };
      sealed.set(column, (await it_.call('payroll-agent', 'POST', '/v1/encrypt', body)).body['envelope'] as string);
    }
    const decrypt = (column: string, view?: string) => ({
      path: '/v1/decrypt',
      body: { envelope: sealed.get(column), context: at(column, '1'), ...(view !== undefined && { view }) },
    });
    const encrypt = (column: string) => ({
      path: '/v1/encrypt',
      body: { class: column, value: '1', context: at(column, '2') },
    });
    const kinds: [string, { path: string; body: unknown }, number][] = [
      ['invoice-agent', encrypt('bank'), 200],
      ['invoice-agent', encrypt('ssn'), 403],
      ['invoice-agent', decrypt('bank', 'last4'), 200],
      ['invoice-agent', decrypt('bank', 'full'), 403],
      ['invoice-agent', decrypt('salary'), 403],
      ['payroll-agent', encrypt('ssn'), 200],
      ['payroll-agent', decrypt('salary', 'full'), 200],
      ['payroll-agent', decrypt('ssn'), 403],
      [
        'payroll-agent',
        { path: '/v1/reencrypt', body: { envelope: sealed.get('bank'), context: at('bank', '1') } },
        200,
      ],
      ['recruit-agent', decrypt('ssn'), 200],
      ['recruit-agent', decrypt('salary', 'exists'), 403],
      ['recruit-agent', encrypt('ssn'), 403],
      ['cx-agent', decrypt('ssn', 'last4'), 200],
      [
        'cx-agent',
        { path: '/v1/match', body: { envelope: sealed.get('ssn'), context: at('ssn', '1'), candidate: '1' } },
        200,
      ],
      ['cx-agent', { path: '/v1/decrypt', body: { envelope: sealed.get('ssn'), context: at('ssn', '9') } }, 422],
      ['hr-agent', decrypt('ssn', 'full'), 403],
      ['hr-agent', { path: '/v1/decrypt', body: { ...decrypt('ssn', 'full').body, purpose: 'onboarding' } }, 200],
      [
        'hr-agent',
        {
          path: '/v1/search-tokens',
          body: { class: 'ssn', value: '1', context: { table: 'demo.employees', column: 'ssn' } },
        },
        200,
      ],
      ['hr-agent', { path: '/v1/decrypt', body: { envelope: 'fe1.ssn.1.A', context: at('ssn', '1') } }, 400],
      [
        'payroll-agent',
        { path: '/v1/encrypt', body: { class: 'ssn', value: '1', context: at('ssn', '1'), more: 1 } },
        400,
      ],
      ['payroll-agent', { path: '/v1/encrypt', body: '{"class":' }, 400],
      ['', decrypt('ssn'), 401],
    ];
    const ids: string[] = [];
    let strangers = 0;
    let next = 0;
    const worker = async () => {
      while (next < total) {
        next += 1;
        const [agent, { path, body }, want] = kinds[randomInt(kinds.length)]!;
        const answer = await it_.call(agent, 'POST', path, body, agent === '' ? { token: '' } : {});
        if (want === 401) {
          assert.ok(answer.status === 401 || answer.status === 429, answer.text);
          strangers += 1; // the first of them has an entry of its own, the others are counted (http/refusals.ts)
          continue;
        }
        assert.equal(answer.status, want, `${agent} ${path} ${answer.text}`);
        ids.push(answer.headers['x-request-id'] as string);
      }
    };
    await Promise.all(Array.from({ length: 48 }, worker));
    await unfoldAcknowledged(it_.service.pool);
    const { rows } = await it_.owner.query<{ n: number; ids: number }>(
      `select count(*)::int as n, count(distinct request_id)::int as ids from fieldkeep.audit_entries where request_id = any ($1)`,
      [ids],
    );
    assert.ok(strangers > 0);
    assert.deepEqual(rows[0], { n: total - strangers, ids: total - strangers });
    const dense = await it_.owner.query<{ ok: boolean }>(
      'select max(index) = count(*) - 1 as ok from fieldkeep.audit_entries',
    );
    assert.ok(dense.rows[0]!.ok, 'indexes are dense');
  });

  it('lets the security team find entries, and a tenant principal none', async () => {
    const denied = await it_.call('recruit-agent', 'POST', '/v1/decrypt', {
      envelope: 'fe1.bank.1.A',
      context: at('bank', '1'),
    });
    const requestId = denied.headers['x-request-id'] as string;
    const find = (query: string) => it_.call('security-auditor', 'GET', `/v1/audit/entries?${query}`);
    const [found] = (await find(`requestId=${requestId}`)).body.items!;
    assert.equal((found!['entry'] as { code: string }).code, 'envelope_malformed');
    assert.equal((await it_.call('payroll-agent', 'GET', '/v1/audit/entries')).status, 403);
    const page = await find('agent=invoice-agent&outcome=denied&limit=2');
    assert.equal(page.body.items!.length, 2);
    const after = await find(`agent=invoice-agent&outcome=denied&limit=2&cursor=${String(page.body['nextCursor'])}`);
    assert.ok((after.body.items![0]!['index'] as number) < (page.body.items![1]!['index'] as number));
    assert.equal((await find('cursor=x')).status, 400);
    assert.equal((await find('nothing=1')).status, 400);
  });

  it('answers for people through agents only what both may', async () => {
    const token = await it_.issuer.issueToken({
      audience: 'fieldkeep',
      subject: 'security-auditor',
      actor: 'payroll-agent',
      tenant: 'acme',
      ttlSeconds: 60,
    });
    const who = await it_.call('', 'GET', '/v1/whoami', undefined, { token });
    assert.deepEqual(who.body['principal'], { system: false, agent: 'payroll-agent', person: 'security-auditor' });
    const answer = await it_.call(
      '',
      'POST',
      '/v1/encrypt',
      { class: 'bank', value: '1', context: at('bank', '1') },
      { token },
    );
    assert.equal(answer.status, 403);
    const narrowed = await it_.issuer.issueToken({
      audience: 'fieldkeep',
      subject: 'payroll-agent',
      tenant: 'acme',
      scope: 'encrypt:bank',
      ttlSeconds: 60,
    });
    const encrypt = (name: string) =>
      it_.call('', 'POST', '/v1/encrypt', { class: name, value: '1', context: at(name, '1') }, { token: narrowed });
    assert.deepEqual([(await encrypt('bank')).status, (await encrypt('ssn')).status], [200, 403]);
  });

  it('keeps entries from being changed, also by the service itself', async () => {
    await unfoldAcknowledged(it_.service.pool);
    for (const table of ['audit_intake', 'audit_entries', 'audit_unfolded']) {
      await assert.rejects(it_.service.pool.query(`delete from fieldkeep.${table}`), { code: '42501' });
      await assert.rejects(it_.owner.query(`delete from fieldkeep.${table}`), { code: '23001' });
    }
    assert.equal((await entriesOf(it_.owner, 'none')).length, 0);
  });
});
