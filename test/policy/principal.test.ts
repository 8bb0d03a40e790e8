/** Who a verified token's words stand for. */
import assert from 'node:assert/strict';
import { decide, effectiveGrants, resolvePrincipal, type Claims } from '../../src/policy/access.ts';
import type { View } from '../../src/policy/policy.ts';
import { policyWith, shipped } from './support.ts';

const claims = (agent: string, more: Partial<Claims> = {}): Claims => ({ issuer: 'local', agent, ...more });

describe('policy/access: resolvePrincipal', () => {
  const policy = policyWith((file) => {
    file.issuers['corp'] = {
      issuer: 'https://corp.example',
      jwksUrl: 'https://corp.example/jwks',
      aud: 'fieldkeep',
      agentClaim: 'sub',
      tenantClaim: 'org',
    };
    file.agents['relay'] = {
      tenants: ['*'],
      identities: [
        { issuer: 'corp', sub: 'r-1' },
        { issuer: 'corp', sub: 'r-2' },
      ],
      grants: [],
    };
    file.people['ann'] = { tenants: ['acme'], grants: ['audit'] };
  });

  it('an agent, with its tenant and what the token says of scopes', () => {
    const expected = { agent: 'invoice-agent', tenant: 'acme', system: false };
    assert.deepEqual(resolvePrincipal(policy, claims('invoice-agent', { tenant: 'acme' })), expected);
    assert.deepEqual(resolvePrincipal(policy, claims('invoice-agent')), { agent: 'invoice-agent', system: false });
    for (const scopes of [[], ['encrypt:bank']]) {
      assert.deepEqual(resolvePrincipal(policy, claims('invoice-agent', { tenant: 'acme', scopes })), {
        ...expected,
        scopes,
      });
    }
  });

  it('several claims that narrow: each of them counts', () => {
    const who = resolvePrincipal(policy, {
      ...claims('payroll-agent', { tenant: 'acme', scopes: ['encrypt:bank', 'decrypt:bank:full'] }),
      moreScopes: [
        ['encrypt:*', 'decrypt:bank:last4'],
        ['encrypt:bank', 'encrypt:ssn', 'decrypt:*:full'],
      ],
    })!;
    const ask = (action: 'encrypt' | 'decrypt', of: string, view?: View) =>
      decide(policy, who, { action, class: of, ...(view !== undefined && { view }) }).decision;
    assert.deepEqual([ask('encrypt', 'bank'), ask('encrypt', 'ssn')], ['allow', 'deny']);
    assert.deepEqual([ask('decrypt', 'bank', 'last4'), ask('decrypt', 'bank', 'full')], ['allow', 'deny']);
    assert.equal(effectiveGrants(policy, who).length, 4);
  });

  it('a person alone, of a tenant or of the system; a system principal has no tenant', () => {
    assert.deepEqual(resolvePrincipal(policy, claims('ann', { tenant: 'acme' })), {
      person: 'ann',
      tenant: 'acme',
      system: false,
    });
    assert.deepEqual(resolvePrincipal(policy, claims('operator')), { person: 'operator', system: true });
    assert.deepEqual(resolvePrincipal(policy, claims('operator', { tenant: 'acme' })), {
      person: 'operator',
      system: true,
    });
  });

  it('an agent on behalf of a person, never the other way round', () => {
    assert.deepEqual(resolvePrincipal(policy, claims('cx-agent', { person: 'ann', tenant: 'acme' })), {
      agent: 'cx-agent',
      person: 'ann',
      tenant: 'acme',
      system: false,
    });
    const behalf = resolvePrincipal(policy, claims('cx-agent', { person: 'operator', tenant: 'acme' }));
    assert.equal(behalf?.system, false, 'an agent does not become the system');
    assert.equal(resolvePrincipal(policy, claims('ann', { person: 'operator' })), undefined);
    assert.equal(resolvePrincipal(policy, claims('ann', { person: 'ann' })), undefined);
    assert.equal(resolvePrincipal(policy, claims('ann', { person: 'cx-agent' })), undefined);
    assert.equal(resolvePrincipal(policy, claims('cx-agent', { person: 'cx-agent' })), undefined);
  });

  it('nobody, when one of the two is unknown', () => {
    assert.equal(resolvePrincipal(policy, claims('nobody')), undefined);
    assert.equal(resolvePrincipal(policy, claims('')), undefined);
    assert.equal(resolvePrincipal(policy, claims('__proto__')), undefined);
    assert.equal(resolvePrincipal(policy, claims('cx-agent', { person: 'nobody' })), undefined);
    assert.equal(resolvePrincipal(policy, claims('cx-agent', { person: '' })), undefined);
    assert.equal(resolvePrincipal(policy, claims('nobody', { person: 'ann' })), undefined);
  });

  it('the issuer is part of an identity', () => {
    assert.equal(resolvePrincipal(policy, { issuer: 'corp', agent: 'r-1' })?.agent, 'relay');
    assert.equal(resolvePrincipal(policy, { issuer: 'corp', agent: 'r-2' })?.agent, 'relay');
    assert.equal(resolvePrincipal(policy, { issuer: 'local', agent: 'r-1' }), undefined);
    assert.equal(
      resolvePrincipal(policy, { issuer: 'local', agent: 'relay' }),
      undefined,
      'identities replace the usual',
    );
    assert.equal(resolvePrincipal(policy, { issuer: 'corp', agent: 'cx-agent' }), undefined);
    assert.equal(resolvePrincipal(policy, { issuer: 'else', agent: 'cx-agent' }), undefined);
    assert.equal(resolvePrincipal(policy, { issuer: 'corp', agent: 'r-1', person: 'ann' }), undefined);
    assert.equal(resolvePrincipal(shipped, claims('hr-agent'))?.agent, 'hr-agent');
  });
});
