/** What the shape of a policy cannot say: every mistake is named with its place. */
import assert from 'node:assert/strict';
import type { PolicyFile } from '../../src/policy/schema.ts';
import { policyWith, problemsOf, shippedFile } from './support.ts';

const remote = {
  issuer: 'https://corp.example',
  jwksUrl: 'https://corp.example/jwks',
  aud: 'fieldkeep',
  agentClaim: 'sub',
  tenantClaim: 'org',
};
const lastColumn = (file: PolicyFile) => file.columns.at(-1)!;

/** What is changed, and where the one problem is, with words of it. */
const crossChecks: [string, (file: PolicyFile) => void, string][] = [
  [
    'the name of our own database',
    (f) => (lastColumn(f).database = 'own'),
    'columns[2].database: own is what commands',
  ],
  ['a target named as a reader', (f) => (lastColumn(f).database = 'hr_reader'), 'columns[2].database: must not end in'],
  ['reserved class', (f) => (f.classes['audit'] = f.classes['ssn']!), 'classes.audit: the name audit is reserved'],
  ['ladder out of order', (f) => f.classes['ssn']!.views.reverse(), 'classes.ssn.views: must be in order'],
  [
    'ladder of both kinds',
    (f) => f.classes['ssn']!.views.splice(1, 0, 'bucket'),
    'classes.ssn.views: must be in order',
  ],
  ['a view twice', (f) => f.classes['ssn']!.views.push('exists'), 'classes.ssn.views: must be in order'],
  ['default full', (f) => (f.classes['ssn']!.defaultView = 'full'), 'classes.ssn.defaultView: must not be full'],
  ['default elsewhere', (f) => (f.classes['ssn']!.defaultView = 'bucket'), 'classes.ssn.defaultView: is not one of'],
  ['bucket without edges', (f) => delete f.classes['salary']!.edges, 'classes.salary.edges: edges and the view bucket'],
  ['edges without bucket', (f) => (f.classes['bank']!.edges = ['1']), 'classes.bank.edges: edges and the view bucket'],
  ['edges descending', (f) => f.classes['salary']!.edges!.reverse(), 'classes.salary.edges: must be ascending'],
  ['edges equal', (f) => (f.classes['salary']!.edges = ['5', '5.0']), 'classes.salary.edges: must be ascending'],
  ['edges as texts', (f) => (f.classes['salary']!.edges = ['100000', '50000']), 'classes.salary.edges: must be asc'],
  ['no time', (f) => (f.classes['ssn']!.rotateEvery = 'P00M'), 'classes.ssn.rotateEvery: must be longer than nothing'],
  ['no time at all', (f) => (f.classes['ssn']!.rotateEvery = 'P0Y0DT0S'), 'classes.ssn.rotateEvery: must be longer'],
  [
    'folding what nothing normalises',
    (f) => (f.classes['salary']!.nonAscii = 'fold'),
    'classes.salary.nonAscii: counts with normalise only',
  ],
  ['no scope', (f) => (f.agents['cx-agent']!.grants[0] = 'read:ssn'), 'agents.cx-agent.grants[0]: is not a scope'],
  [
    'a scope of no class',
    (f) => (f.agents['cx-agent']!.grants[0] = 'encrypt'),
    'agents.cx-agent.grants[0]: is not a sc',
  ],
  [
    'audit of a class',
    (f) => (f.agents['cx-agent']!.grants[0] = 'audit:ssn'),
    'agents.cx-agent.grants[0]: is not a sc',
  ],
  [
    'a view of encrypt',
    (f) => (f.agents['cx-agent']!.grants[0] = 'encrypt:ssn:full'),
    'agents.cx-agent.grants[0]: is n',
  ],
  ['a view of *', (f) => (f.agents['cx-agent']!.deny = ['*:ssn:full']), 'agents.cx-agent.deny[0]: is not a scope'],
  ['* in a grant', (f) => (f.agents['cx-agent']!.grants[1] = '*:ssn'), 'agents.cx-agent.grants[1]: grants name their'],
  [
    'a deny of a view',
    (f) => (f.agents['cx-agent']!.deny = ['decrypt:ssn:full']),
    'agents.cx-agent.deny[0]: a deny cov',
  ],
  [
    'grant of no class',
    (f) => (f.agents['cx-agent']!.grants[1] = 'match:tax'),
    'agents.cx-agent.grants[1]: there is no',
  ],
  [
    'grant of an inherited name',
    (f) => (f.agents['cx-agent']!.grants[1] = 'decrypt:constructor:full'),
    'agents.cx-age',
  ],
  [
    'deny of no class',
    (f) => (f.agents['cx-agent']!.deny = ['*:tax']),
    'agents.cx-agent.deny[0]: there is no class tax',
  ],
  [
    'a view that the class lacks',
    (f) => (f.agents['hr-agent']!.grants[2] = { scope: 'decrypt:ssn:bucket' }),
    'agents.hr-agent.grants[2].scope: class ssn has no view bucket',
  ],
  ['agent rotates', (f) => f.agents['cx-agent']!.grants.push('rotate:ssn'), 'agents.cx-agent.grants[2]: rotate spans'],
  ['agent approves', (f) => f.agents['cx-agent']!.grants.push('approve'), 'agents.cx-agent.grants[2]: approve spans'],
  ['agent changes policy', (f) => f.agents['cx-agent']!.grants.push('policy'), 'agents.cx-agent.grants[2]: policy spa'],
  [
    'person of a tenant destroys',
    (f) => (f.people['ann'] = { tenants: ['acme'], grants: ['destroy:*'] }),
    'people.ann.grants[0]: destroy spans tenants',
  ],
  ['system reads data', (f) => f.people['operator']!.grants.push('decrypt:ssn'), 'people.operator.grants[2]: a system'],
  ['system of a tenant', (f) => (f.people['operator']!.tenants = ['*']), 'people.operator.tenants: a system principal'],
  ['person of nowhere', (f) => (f.people['ann'] = { grants: [] }), 'people.ann.tenants: is missing'],
  [
    'one name for two',
    (f) => {
      f.people['cx-agent'] = { tenants: ['*'], identities: [{ issuer: 'local', sub: 'x' }], grants: [] };
    },
    'people.cx-agent: an agent has this name already',
  ],
  [
    'identity of no issuer',
    (f) => (f.agents['hr-agent']!.identities![0]!.issuer = 'toString'),
    'agents.hr-agent.identities[0].issuer: there is no issuer',
  ],
  [
    'one identity for two',
    (f) => (f.agents['cx-agent']!.identities = [{ issuer: 'local', sub: 'hr-agent' }]),
    'agents.hr-agent.identities[0]: is the identity of agents.cx-agent already',
  ],
  [
    'the identity that another has without saying so',
    (f) => (f.agents['hr-agent']!.identities = [{ issuer: 'local', sub: 'invoice-agent' }]),
    'agents.hr-agent.identities[0]: is the identity of agents.invoice-agent already',
  ],
  [
    'the same, said first',
    (f) => (f.agents['invoice-agent']!.identities = [{ issuer: 'local', sub: 'operator' }]),
    'people.operator: is the identity of agents.invoice-agent already',
  ],
  ['two local issuers', (f) => (f.issuers['other'] = f.issuers['local']!), 'issuers.other: there is one local issuer'],
  [
    'an issuer without keys',
    (f) => {
      const { jwksUrl: _, ...rest } = remote;
      f.issuers['corp'] = rest;
    },
    'issuers.corp: needs one of jwksFile and jwksUrl',
  ],
  ['an issuer with both', (f) => (f.issuers['corp'] = { ...remote, jwksFile: 'a' }), 'issuers.corp: needs one of'],
  [
    'one iss for two',
    (f) => {
      f.issuers['corp'] = remote;
      f.issuers['copy'] = { ...remote };
    },
    'issuers.copy.issuer: is the issuer of issuers.corp already',
  ],
  [
    'approval of another call',
    (f) => (f.approvals!['rotate'] = f.approvals!['destroy']!),
    'approvals.rotate: only destroy, waive and decrypt',
  ],
  ['a group of strangers', (f) => (f.approvals!['destroy']!.group[1] = 'x'), 'approvals.destroy.group[1]: there is no'],
  [
    'an agent approves',
    (f) => (f.approvals!['destroy']!.group[0] = 'cx-agent'),
    'approvals.destroy.group[0]: there is',
  ],
  ['too few people', (f) => (f.approvals!['destroy']!.n = 3), 'approvals.destroy.n: is more than the group'],
  [
    'one person counted twice',
    (f) => (f.approvals!['destroy']!.group = ['security-lead', 'security-lead']),
    'approvals.destroy.n: is more than the group',
  ],
  ['no time to approve', (f) => (f.approvals!['destroy']!.within = 'PT0S'), 'approvals.destroy.within: must be longer'],
  ['column of no class', (f) => (lastColumn(f).class = 'tax'), 'columns[2].class: there is no class tax'],
  ['column of an inherited name', (f) => (lastColumn(f).class = 'constructor'), 'columns[2].class: there is no class'],
  ['a colon', (f) => (lastColumn(f).column = 'a:b'), 'columns[2].column: a registered name has no colon'],
  ['a colon in an index', (f) => (f.columns[0]!.index![0]!.column = 'a:b'), 'columns[0].index[0].column: a registered'],
  ['the key as its source', (f) => (lastColumn(f).from = 'id'), 'columns[2].from: is the key or the tenant'],
  ['a source used twice', (f) => (lastColumn(f).from = 'bank'), 'columns[2].from: is used by columns[1].column'],
  [
    'a source that is not adopted',
    (f) => Object.assign(lastColumn(f), { from: 'salary_plain', adopt: false }),
    'columns[2].from: counts with "adopt": true only',
  ],
  ['an index without bits', (f) => delete f.columns[0]!.index![0]!.bits, 'columns[0].index[0].bits: is missing'],
  [
    'a unique index of few bits',
    (f) => (f.columns[0]!.index![0]!.unique = true),
    'columns[0].index[0].bits: is 256 where unique is true',
  ],
  [
    'tenants that are not adopted',
    (f) => Object.assign(lastColumn(f), { tenants: ['acme'], adopt: false }),
    'columns[2].tenants: counts with "adopt": true only',
  ],
  ['a column twice', (f) => (lastColumn(f).column = 'ssn'), 'columns[2].column: is used by columns[0]'],
  ['the index of another', (f) => (lastColumn(f).column = 'ssn_eq'), 'columns[2].column: is used by columns[0]'],
  ['another key', (f) => (lastColumn(f).key = ['uuid']), 'columns[2]: the columns of one table share'],
  ['another tenant', (f) => (lastColumn(f).tenant = { value: 'acme' }), 'columns[2]: the columns of one table share'],
  ['the key encrypted', (f) => (lastColumn(f).column = 'id'), 'columns[2].column: key and tenant columns stay'],
  ['the tenant encrypted', (f) => (lastColumn(f).column = 'tenant'), 'columns[2].column: key and tenant columns'],
  ['an index on the key', (f) => (f.columns[0]!.index![0]!.column = 'id'), 'columns[0].index[0].column: is the key'],
  [
    'an index on a column of its own',
    (f) => (f.columns[0]!.index![0]!.column = 'ssn'),
    'columns[0].index[0].column: is used by columns[0]',
  ],
  [
    'salaries indexed',
    (f) => (lastColumn(f).index = [{ name: 'eq', column: 'salary_eq', bits: 8 }]),
    'columns[2].index[0]: a class with buckets is never indexed',
  ],
  [
    'an index twice',
    (f) => f.columns[0]!.index!.push({ name: 'eq', column: 'ssn_eq2', bits: 8 }),
    'columns[0].index[1].name: is used by index[0] already',
  ],
];

describe('policy/checks', () => {
  for (const [name, change, expected] of crossChecks) {
    it(`finds: ${name}`, () => {
      const file = shippedFile();
      change(file);
      const problems = problemsOf(JSON.stringify(file));
      assert.ok(
        problems.some((problem) => problem.startsWith(expected)),
        `${problems.join('\n')}\nlacks ${expected}`,
      );
    });
  }

  it('finds nothing in what is right', () => {
    policyWith((file) => {
      file.issuers['corp'] = { ...remote, algorithms: ['ES256'], typ: 'JWT' };
      file.issuers['disk'] = { issuer: 'disk', jwksFile: 'keys.json', aud: 'a', agentClaim: 'sub', tenantClaim: 't' };
      file.people['ann'] = { tenants: ['acme'], identities: [{ issuer: 'corp', sub: 'hr-agent' }], grants: ['audit'] };
      file.agents['cx-agent']!.deny = ['*:*', 'audit', 'encrypt:*', 'decrypt:bank'];
      file.classes['salary']!.edges = ['-10', '0', '0.5', '50000'];
      file.classes['plan'] = { ...file.classes['bank']!, bind: 'column', views: ['masked'], defaultView: 'masked' };
      file.columns.push({ ...file.columns[0]!, table: 'demo.people', tenant: { value: 'acme' }, key: ['a', 'b'] });
      file.approvals = { waive: { group: ['security-lead'], n: 1, within: 'PT1H' } };
    });
  });
});
