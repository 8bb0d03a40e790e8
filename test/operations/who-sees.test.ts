/** Who sees what: every operation for an agent of a tenant, for a person of a tenant who reads the audit, and for the system. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import type { OperationName } from '../../src/http/routes.ts';
import { routes } from '../../src/http/routes.ts';
import { openTestService, type Reply, type TestService } from '../support/service.ts';
import { policyWith } from '../policy/support.ts';

const fieldGrants = ['encrypt', 'decrypt', 'reencrypt', 'match', 'search'].map((action) => `${action}:*`);
const policy = policyWith((file) => {
  file.agents['helper'] = { tenants: ['*'], grants: [...fieldGrants, 'audit'] };
  file.agents['nobody'] = { tenants: ['*'], grants: [] };
  file.people['ann'] = { tenants: ['*'], grants: ['audit'] };
  file.people['operator'] = { system: true, grants: ['rotate:*', 'destroy:*', 'audit', 'approve'] };
});

const place = { table: 'demo.employees', column: 'ssn', row: '1' };
const id = randomUUID();
const reason = { reason: 'x' };

/** Of a tenant: what a principal of it may have. Spans: what only the system may. */
type Kind = 'field' | 'own' | 'spans';

describe('who sees what', () => {
  let it_: TestService;
  let envelope: string;
  before(async () => {
    it_ = await openTestService({ policy, workers: false });
    const sealed = await it_.call('helper', 'POST', '/v1/encrypt', { class: 'ssn', value: '123', context: place });
    envelope = sealed.body['envelope'] as string;
  });
  after(() => it_.close());

  /** A new operation does not compile without a line here. */
  const calls: Record<OperationName, () => [kind: Kind, path: string, body?: object]> = {
    encrypt: () => ['field', '/v1/encrypt', { class: 'ssn', value: '1', context: place }],
    decrypt: () => ['field', '/v1/decrypt', { envelope, context: place }],
    reencrypt: () => ['field', '/v1/reencrypt', { envelope, context: place }],
    match: () => ['field', '/v1/match', { envelope, context: place, candidate: '1' }],
    searchTokens: () => [
      ...(['field', '/v1/search-tokens'] as const),
      { class: 'ssn', value: '1', context: { table: place.table, column: place.column } },
    ],
    whoami: () => ['own', '/v1/whoami'],
    listEntries: () => ['own', '/v1/audit/entries'],
    listKeys: () => ['spans', '/v1/keys'],
    getKey: () => ['spans', '/v1/keys/ssn'],
    rotate: () => ['spans', '/v1/keys/ssn/rotate', { dryRun: true }],
    destroyVersion: () => ['spans', '/v1/keys/ssn/versions/99/destroy', reason],
    callOffDestruction: () => ['spans', '/v1/keys/ssn/versions/99/destroy/call-off', reason],
    getCertificate: () => ['spans', '/v1/keys/ssn/versions/1/certificate'],
    listRotations: () => ['spans', '/v1/rotations'],
    getRotation: () => ['spans', `/v1/rotations/${id}`],
    listFailures: () => ['spans', `/v1/rotations/${id}/failures`],
    waiveFailures: () => ['spans', `/v1/rotations/${id}/failures/waive`, reason],
    pauseRotation: () => ['spans', `/v1/rotations/${id}/pause`, {}],
    resumeRotation: () => ['spans', `/v1/rotations/${id}/resume`, {}],
    cancelRotation: () => ['spans', `/v1/rotations/${id}/cancel`, {}],
    listAdoptions: () => ['spans', '/v1/adoptions'],
    getAdoption: () => ['spans', '/v1/adoptions/demo.employees.ssn'],
    startAdoption: () => ['spans', '/v1/adoptions/demo.employees.none/start', {}],
    verifyAdoption: () => ['spans', '/v1/adoptions/demo.employees.none/verify', {}],
    finishAdoption: () => ['spans', '/v1/adoptions/demo.employees.none/finish', {}],
    undoAdoption: () => ['spans', '/v1/adoptions/demo.employees.none/undo', reason],
    leaveAdoption: () => ['spans', '/v1/adoptions/demo.employees.none/leave', {}],
    listApprovals: () => ['spans', '/v1/approvals'],
    getApproval: () => ['spans', `/v1/approvals/${id}`],
    decideApproval: () => ['spans', `/v1/approvals/${id}/decisions`, { decision: 'approve', reason: 'x' }],
  };

  for (const { operation, method } of routes) {
    it(`${operation}: for an agent and a person of a tenant, and for the system`, async () => {
      const [kind, path, body] = calls[operation]();
      const ask = (who: string) => it_.call(who, method.toUpperCase(), path, body);
      const [agent, person, system] = [await ask('helper'), await ask('ann'), await ask('operator')];
      const refused = (reply: Reply) => reply.status === 403;
      assert.ok([agent, person, system].every(({ status }) => status !== 401 && status < 500));
      const expected = { field: [false, true, true], own: [false, false, false], spans: [true, true, false] }[kind];
      assert.deepEqual([agent, person, system].map(refused), expected, `${agent.text} ${person.text} ${system.text}`);
      if (kind === 'spans' && method === 'get') assert.match(String(person.body['detail']), /spans tenants: .*system/);
    });
  }

  it('who reads the audit for a tenant sees that tenant, whatever is filtered and whichever page is asked for', async () => {
    const batch = { items: [{ class: 'ssn', value: '1', context: { ...place, row: '7' } }] };
    const there = await it_.call('helper', 'POST', '/v1/encrypt', batch, { tenant: 'globex' });
    assert.equal(there.status, 200, there.text);
    await it_.call('operator', 'GET', '/v1/keys');
    const find = async (who: string, query: string) => {
      const reply = await it_.call(who, 'GET', `/v1/audit/entries?${query}`);
      assert.equal(reply.status, 200, reply.text);
      return {
        next: reply.body['nextCursor'],
        items: reply.body.items as { index: number; entry: { tenant?: string } }[],
      };
    };
    const tenantsOf = ({ items }: Awaited<ReturnType<typeof find>>) => [
      ...new Set(items.map(({ entry }) => entry.tenant)),
    ];
    const all = await find('operator', 'limit=1000');
    assert.deepEqual(new Set(tenantsOf(all)), new Set(['acme', 'globex', undefined]));
    assert.deepEqual(tenantsOf(await find('ann', 'limit=1000')), ['acme']);
    assert.deepEqual(tenantsOf(await find('ann', 'limit=1000&tenant=acme')), ['acme']);
    const requestId = String(there.headers['x-request-id']);
    assert.equal((await find('operator', `requestId=${requestId}`)).items.length, 1);
    assert.deepEqual((await find('ann', `requestId=${requestId}`)).items, []);
    for (const query of ['class=ssn', 'outcome=ok', 'action=encrypt', 'agent=helper', 'from=2020-01-01T00:00:00Z']) {
      assert.deepEqual(tenantsOf(await find('ann', query)), ['acme'], query);
    }
    for (const { index } of all.items) {
      const page = await find('ann', `limit=3&cursor=${index + 1}`);
      assert.ok(tenantsOf(page).every((tenant) => tenant === 'acme'));
    }
    for (const tenant of ['globex', 'ACME', '*', '%']) {
      const other = await it_.call('ann', 'GET', `/v1/audit/entries?tenant=${encodeURIComponent(tenant)}`);
      assert.equal(other.status, 403, tenant);
    }
    const token = await it_.issuer.issueToken({ audience: 'fieldkeep', subject: 'ann', ttlSeconds: 60 });
    const nowhere = await it_.call('', 'GET', '/v1/audit/entries', undefined, { token });
    assert.equal(nowhere.status, 403, 'a token without a tenant');
  });

  it('an agent that acts for a person of the system stays in its tenant', async () => {
    const token = await it_.issuer.issueToken({
      ...{ audience: 'fieldkeep', subject: 'operator', actor: 'helper', tenant: 'globex', ttlSeconds: 60 },
    });
    const ask = (path: string) => it_.call('', 'GET', path, undefined, { token });
    assert.equal((await ask('/v1/keys')).status, 403);
    const { items } = (await ask('/v1/audit/entries?limit=1000')).body as unknown as {
      items: { entry: { tenant?: string } }[];
    };
    assert.ok(items.length > 0 && items.every(({ entry }) => entry.tenant === 'globex'));
  });

  it('who has no right learns nothing of columns: every question has one answer', async () => {
    const contexts = [
      place,
      { ...place, column: 'bank' },
      { ...place, column: 'nothing' },
      { ...place, table: 'demo.nothing' },
      { ...place, row: '007' },
      { ...place, row: 'x' },
      { ...place, row: '' },
    ];
    const search = ({ table, column }: typeof place) => ({ class: 'ssn', value: '1', context: { table, column } });
    const asks: [path: string, body: (context: typeof place) => object][] = [
      ['/v1/encrypt', (context) => ({ class: 'ssn', value: '1', context })],
      ['/v1/decrypt', (context) => ({ envelope, context })],
      ['/v1/match', (context) => ({ envelope, context, candidate: '1' })],
      ['/v1/reencrypt', (context) => ({ envelope, context })],
      ['/v1/reencrypt', (to) => ({ envelope, context: place, to })],
      ['/v1/search-tokens', search],
      ['/v1/encrypt', (context) => ({ items: [{ class: 'ssn', value: '1', context }] })],
    ];
    const strip = ({ status, body }: Reply) => JSON.stringify([status, { ...body, requestId: undefined }]);
    for (const [path, body] of asks) {
      const told = new Set<string>();
      for (const context of contexts) told.add(strip(await it_.call('nobody', 'POST', path, body(context))));
      assert.equal(told.size, 1, [...told].join('\n'));
      assert.match([...told].join(), /lacks the scope/);
    }
    for (const verb of ['start', 'verify', 'finish', 'leave']) {
      const told = new Set<string>();
      for (const column of ['demo.employees.ssn', 'demo.employees.bank', 'demo.employees.nothing']) {
        told.add(strip(await it_.call('nobody', 'POST', `/v1/adoptions/${column}/${verb}`, {})));
      }
      assert.equal(told.size, 1, [...told].join('\n'));
    }
    const wrong = { class: 'ssn', value: '1', context: { ...place, column: 'bank' } };
    assert.equal((await it_.call('helper', 'POST', '/v1/encrypt', wrong)).status, 400, 'who may ask is told');
  });
});
