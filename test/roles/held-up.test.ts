/**
 * What somebody can hold up who has the login of an api process and nothing else: heartbeats, notices and the epoch are its to
 * write. Nothing is revealed, nothing is lost, and all goes on once they are gone.
 */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { openPool, type Pool } from '../../src/db.ts';
import { waitUntil } from '../operations/support.ts';
import { openTestService, type TestService } from '../support/service.ts';

const rows = 60;

describe('whoever has the login of an api process and forges', function () {
  this.timeout(90_000);
  let it_: TestService;
  let thief: Pool;
  let sealed: { id: string; bank: string }[];
  const encrypt = () =>
    it_.call('payroll-agent', 'POST', '/v1/encrypt', {
      ...{ class: 'bank', value: 'GB29', context: { table: 'demo.employees', column: 'bank', row: '1' } },
    });
  const read = async () => {
    const found = await it_.owner.query<{ id: string; bank: string }>(
      'select id::text, bank from demo.employees e order by e.id',
    );
    return found.rows;
  };
  const phase = async (id: string) => (await it_.call('operator', 'GET', `/v1/rotations/${id}`)).body['phase'];

  before(async () => {
    it_ = await openTestService();
    thief = openPool(it_.database.apiUrl, { max: 2, name: 'thief' });
    await it_.owner.query(
      `insert into demo.employees (tenant, name, bank) select 'acme', 'n', 'b' || n from generate_series(1, ${rows}) n`,
    );
    await waitUntil(async () => (await read()).every(({ bank }) => bank.startsWith('fe1.')), 'adopted', 60_000);
    sealed = await read();
  });
  after(async () => {
    await thief.end();
    await it_.close();
  });

  it('epochs: calls are computed again or refused, never answered wrong, and work afterwards', async () => {
    let raising = true;
    const raise = (async () => {
      for (let n = 0; raising && n < 10_000; n += 1) await thief.query('select fieldkeep.raise_epoch()');
    })();
    const answers = [];
    for (let n = 0; n < 10; n += 1) answers.push(await encrypt());
    raising = false;
    await raise;
    for (const { status, text } of answers) assert.ok([200, 503, 504].includes(status), text);
    assert.equal((await encrypt()).status, 200);
  });

  it('a heartbeat of nobody: the next version waits for it, and goes on once it is deleted', async () => {
    await thief.query(
      `insert into fieldkeep.instances (id) values ('00000000-0000-0000-0000-00000000000f');
       update fieldkeep.instances set heartbeat_at = 'infinity' where id = '00000000-0000-0000-0000-00000000000f'`,
    );
    const { body, status, text } = await it_.call('operator', 'POST', '/v1/keys/bank/rotate', {});
    assert.equal(status, 202, text);
    const id = body['id'] as string;
    await sleep(3_000);
    assert.equal(await phase(id), 'pending');
    assert.equal((await encrypt()).status, 200, 'the version before seals');
    await it_.owner.query(`delete from fieldkeep.instances where heartbeat_at = 'infinity'`);
    await waitUntil(async () => (await phase(id)) === 'done', 'done', 60_000);
  });

  it('that nobody lives, while keys rotate: every value opens, and is what it was', async () => {
    let forging = true;
    const forge = (async () => {
      for (let n = 0; forging && n < 10_000; n += 1) {
        await thief.query('delete from fieldkeep.instances'); // takes along what they were ready for
        await sleep(50);
      }
    })();
    const { body, status, text } = await it_.call('operator', 'POST', '/v1/keys/bank/rotate', {});
    assert.equal(status, 202, text);
    await sleep(4_000);
    forging = false;
    await forge;
    await waitUntil(async () => (await phase(body['id'] as string)) === 'done', 'done', 60_000);
    const now = await read();
    assert.ok(now.every(({ bank }, i) => bank.startsWith('fe1.bank.3.') && bank !== sealed[i]!.bank));
    for (const [i, { id, bank }] of now.entries()) {
      const context = { table: 'demo.employees', column: 'bank', row: id };
      const answer = await it_.call('payroll-agent', 'POST', '/v1/decrypt', { envelope: bank, context, view: 'full' });
      assert.equal(answer.body['value'], `b${i + 1}`, answer.text);
    }
  });
});
