import assert from 'node:assert/strict';
import { openTestService, type TestService } from '../support/service.ts';

const canary = 'CANARY7f3a';
const at = (column: string, row: string) => ({ table: 'demo.employees', column, row });

describe('secrets', () => {
  let it_: TestService;
  before(async () => {
    it_ = await openTestService();
  });
  after(() => it_.close());

  it('show up in no table, log line, problem or metric', async function () {
    this.timeout(60_000);
    const problems: string[] = [];
    const ask = async (agent: string, path: string, body: unknown, token?: string) => {
      const answer = await it_.call(agent, 'POST', path, body, token === undefined ? {} : { token });
      if (answer.status !== 200) problems.push(answer.text);
      return answer;
    };
    const value = `${canary}-value`;
    const encrypted = await ask('payroll-agent', '/v1/encrypt', { class: 'bank', value, context: at('bank', '1') });
    const envelope = encrypted.body['envelope'] as string;
    await ask('payroll-agent', '/v1/decrypt', { envelope, context: at('bank', '1'), view: 'full' });
    await ask('payroll-agent', '/v1/decrypt', { envelope, context: at('bank', '2'), view: 'full' });
    await ask('payroll-agent', '/v1/encrypt', { class: canary, value, context: at('bank', '1') });
    await ask('payroll-agent', '/v1/encrypt', { class: 'bank', value, context: at('bank', canary) });
    await ask('payroll-agent', '/v1/encrypt', { class: 'bank', value: [value], context: at('bank', '1') });
    await ask('payroll-agent', '/v1/encrypt', `{"value":"${value}"`);
    await ask('payroll-agent', '/v1/encrypt', { class: 'bank', value: `${value}\ud800`, context: at('bank', '1') });
    await ask('cx-agent', '/v1/match', { envelope: value, context: at('ssn', '1'), candidate: value });
    await ask('hr-agent', '/v1/search-tokens', {
      class: 'ssn',
      value,
      context: { table: 'demo.employees', column: 'ssn' },
    });
    const token = `${canary}.${canary}.${canary}`;
    await ask('', '/v1/encrypt', { class: 'bank', value, context: at('bank', '1') }, token);
    const items = [
      { envelope, context: at('bank', '1') },
      { envelope: value, context: at('bank', '1') },
    ];
    await ask('payroll-agent', '/v1/decrypt', { items, view: 'full' });

    // Plaintext to adopt, some of it stored by a table that then refuses the update and quotes the row in its error.
    await it_.owner.query(`insert into demo.employees (id, tenant, name, ssn) values (1, 'acme', 'x', $1)`, [
      `${value} 1`,
    ]);
    await it_.owner.query(`alter table demo.employees add constraint small check (length(ssn) < 40) not valid`);
    it_.service.wake();
    await new Promise((resolve) => setTimeout(resolve, 4_000));

    const key = await it_.service.keyring.getOrMake('acme', 'bank', 1);
    assert.equal(String(key), '[DataKey]');
    const tables = await it_.owner.query<{ name: string }>(
      `select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname in ('fieldkeep', 'fieldkeep_jobs')`,
    );
    let texts = 0;
    for (const { name } of tables.rows) {
      const { rows } = await it_.owner.query<{ row: string }>(`select t::text as row from ${name} t`);
      texts += rows.length;
      for (const { row } of rows) {
        assert.ok(!row.includes(canary), `${name} has the canary: ${row.slice(0, 300)}`);
        assert.ok(!row.includes(envelope), `${name} has an envelope`);
      }
    }
    assert.ok(texts > 30, `${texts} rows were searched`);
    assert.ok(problems.length >= 8);
    for (const text of [...problems, it_.logged(), await it_.metrics()])
      assert.ok(!text.includes(canary), text.slice(0, 300));
    assert.ok(it_.logged().includes('"route":"/v1/decrypt"'), 'requests are logged');
    const failures = await it_.owner.query<{ code: string }>('select distinct code from fieldkeep.rotation_failures');
    assert.deepEqual(failures.rows, [{ code: 'not_stored:23514' }], 'the refused update is told by its code');
  });
});
