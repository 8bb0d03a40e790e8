/** Rows are given up as they were agreed to, where they are in the way, by whoever may rotate. */
import assert from 'node:assert/strict';
import { parsePolicy } from '../../src/policy/policy.ts';
import type { PolicyFile } from '../../src/policy/schema.ts';
import { openTestService } from '../support/service.ts';
import { nowhere, openApproving, reason, said, shippedFile, type Approving } from './approving.ts';
import { insertBlocked, insertFailed } from './runs.ts';

describe('waivers', () => {
  let bench: Approving;
  before(async () => {
    bench = await openApproving();
  });
  after(() => bench.close());

  it('is for one request only: this principal, this reason, these rows, this run', async () => {
    const { run, id } = await bench.askAndApprove();
    const mismatch = [422, 'approval_mismatch'];
    assert.deepEqual(said(await bench.waive(run, id, { as: 'boss' })), mismatch);
    assert.deepEqual(said(await bench.waive(run, id, { reason: 'another' })), mismatch);
    await insertFailed(bench.it_.owner, run, 'bank', ['9']);
    assert.deepEqual(said(await bench.waive(run, id)), mismatch);
    const drop = (row: string) =>
      bench.it_.owner.query('delete from fieldkeep.rotation_failures where rotation = $1 and row = $2', [run, row]);
    await drop('9');
    const setCode = (code: string) =>
      bench.it_.owner.query(`update fieldkeep.rotation_failures set code = $2 where rotation = $1 and row = '7'`, [
        run,
        code,
      ]);
    await setCode('envelope_malformed');
    assert.deepEqual(said(await bench.waive(run, id)), mismatch);
    await setCode('decryption_failed');
    await drop('8');
    await insertFailed(bench.it_.owner, run, 'bank', ['6']); // as many, but others
    assert.deepEqual(said(await bench.waive(run, id)), mismatch);
    assert.deepEqual(await bench.waivedRows(run), []);
    const other = await insertBlocked(bench.it_.owner, { family: 'salary', failures: { bank: ['7', '8'] } });
    assert.deepEqual(said(await bench.waive(other, id)), mismatch);
    await drop('6');
    await insertFailed(bench.it_.owner, run, 'bank', ['8']);
    assert.equal((await bench.waive(run, id)).status, 200);
    await insertFailed(bench.it_.owner, run, 'bank', ['9']);
    assert.deepEqual(await bench.waivedRows(run), [
      ['7', id],
      ['8', id],
    ]);
    assert.equal((await bench.waive(run)).status, 202, 'what failed later is asked for anew');
  });

  it('waives nothing when a row fails at the last moment', async () => {
    const { run, id } = await bench.askAndApprove();
    // Between what the call looked at and what it writes: the store sees one row more.
    const { audit } = bench.it_.service;
    const append = audit.append.bind(audit);
    audit.append = async (...args) => {
      audit.append = append;
      await insertFailed(bench.it_.owner, run, 'bank', ['9']);
      return await append(...args);
    };
    const reply = await bench.waive(run, id);
    assert.deepEqual(said(reply), [422, 'approval_mismatch']);
    assert.equal((await bench.entryOf(reply))['code'], 'approval_mismatch');
    assert.deepEqual(await bench.waivedRows(run), []);
    assert.equal((await bench.get(id)).body['status'], 'approved', 'and the approval is not used up');
  });

  it('is asked for only where rows are in the way', async () => {
    const failures = { bank: ['1'] };
    for (const spec of [{ failures, blocked: false }, {}, { failures: { bank: [] } }]) {
      const run = await insertBlocked(bench.it_.owner, { family: 'bank', ...spec });
      assert.deepEqual(said(await bench.waive(run)), [409, 'conflict'], JSON.stringify(spec));
    }
    const run = await insertBlocked(bench.it_.owner, { family: 'bank', failures });
    await bench.it_.owner.query('update fieldkeep.rotations set done_at = now() where id = $1', [run]);
    assert.deepEqual(said(await bench.waive(run)), [409, 'conflict']);
    assert.deepEqual(said(await bench.waive('none')), [404, 'not_found']);
    assert.deepEqual(said(await bench.waive(nowhere)), [404, 'not_found']);
    const long = await bench.call('operator', 'POST', `/v1/rotations/${run}/failures/waive`, {});
    assert.deepEqual(said(long), [400, 'request_invalid']);
  });

  it('is for who may rotate the family, or every class of an adoption', async () => {
    const failures = { bank: ['1'] };
    const ssn = await insertBlocked(bench.it_.owner, { family: 'ssn', failures });
    const adoption = await insertBlocked(bench.it_.owner, { failures });
    const refused = await bench.waive(ssn, undefined, { as: 'boss' });
    assert.deepEqual([...said(refused), refused.body['missingScope']], [403, 'forbidden', 'rotate:ssn']);
    const entry = await bench.entryOf(refused);
    assert.deepEqual([entry['decision'], entry['outcome'], entry['class']], ['deny', 'denied', 'ssn']);
    assert.deepEqual(said(await bench.waive(adoption, undefined, { as: 'boss' })), [403, 'forbidden']);
    assert.deepEqual(said(await bench.waive(nowhere, undefined, { as: 'boss' })), [404, 'not_found']);
    assert.deepEqual(said(await bench.waive(nowhere, undefined, { as: 'security-lead' })), [403, 'forbidden']);
    assert.equal((await bench.waive(adoption)).status, 202);
  });
});

describe('approvals where the policy has too few people', () => {
  const few: [string, (file: PolicyFile) => void, RegExp][] = [
    ['nobody', (changed) => delete changed.approvals, /names nobody who may approve/],
    ['too few', (changed) => (changed.people['security-lead']!.grants = ['audit']), /names too few people/],
  ];
  for (const [name, change, expected] of few) {
    it(`refuses a waiver: ${name}`, async () => {
      const changed = shippedFile();
      change(changed);
      const it_ = await openTestService({ policy: parsePolicy(JSON.stringify(changed)), workers: false });
      try {
        const run = await insertBlocked(it_.owner, { family: 'bank', failures: { bank: ['1'] } });
        const reply = await it_.call('operator', 'POST', `/v1/rotations/${run}/failures/waive`, { reason });
        assert.deepEqual([reply.status, reply.body['code']], [403, 'forbidden']);
        assert.match(reply.text, expected);
      } finally {
        await it_.close();
      }
    });
  }
});
