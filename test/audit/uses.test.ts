/** When a version was last used is taken from the log: what was released, and nothing that somebody says beside it. */
import assert from 'node:assert/strict';
import { unfold } from '../../src/audit/store.ts';
import { openTestService, type TestService } from '../support/service.ts';

describe('uses of key versions', () => {
  let it_: TestService;
  before(async () => {
    it_ = await openTestService({ workers: false });
  });
  after(() => it_.close());

  async function listUses(): Promise<string[]> {
    await unfold(it_.service.pool, 5_000);
    const { rows } = await it_.owner.query<{ use: string }>(
      `select family || '.' || version as use from fieldkeep.key_uses order by 1`,
    );
    return rows.map(({ use }) => use);
  }

  it('are known once the entry is in order, also of the version that re-encrypting opens', async () => {
    const context = (row: string) => ({ table: 'demo.employees', column: 'bank', row });
    const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', {
      class: 'bank',
      value: 'x',
      context: context('1'),
    });
    assert.deepEqual(await listUses(), ['bank.1']);
    await it_.owner.query('delete from fieldkeep.key_uses');
    const { envelope } = sealed.body;
    const renewed = await it_.call('payroll-agent', 'POST', '/v1/reencrypt', { envelope, context: context('1') });
    assert.equal(renewed.status, 200, renewed.text);
    assert.deepEqual(await listUses(), ['bank.1']);
  });

  it('are none of a call that was denied', async () => {
    await it_.owner.query('delete from fieldkeep.key_uses');
    const context = { table: 'demo.employees', column: 'ssn', row: '1' };
    const denied = await it_.call('invoice-agent', 'POST', '/v1/encrypt', { class: 'ssn', value: '1', context });
    assert.equal(denied.status, 403);
    assert.deepEqual(await listUses(), []);
  });

  it('that are no names of versions stop nothing', async () => {
    const before = await it_.owner.query('select from fieldkeep.audit_entries');
    const { rows } = await it_.owner.query<{ stream: string }>(
      'insert into fieldkeep.audit_streams (instance) values (gen_random_uuid()) returning stream',
    );
    await it_.owner.query(
      `insert into fieldkeep.audit_intake (stream, seq, lines, entries, prev_hash, hash, uses)
       values ($1, 1, '{"action":"x"}', 1, $2, $2, 'ssn.1e9 bank.99999999999999999999 bank.7 . ssn.1'' x.y.z  ')`,
      [rows[0]!.stream, Buffer.alloc(32)],
    );
    assert.deepEqual(await listUses(), []);
    const after = await it_.owner.query('select from fieldkeep.audit_entries');
    assert.equal(after.rowCount, before.rowCount! + 1);
  });
});
