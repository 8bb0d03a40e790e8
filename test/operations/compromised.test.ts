/** What a compromised version still opens, and for whom, asked of a whole service. */
import assert from 'node:assert/strict';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import type { Policy } from '../../src/policy/policy.ts';
import { policyWith } from '../policy/support.ts';
import { entriesOf, openTestService, type CallOptions, type Reply, type TestService } from '../support/service.ts';
import { holdActivation, waitForActive } from './support.ts';

const iban = 'GB29 NWBK 6016 1331 9268 19';
const at = (column: string, row = '1') => ({ table: 'demo.employees', column, row });

/** `plain` and `incident` hold the same grants; those of `incident` cover compromised versions. */
const policy: Policy = policyWith((file) => {
  const scopes = ['decrypt:*:full', 'match:*', 'reencrypt:*'];
  file.agents['plain'] = { tenants: ['*'], grants: scopes };
  file.agents['incident'] = {
    tenants: ['*'],
    grants: scopes.map((scope) => ({ scope, compromised: true })),
    deny: ['match:ssn'],
  };
  file.people['ann'] = { tenants: ['*'], grants: ['decrypt:*:last4'] };
  file.people['officer'] = { tenants: ['*'], grants: [{ scope: 'decrypt:*:last4', compromised: true }] };
  file.classes['salary']!.compromised = 'deny';
});

describe('values of a compromised version', () => {
  let it_: TestService;
  const sealed = new Map<string, string>();

  before(async () => {
    it_ = await openTestService({ policy });
    for (const [column, value] of [
      ['bank', iban],
      ['salary', '61500'],
      ['ssn', '536-22-1234'],
    ] as const) {
      const body = { class: column, value, context: at(column) };
      const answer = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body);
      assert.equal(answer.status, 200, answer.text);
      sealed.set(column, answer.body['envelope'] as string);
    }
  });
  after(() => it_.close());

  const onBehalf = async (agent: string, person: string): Promise<CallOptions> => ({
    token: await it_.issuer.issueToken({
      ...{ audience: 'fieldkeep', subject: person, actor: agent, tenant: 'acme', ttlSeconds: 60 },
    }),
  });
  const decrypt = (agent: string, column: string, view = 'full', options: CallOptions = {}) =>
    it_.call(agent, 'POST', '/v1/decrypt', { envelope: sealed.get(column), context: at(column), view }, options);
  const match = (agent: string, column: string, candidate: string) =>
    it_.call(agent, 'POST', '/v1/match', { envelope: sealed.get(column), context: at(column), candidate });
  const reencrypt = (agent: string, column: string) =>
    it_.call(agent, 'POST', '/v1/reencrypt', { envelope: sealed.get(column), context: at(column) });
  const encrypt = (column: string) =>
    it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: column, value: '1', context: at(column, '2') });
  const searchTokens = async () => {
    const body = { class: 'ssn', value: '536221234', context: { table: 'demo.employees', column: 'ssn' } };
    return (await it_.call('hr-agent', 'POST', '/v1/search-tokens', body)).body['tokens'] as string[];
  };

  async function entryOf(answer: Reply): Promise<Record<string, unknown>> {
    await unfoldAcknowledged(it_.service.pool);
    const entries = await entriesOf(it_.owner, answer.headers['x-request-id'] as string);
    assert.equal(entries.length, 1);
    return entries[0]!;
  }

  async function isRefused(answer: Reply, version: string, scope: string): Promise<void> {
    assert.equal(answer.status, 403, answer.text);
    const { code, detail, missingScope } = answer.body;
    assert.deepEqual(
      { code, detail, missingScope },
      {
        code: 'forbidden',
        detail: `${version} is compromised, and no grant of ${scope} covers that.`,
        missingScope: scope,
      },
    );
    const entry = await entryOf(answer);
    assert.deepEqual(
      [entry['decision'], entry['outcome'], entry['ruleId'], entry['code'], entry['output'], entry['input']],
      ['deny', 'denied', 'compromised', 'forbidden', undefined, undefined],
    );
  }

  it('open as ever before', async () => {
    for (const agent of ['plain', 'incident']) {
      assert.equal((await decrypt(agent, 'bank')).body['value'], iban);
      assert.equal((await match(agent, 'bank', iban)).body['match'], true);
      assert.match((await reencrypt(agent, 'bank')).body['envelope'] as string, /^fe1\.bank\.1\./);
    }
    assert.equal((await decrypt('', 'bank', 'last4', await onBehalf('incident', 'ann'))).body['value'], '6819');
    assert.equal((await searchTokens()).length, 1);
  });

  it('open for grants that say so, from the answer on, while nothing of the class is encrypted', async () => {
    const release = await holdActivation(it_.owner);
    try {
      for (const family of ['bank', 'salary', 'ssn']) {
        const answer = await it_.call('operator', 'POST', `/v1/keys/${family}/rotate`, { compromised: true });
        assert.equal(answer.status, 202, answer.text);
        assert.deepEqual([answer.body['version'], answer.body['phase']], [2, 'pending']);
        const entry = await entryOf(answer);
        assert.deepEqual([entry['purpose'], entry['keyVersion']], ['version 1 is compromised', 2]);
      }
      await isRefused(await decrypt('plain', 'bank'), 'Version 1 of family bank', 'decrypt:bank:full');
      await isRefused(await match('plain', 'bank', iban), 'Version 1 of family bank', 'match:bank');
      await isRefused(await reencrypt('plain', 'bank'), 'Version 1 of family bank', 'reencrypt:bank');
      await isRefused(await decrypt('plain', 'bank', 'exists'), 'Version 1 of family bank', 'decrypt:bank:exists');
      await isRefused(await decrypt('incident', 'salary'), 'Version 1 of family salary', 'decrypt:salary:full');
      assert.equal((await decrypt('incident', 'bank')).body['value'], iban);
      assert.equal((await match('incident', 'bank', iban)).body['match'], true);
      assert.equal(
        (await searchTokens()).some((token) => token.startsWith('b1.')),
        true,
      );
      for (const refused of [await encrypt('bank'), await reencrypt('incident', 'bank')]) {
        assert.deepEqual([refused.status, refused.body['code']], [503, 'keys_not_ready']);
        assert.equal(refused.body['detail'], 'Version 1 of family bank is compromised; version 2 is on its way.');
        assert.ok(refused.headers['retry-after']);
      }
      const ready = await it_.call('', 'GET', '/readyz', undefined, { token: '' });
      assert.equal(ready.status, 200, ready.text);
      assert.match(ready.text, /no active key for bank until its next version is ready/);
      const keys = await it_.call('operator', 'GET', '/v1/keys/bank');
      assert.equal(keys.body['active'], undefined);
      assert.equal((keys.body['versions'] as { state: string }[])[0]!.state, 'compromised');
    } finally {
      await release();
    }
  });

  it('open for the agent and the person when both may, and never against a deny', async () => {
    const refused = await decrypt('', 'bank', 'last4', await onBehalf('incident', 'ann'));
    await isRefused(refused, 'Version 1 of family bank', 'decrypt:bank:last4');
    const other = await decrypt('', 'bank', 'last4', await onBehalf('plain', 'officer'));
    await isRefused(other, 'Version 1 of family bank', 'decrypt:bank:last4');
    assert.equal((await decrypt('', 'bank', 'last4', await onBehalf('incident', 'officer'))).body['value'], '6819');
    const denied = await match('incident', 'ssn', '1');
    assert.deepEqual([denied.status, (await entryOf(denied))['ruleId']], [403, 'incident/deny/0']);
    const stranger = await decrypt('cx-agent', 'bank', 'last4');
    assert.equal(stranger.body['detail'], 'The principal lacks the scope decrypt:bank:last4.');
  });

  it('are replaced by reencrypting, and a batch answers each item for itself', async () => {
    for (const family of ['bank', 'ssn']) await waitForActive(it_, family, 2);
    assert.deepEqual(
      (await searchTokens()).map((token) => token.slice(0, 3)),
      ['b2.', 'b1.'],
    );
    assert.equal((await encrypt('bank')).body['version'], 2);
    const renewed = (await reencrypt('incident', 'bank')).body['envelope'] as string;
    assert.match(renewed, /^fe1\.bank\.2\./);
    const items = [
      { ref: 'old', envelope: sealed.get('bank'), context: at('bank') },
      { ref: 'new', envelope: renewed, context: at('bank') },
      { ref: 'salary', envelope: sealed.get('salary'), context: at('salary') },
    ];
    const ask = async (agent: string) => {
      const answer = await it_.call(agent, 'POST', '/v1/decrypt', { items, view: 'full' });
      const values = answer.body.items!.map((item) => item['value'] ?? (item['error'] as { code: string }).code);
      const { decision, outcome, ruleId } = await entryOf(answer);
      return { values, decision, outcome, ruleId };
    };
    const mixed = { decision: 'allow', outcome: 'partial', ruleId: undefined };
    assert.deepEqual(await ask('plain'), { values: ['forbidden', iban, 'forbidden'], ...mixed });
    assert.deepEqual(await ask('incident'), { values: [iban, iban, 'forbidden'], ...mixed });
    items.splice(1, 1);
    const none = { decision: 'deny', outcome: 'denied', ruleId: 'compromised' };
    assert.deepEqual(await ask('plain'), { values: ['forbidden', 'forbidden'], ...none });
  });

  it('are told of by whoami', async () => {
    const { body } = await it_.call('incident', 'GET', '/v1/whoami');
    assert.deepEqual(body['grants'], [
      'decrypt:*:full including compromised versions',
      'match:* including compromised versions',
      'reencrypt:* including compromised versions',
      'not match:ssn',
    ]);
  });
});
