/** Calls that other people have to agree to: asked once, decided by those who may, used once and in time. */
import assert from 'node:assert/strict';
import { transaction } from '../../src/db.ts';
import { setUsed } from '../../src/operations/approval-store.ts';
import { canonicalDigest } from '../../src/crypto/canonical.ts';
import { createDatabase } from '../support/database.ts';
import { openTestService } from '../support/service.ts';
import { idOf, nowhere, openApproving, reason, said, type Approving } from './approving.ts';
import { insertBlocked, insertFailed } from './runs.ts';

describe('approvals', () => {
  let bench: Approving;
  before(async () => {
    bench = await openApproving();
  });
  after(() => bench.close());

  it('asks, hears two people, and runs once', async () => {
    const failures = { bank: ['7', '11', '8'], ssn: ['7'] };
    const run = await insertBlocked(bench.it_.owner, { family: 'bank', failures });
    await insertFailed(bench.it_.owner, run, 'bank', ['9'], 'envelope_malformed');
    const asked = await bench.waive(run);
    const id = asked.body['approvalId'] as string;
    assert.equal(asked.status, 202, asked.text);
    assert.equal(asked.headers['location'], `/v1/approvals/${id}`);
    const { expiresAt, requestDigest, ...rest } = asked.body;
    assert.deepEqual(rest, { status: 'pending', approvalId: id, required: 2, received: 0 });
    const left = new Date(expiresAt as string).getTime() - Date.now();
    assert.ok(Math.abs(left - 86_400_000) < 60_000, `${left} ms to decide`);
    const asking = await bench.entryOf(asked);
    assert.deepEqual(
      [asking['action'], asking['outcome'], asking['decision'], asking['purpose'], asking['class'], asking['person']],
      ['waive', 'ok', 'allow', `approval ${id} asked`, 'bank', 'operator'],
    );

    const shown = (await bench.get(id, 'security-lead')).body;
    assert.deepEqual(
      [shown['status'], shown['action'], shown['about'], shown['reason'], shown['requestedBy'], shown['approvers']],
      [
        ...['pending', 'waive', `/v1/rotations/${run}`, reason],
        ...[{ person: 'operator' }, ['security-auditor', 'security-lead', 'boss']],
      ],
    );
    const details = shown['details'] as { failures: { table: string; column: string; rows: number }[] };
    assert.deepEqual(
      details.failures.map(({ table, column, rows }) => [table, column, rows]),
      [
        ['demo.employees', 'bank', 4],
        ['demo.employees', 'ssn', 1],
      ],
    );
    const request = {
      principal: { person: 'operator' },
      action: 'waive',
      about: `/v1/rotations/${run}`,
      reason,
      details,
    };
    assert.equal(canonicalDigest(request), requestDigest);
    assert.equal((await bench.call('security-lead', 'GET', `/v1/rotations/${run}/failures`)).body.items!.length, 5);

    const early = await bench.waive(run, id);
    assert.deepEqual([early.status, early.body['approvalId'], early.body['received']], [202, id, 0]);
    const first = await bench.decide(id, 'security-auditor');
    assert.deepEqual([first.status, first.body['status'], first.body['received']], [200, 'pending', 1]);
    const decision = await bench.entryOf(first);
    assert.deepEqual(
      [decision['action'], decision['person'], decision['purpose']],
      ['approve', 'security-auditor', `approve of approval ${id}: looked at it`],
    );
    assert.equal((await bench.waive(run, id)).body['received'], 1);
    assert.deepEqual(await bench.waivedRows(run), []);
    const second = await bench.decide(id, 'boss');
    assert.deepEqual([second.body['status'], second.body['received']], ['approved', 2]);
    const use = new Date(second.body['expiresAt'] as string).getTime() - Date.now();
    assert.ok(Math.abs(use - 3_600_000) < 60_000, `${use} ms to use it`);

    const before = bench.woken();
    const ran = await bench.waive(run, id);
    assert.equal(ran.status, 200, ran.text);
    assert.deepEqual(
      [ran.body['rotationId'], ran.body['approvalId'], ran.body['waived'], ran.body['failures']],
      [run, id, 5, details.failures],
    );
    assert.equal(bench.woken(), before + 1);
    const waiver = await bench.entryOf(ran);
    assert.deepEqual(
      [waiver['action'], waiver['count'], waiver['keyVersion'], waiver['purpose']],
      ['waive', 5, 2, `waiver of rotation ${run} under approval ${id}: ${reason}`],
    );
    assert.deepEqual(
      await bench.waivedRows(run),
      ['11', '7', '7', '8', '9'].map((row) => [row, id]),
    );
    const listed = (await bench.call('operator', 'GET', `/v1/rotations/${run}/failures`)).body.items!;
    assert.ok(listed.every((each) => typeof each['waivedAt'] === 'string'));
    const { rows } = await bench.it_.owner.query<{ due: boolean }>(
      `select blocked_at < now() - interval '1 day' as due from fieldkeep.rotations where id = $1`,
      [run],
    );
    assert.ok(rows[0]!.due, 'the run is looked at at once');

    assert.deepEqual(said(await bench.waive(run, id)), [409, 'approval_used']);
    assert.equal((await bench.get(id)).body['status'], 'used');
    assert.deepEqual(said(await bench.decide(id, 'security-lead')), [409, 'conflict']);
    assert.deepEqual(said(await bench.waive(run)), [409, 'conflict']);
  });

  it('runs once also when many come at the same time', async () => {
    const { run, id } = await bench.askAndApprove();
    const replies = await Promise.all(Array.from({ length: 8 }, () => bench.waive(run, id)));
    const codes = replies.map((reply) => reply.body['code'] ?? reply.status).toSorted();
    assert.deepEqual(codes, [200, ...Array.from({ length: 7 }, () => 'approval_used')]);
    for (const reply of replies) assert.equal((await bench.entryOf(reply))['code'], reply.body['code']);
  });

  it('answers again what it did, for an Idempotency-Key', async () => {
    const { run, id } = await bench.askAndApprove();
    const first = await bench.waive(run, id, { key: 'once' });
    const again = await bench.waive(run, id, { key: 'once' });
    assert.deepEqual([again.status, again.body], [200, first.body]);
    assert.deepEqual(said(await bench.waive(run, id, { key: 'once', reason: 'another' })), [409, 'conflict']);
  });

  it('answers an equal request with the approval that stands', async () => {
    const run = await insertBlocked(bench.it_.owner, { family: 'bank', failures: { bank: ['1'] } });
    const replies = await Promise.all(Array.from({ length: 8 }, () => bench.waive(run)));
    assert.deepEqual([...new Set(replies.map(({ status }) => status))], [202]);
    const [id, ...others] = new Set(replies.map(idOf));
    assert.deepEqual(others, []);
    await bench.decide(id!, 'security-lead');
    const again = await bench.waive(run);
    assert.deepEqual([again.body['approvalId'], again.body['received']], [id, 1]);
    const [{ n }] = (
      await bench.it_.owner.query<{ n: number }>(
        'select count(*)::int as n from fieldkeep.approvals where about like $1',
        [`%${run}`],
      )
    ).rows as [{ n: number }];
    assert.equal(n, 1);
    assert.notEqual((await bench.waive(run, undefined, { reason: 'another' })).body['approvalId'], id);
    assert.notEqual((await bench.waive(run, undefined, { as: 'boss' })).body['approvalId'], id);
    await bench.decide(id!, 'boss', 'deny');
    assert.notEqual((await bench.waive(run)).body['approvalId'], id);
  });

  it('hears nobody who asked, is no approver, or has decided', async () => {
    const { run, id } = await bench.ask();
    const operator = await bench.decide(id, 'operator');
    assert.deepEqual([...said(operator), operator.body['missingScope']], [403, 'forbidden', 'approve']);
    assert.deepEqual(said(await bench.decide(id, 'intern')), [403, 'forbidden']);
    assert.deepEqual(said(await bench.decide(id, 'payroll-agent')), [403, 'forbidden']);
    assert.equal((await bench.decide(id, 'security-lead')).status, 200);
    assert.deepEqual(said(await bench.decide(id, 'security-lead')), [409, 'conflict']);
    assert.deepEqual(said(await bench.decide(id, 'security-lead', 'deny')), [409, 'conflict']);
    const own = await bench.waive(run, undefined, { as: 'boss' });
    const refused = await bench.decide(idOf(own), 'boss');
    assert.deepEqual(said(refused), [403, 'forbidden']);
    assert.match(refused.text, /Whoever asked/);
    const entry = await bench.entryOf(refused);
    assert.deepEqual([entry['decision'], entry['outcome'], entry['ruleId']], ['deny', 'denied', undefined]);
    assert.deepEqual((await bench.get(idOf(own))).body['approvers'], ['security-auditor', 'security-lead']);
    const token = await bench.it_.issuer.issueToken({
      ...{ audience: 'fieldkeep', subject: 'boss', actor: 'payroll-agent', tenant: 'acme', ttlSeconds: 60 },
    });
    const path = `/v1/approvals/${id}/decisions`;
    const body = { decision: 'approve', reason: 'x' };
    assert.equal((await bench.it_.call('', 'POST', path, body, { token })).status, 403);
    assert.equal((await bench.get(id)).body['received'], 1);
  });

  it('counts two who come at the same time, and hears one person once', async () => {
    const { id } = await bench.ask();
    const names = ['security-lead', 'security-auditor', 'security-lead', 'boss', 'security-lead', 'boss'];
    const replies = await Promise.all(names.map((name) => bench.decide(id, name)));
    assert.equal(replies.filter(({ status }) => status === 200).length, 2);
    assert.ok(replies.every(({ status, body }) => status === 200 || body['code'] === 'conflict'));
    const { status, received, decisions } = (await bench.get(id)).body;
    assert.deepEqual([status, received], ['approved', 2]);
    assert.equal(new Set((decisions as { person: string }[]).map((each) => each.person)).size, 2);
  });

  it('ends with one denial', async () => {
    const { run, id } = await bench.ask();
    assert.equal((await bench.decide(id, 'security-auditor')).status, 200);
    assert.equal((await bench.decide(id, 'boss', 'deny')).body['status'], 'denied');
    assert.deepEqual(said(await bench.decide(id, 'security-lead')), [409, 'conflict']);
    const refused = await bench.waive(run, id);
    assert.deepEqual(said(refused), [403, 'approval_denied']);
    assert.equal((await bench.entryOf(refused))['code'], 'approval_denied');
    assert.deepEqual(await bench.waivedRows(run), []);
  });

  it('expires undecided, and unused', async () => {
    const undecided = await bench.ask();
    await bench.it_.owner.query('update fieldkeep.approvals set decide_by = now() where id = $1', [undecided.id]);
    assert.deepEqual(said(await bench.decide(undecided.id, 'boss')), [410, 'approval_expired']);
    assert.deepEqual(said(await bench.waive(undecided.run, undecided.id)), [410, 'approval_expired']);
    assert.equal((await bench.get(undecided.id)).body['status'], 'expired');
    assert.notEqual((await bench.waive(undecided.run)).body['approvalId'], undecided.id);

    const unused = await bench.askAndApprove();
    const move = (interval: string) =>
      bench.it_.owner.query(
        `update fieldkeep.approval_decisions set decided_at = decided_at - $2::interval where approval = $1`,
        [unused.id, interval],
      );
    await move('59 min');
    assert.equal((await bench.get(unused.id)).body['status'], 'approved');
    await move('2 min');
    assert.deepEqual(said(await bench.waive(unused.run, unused.id)), [410, 'approval_expired']);
    assert.deepEqual(await bench.waivedRows(unused.run), []);
  });

  it('does not know what it never heard of', async () => {
    const { run, id } = await bench.ask();
    for (const unknown of [nowhere, 'x', `${id}0`]) {
      assert.deepEqual(said(await bench.waive(run, unknown)), [404, 'not_found']);
      assert.deepEqual(said(await bench.get(unknown)), [404, 'not_found']);
      assert.deepEqual(said(await bench.decide(unknown, 'boss')), [404, 'not_found']);
    }
    assert.deepEqual(said(await bench.waive(run, 'a b')), [400, 'request_invalid']);
    for (const body of [
      { decision: 'maybe', reason: 'x' },
      { decision: 'approve' },
      { decision: 'deny', reason: '' },
    ]) {
      const path = `/v1/approvals/${id}/decisions`;
      assert.equal((await bench.call('boss', 'POST', path, body)).status, 400, JSON.stringify(body));
    }
    assert.deepEqual(said(await bench.get(id, 'payroll-agent')), [403, 'forbidden']);
  });

  it('lists them newest first, a page at a time', async () => {
    for (let n = 0; n < 3; n += 1) await bench.ask();
    const list = (query = '', as = 'security-auditor') => bench.call(as, 'GET', `/v1/approvals${query}`);
    const all = (await list()).body.items!.map((each) => each['id']);
    const seen: unknown[] = [];
    for (let query = '?limit=2'; query !== '';) {
      const { items = [], nextCursor } = (await list(query)).body;
      seen.push(...items.map((each) => each['id']));
      assert.ok(items.length <= 2);
      query = nextCursor === undefined ? '' : `?limit=2&cursor=${nextCursor as string}`;
    }
    assert.ok(all.length > 4);
    assert.deepEqual(seen, all);
    const times = (await list()).body.items!.map((each) => each['createdAt'] as string);
    assert.deepEqual(times, times.toSorted().toReversed());
    assert.deepEqual(said(await list('?cursor=x')), [400, 'request_invalid']);
    assert.deepEqual(said(await list('', 'hr-agent')), [403, 'forbidden']);
  });

  it('keeps what was decided: the service adds and uses, and changes nothing', async () => {
    const { pool } = bench.it_.service;
    for (const statement of [
      'update fieldkeep.approval_decisions set person = person',
      'delete from fieldkeep.approval_decisions',
      'update fieldkeep.approvals set required = 1',
      'update fieldkeep.approvals set decide_by = now()',
      'delete from fieldkeep.approvals',
    ]) {
      await assert.rejects(pool.query(statement), { code: '42501' }, statement);
    }
  });
});

describe('operations/approval-store', () => {
  it('uses an approval once, whatever is asked of it', async () => {
    const bench = await openApproving();
    try {
      const { id } = await bench.ask();
      const use = () => transaction(bench.it_.service.pool, (tx) => setUsed(tx, id));
      assert.deepEqual([await use(), await use()], [true, false]);
    } finally {
      await bench.close();
    }
  });
});

describe('approvals through two processes', () => {
  it('make one approval of equal requests, count every decision once, and run once', async () => {
    const database = await createDatabase();
    const [one, two] = [
      await openTestService({ database, workers: false }),
      await openTestService({ database, workers: false }),
    ];
    const each = (path: string, body: object, names: readonly string[], headers: Record<string, string> = {}) =>
      Promise.all(
        names.flatMap((name) => [one, two].map((service) => service.call(name, 'POST', path, body, { headers }))),
      );
    try {
      for (let round = 0; round < 5; round += 1) {
        const run = await insertBlocked(one.owner, { family: 'bank', failures: { bank: ['1', '2'] } });
        const waive = `/v1/rotations/${run}/failures/waive`;
        const asked = await each(waive, { reason }, ['operator', 'operator', 'operator']);
        const [id, ...others] = new Set(asked.map(({ body }) => body['approvalId'] as string));
        assert.deepEqual(others, []);
        const names = ['security-auditor', 'security-lead'];
        const decided = await each(`/v1/approvals/${id}/decisions`, { decision: 'approve', reason }, names);
        assert.deepEqual(decided.map(({ status }) => status).toSorted(), [200, 200, 409, 409]);
        const ran = await each(waive, { reason }, ['operator', 'operator'], { 'approval-id': id! });
        assert.deepEqual(ran.map(({ body }) => body['code'] ?? body['waived']).toSorted(), [
          ...[2, 'approval_used', 'approval_used', 'approval_used'],
        ]);
      }
    } finally {
      await one.close();
      await two.close();
      await database.drop();
    }
  });
});
