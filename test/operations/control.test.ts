/** Runs are held, let go on and given up, by whoever may rotate, each with an entry. */
import assert from 'node:assert/strict';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { findRun } from '../../src/rotation/store.ts';
import { entriesOf, openTestService, type Reply, type TestService } from '../support/service.ts';
import { insertBlocked, readRun } from './runs.ts';

describe('pause, resume and cancel', () => {
  let it_: TestService;
  let woken = 0;
  before(async () => {
    it_ = await openTestService({ workers: false });
    it_.service.wake = () => void (woken += 1);
  });
  after(() => it_.close());

  const control = (id: string, verb: string, body?: object, as = 'operator') =>
    it_.call(as, 'POST', `/v1/rotations/${id}/${verb}`, body);
  const said = ({ status, body }: Reply) => [status, body['code']];
  async function entryOf(reply: Reply): Promise<Record<string, unknown>> {
    await unfoldAcknowledged(it_.service.pool);
    const entries = await entriesOf(it_.owner, reply.headers['x-request-id'] as string);
    assert.equal(entries.length, 1);
    return entries[0]!;
  }

  it('pauses, as often as one likes', async () => {
    const id = await insertBlocked(it_.owner, { family: 'bank', blocked: false });
    const paused = await control(id, 'pause', { reason: 'month end' });
    assert.equal(paused.status, 200, paused.text);
    assert.deepEqual([paused.body['id'], paused.body['family'], paused.body['version']], [id, 'bank', 2]);
    const since = (await readRun(it_.owner, id))['paused_at'];
    assert.ok(since instanceof Date);
    assert.equal((await control(id, 'pause')).status, 200);
    assert.deepEqual((await readRun(it_.owner, id))['paused_at'], since);
    const entry = await entryOf(paused);
    assert.deepEqual(
      [entry['action'], entry['class'], entry['keyVersion'], entry['purpose'], entry['outcome']],
      ['rotate', 'bank', 2, `pause of rotation ${id}: month end`, 'ok'],
    );
  });

  it('resumes: its rate is measured anew, and a blocked run is looked at at once', async () => {
    for (const blocked of [false, true]) {
      const id = await insertBlocked(it_.owner, { family: 'bank', blocked });
      await it_.owner.query(
        'update fieldkeep.rotations set paused_at = now(), rate = 1, rate_at = now() where id = $1',
        [id],
      );
      const before = woken;
      const resumed = await control(id, 'resume', {});
      assert.equal(resumed.status, 200, resumed.text);
      assert.equal(woken, before + 1);
      const run = await readRun(it_.owner, id);
      assert.deepEqual([run['paused_at'], run['rate_at'], run['rate']], [null, null, 1]);
      const { blockedAt, now } = (await findRun(it_.service.pool, id))!;
      if (blocked) assert.ok(now.getTime() - blockedAt!.getTime() > 86_400_000);
      else assert.equal(blockedAt, undefined);
      assert.equal((await entryOf(resumed))['purpose'], `resume of rotation ${id}`);
      assert.equal((await control(id, 'resume')).status, 200);
    }
  });

  it('cancels for good', async () => {
    for (const [body, why] of [[{ reason: 'not now' }, 'not now'] as const, [undefined, 'by operator'] as const]) {
      const id = await insertBlocked(it_.owner, { family: 'bank' });
      await control(id, 'pause');
      const cancelled = await control(id, 'cancel', body);
      assert.equal(cancelled.status, 200, cancelled.text);
      assert.equal(typeof cancelled.body['doneAt'], 'string');
      const run = await readRun(it_.owner, id);
      assert.deepEqual([run['cancelled'], run['paused_at']], [why, null]);
      assert.ok(run['done_at'] instanceof Date);
      for (const verb of ['pause', 'resume', 'cancel']) {
        const late = await control(id, verb);
        assert.deepEqual(said(late), [409, 'conflict']);
        const entry = await entryOf(late);
        assert.deepEqual([entry['outcome'], entry['code']], ['failed', 'conflict']);
      }
    }
  });

  it('ends a run once when many cancel it, and each is told how it ended', async () => {
    const id = await insertBlocked(it_.owner, { family: 'bank' });
    const replies = await Promise.all(Array.from({ length: 6 }, (_, i) => control(id, 'cancel', { reason: `${i}` })));
    assert.equal(replies.filter(({ status }) => status === 200).length, 1);
    for (const reply of replies) assert.equal((await entryOf(reply))['code'], reply.body['code']);
    const winner = replies.findIndex(({ status }) => status === 200);
    assert.equal((await readRun(it_.owner, id))['cancelled'], `${winner}`);
  });

  it('never cancels an emergency', async () => {
    const id = await insertBlocked(it_.owner, { family: 'bank', compromised: true });
    const refused = await control(id, 'cancel');
    assert.deepEqual(said(refused), [409, 'conflict']);
    assert.equal(refused.body['detail'], 'An emergency rotation can be paused, not cancelled.');
    assert.equal((await control(id, 'pause')).status, 200);
    assert.equal((await control(id, 'resume')).status, 200);
    assert.equal((await readRun(it_.owner, id))['done_at'], null);
  });

  it('never cancels an adoption, which would begin again: the policy ends it', async () => {
    const refused = await control(await insertBlocked(it_.owner), 'cancel');
    assert.deepEqual(said(refused), [409, 'conflict']);
    assert.match(refused.body['detail'] as string, /"adopt" is taken from the columns/);
    await it_.owner.query(`update fieldkeep.rotations set done_at = now() where kind = 'adoption' and done_at is null`);
  });

  it('is for who may rotate', async () => {
    const id = await insertBlocked(it_.owner, { family: 'bank' });
    const adoption = await insertBlocked(it_.owner);
    for (const verb of ['pause', 'resume', 'cancel']) {
      for (const name of ['payroll-agent', 'security-auditor']) {
        const refused = await control(id, verb, {}, name);
        assert.deepEqual([...said(refused), refused.body['missingScope']], [403, 'forbidden', 'rotate:*']);
      }
      assert.deepEqual(said(await control('none', verb)), [404, 'not_found']);
      assert.deepEqual(said(await control(id, verb, { reason: 1 })), [400, 'request_invalid']);
      assert.deepEqual(said(await control(id, verb, { dryRun: true })), [400, 'request_invalid']);
    }
    assert.equal((await readRun(it_.owner, id))['paused_at'], null);
    const paused = await control(adoption, 'pause');
    assert.equal((await entryOf(paused))['purpose'], `pause of adoption ${adoption}`);
  });

  it('takes a token narrowed to the family, and to no other', async () => {
    const id = await insertBlocked(it_.owner, { family: 'bank' });
    const pause = async (scope: string) => {
      const token = await it_.issuer.issueToken({ audience: 'fieldkeep', subject: 'operator', scope, ttlSeconds: 60 });
      return await it_.call('', 'POST', `/v1/rotations/${id}/pause`, {}, { token });
    };
    assert.deepEqual(said(await pause('rotate:ssn')), [403, 'forbidden']);
    assert.equal((await pause('rotate:bank')).status, 200);
  });
});
