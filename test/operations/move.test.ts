/** Re-encrypting a value for another place: a right of its own, and an entry that both places lead to. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { rowDigest } from '../../src/crypto/data-key.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { openTestService, type Reply, type TestService } from '../support/service.ts';

const table = 'demo.employees';
const at = (column: string, row: string) => ({ table, column, row });
const iban = 'GB29 NWBK 6016 1331 9268 19';

const file = JSON.parse(readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8')) as {
  agents: Record<string, object>;
};
const mover = { tenants: ['*'], grants: ['reencrypt:*', 'move:bank'] };
const narrow = { tenants: ['*'], grants: ['move:*'] };
const denied = { tenants: ['*'], grants: ['reencrypt:*', 'move:*'], deny: ['move:bank'] };
const policy = parsePolicy(JSON.stringify({ ...file, agents: { ...file.agents, mover, narrow, denied } }));

describe('moving a value', () => {
  let it_: TestService;
  before(async () => {
    it_ = await openTestService({ policy });
  });
  after(() => it_.close());

  async function seal(column: string, row: string, value = iban): Promise<string> {
    const body = { class: column, value, context: at(column, row) };
    const answer = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body);
    assert.equal(answer.status, 200, answer.text);
    return answer.body['envelope'] as string;
  }
  const reencrypt = (agent: string, body: object, token?: string) =>
    it_.call(agent, 'POST', '/v1/reencrypt', body, token === undefined ? {} : { token });
  const open = (envelope: string, row: string) =>
    it_.call('payroll-agent', 'POST', '/v1/decrypt', { envelope, context: at('bank', row), view: 'full' });

  type Entry = Record<string, unknown>;
  const digestOf = async (column: string, row: string) =>
    rowDigest(await it_.service.keyring.getOrMake('acme', 'audit', 1), 1, table, column, row);
  async function entriesAt(column: string, row: string): Promise<Entry[]> {
    const digest = encodeURIComponent(await digestOf(column, row));
    const found = await it_.call('security-auditor', 'GET', `/v1/audit/entries?rowDigest=${digest}&action=reencrypt`);
    assert.equal(found.status, 200, found.text);
    return found.body.items!.map((item) => item['entry'] as Entry);
  }
  function isForbidden(answer: Reply, scope: string): void {
    assert.equal(answer.status, 403, answer.text);
    assert.deepEqual([answer.body['code'], answer.body['missingScope']], ['forbidden', scope]);
  }

  it('opens in the new place alone, and both places find the entry', async () => {
    const envelope = await seal('bank', '4');
    const moved = await reencrypt('mover', { envelope, context: at('bank', '4'), to: at('bank', '5') });
    assert.equal(moved.status, 200, moved.text);
    assert.equal((await open(moved.body['envelope'] as string, '5')).body['value'], iban);
    assert.equal((await open(moved.body['envelope'] as string, '4')).status, 422);
    const requestId = moved.headers['x-request-id'];
    for (const row of ['4', '5']) {
      const [entry, ...others] = await entriesAt('bank', row);
      assert.deepEqual(others, []);
      assert.equal(entry!['requestId'], requestId);
      const { rowDigest: from, toTable, toColumn, toRowDigest } = entry!;
      assert.deepEqual(
        { from, toTable, toColumn, toRowDigest },
        {
          from: await digestOf('bank', '4'),
          toTable: table,
          toColumn: 'bank',
          toRowDigest: await digestOf('bank', '5'),
        },
      );
    }
  });

  it('takes both scopes, of the grants and of the token, and a refusal names both places, too', async () => {
    const envelope = await seal('bank', '14');
    const body = { envelope, context: at('bank', '14'), to: at('bank', '15') };
    isForbidden(await reencrypt('payroll-agent', body), 'move:bank');
    isForbidden(await reencrypt('denied', body), 'move:bank');
    isForbidden(await reencrypt('narrow', body), 'reencrypt:bank');
    const token = (scope: string) =>
      it_.issuer.issueToken({ audience: 'fieldkeep', subject: 'mover', ttlSeconds: 60, tenant: 'acme', scope });
    isForbidden(await reencrypt('mover', body, await token('reencrypt:bank')), 'move:bank');
    assert.equal((await reencrypt('mover', body, await token('reencrypt:bank move:bank'))).status, 200);
    const ssn = { envelope: await seal('ssn', '14', '536-22-1234'), context: at('ssn', '14'), to: at('ssn', '15') };
    isForbidden(await reencrypt('mover', ssn), 'move:ssn');
    const entries = await entriesAt('bank', '15');
    assert.deepEqual(
      entries.map(({ decision, outcome, code, ruleId }) => [decision, outcome, code, ruleId]),
      [
        ['allow', 'ok', undefined, 'mover/grants/0'],
        ['deny', 'denied', 'forbidden', 'token'],
        ['deny', 'denied', 'forbidden', 'default'],
        ['deny', 'denied', 'forbidden', 'denied/deny/0'],
        ['deny', 'denied', 'forbidden', 'default'],
      ],
    );
    assert.deepEqual(entries, await entriesAt('bank', '14'));
  });

  it('is no move where the place is the same, and that entry has no second place', async () => {
    const envelope = await seal('bank', '24');
    const body = { envelope, context: at('bank', '24'), to: at('bank', '24') };
    assert.equal((await reencrypt('payroll-agent', body)).status, 200);
    const [entry] = await entriesAt('bank', '24');
    assert.deepEqual(
      Object.keys(entry!).filter((name) => name.startsWith('to')),
      [],
    );
  });

  it('finds a batch by each place of each item, allowed or not', async () => {
    const items = [
      { envelope: await seal('bank', '34'), context: at('bank', '34'), to: at('bank', '35') },
      { envelope: await seal('ssn', '34', '536-22-1234'), context: at('ssn', '34'), to: at('ssn', '36') },
      { envelope: await seal('bank', '37'), context: at('bank', '37') },
    ];
    const answer = await reencrypt('mover', { items });
    const codes = answer.body.items!.map((item) => (item['error'] as { code: string } | undefined)?.code);
    assert.deepEqual(codes, [undefined, 'forbidden', undefined]);
    const requestId = answer.headers['x-request-id'];
    const places = [at('bank', '34'), at('bank', '35'), at('ssn', '34'), at('ssn', '36'), at('bank', '37')];
    for (const { column, row } of places) {
      assert.deepEqual(
        (await entriesAt(column, row)).map((entry) => entry['requestId']),
        [requestId],
        `${column} ${row}`,
      );
    }
  });

  it('refuses another class, and a row that is not spelled as Postgres spells it', async () => {
    const envelope = await seal('bank', '44');
    for (const to of [at('salary', '45'), at('bank', '05')]) {
      const answer = await reencrypt('mover', { envelope, context: at('bank', '44'), to });
      assert.deepEqual([answer.status, answer.body['code']], [400, 'request_invalid']);
    }
  });

  it('is covered by a grant for an incident through reencrypt alone', () => {
    const flagged = { scope: 'move:bank', compromised: true };
    const agents = { ...file.agents, mover: { ...mover, grants: [flagged] } };
    assert.throws(() => parsePolicy(JSON.stringify({ ...file, agents })), /move opens no value/);
  });
});
