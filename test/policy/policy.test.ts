/** A policy is read whole or refused whole: every problem is named with its place, and nothing unknown passes. */
import assert from 'node:assert/strict';
import { findColumn, parsePolicy, PolicyError } from '../../src/policy/policy.ts';
import { policyWith, problemsOf, readText, refusalOf, shipped, shippedFile } from './support.ts';

const remote = {
  issuer: 'https://corp.example',
  jwksUrl: 'https://corp.example/jwks',
  aud: 'fieldkeep',
  agentClaim: 'sub',
  tenantClaim: 'org',
};

/** What is put where (nothing: taken away), and where the problem is. */
const shapeChecks: [string, string, unknown, string][] = [
  ['an unknown key at the top', 'agentz', {}, 'agentz: there is no such key here'],
  ['in a class', 'classes/ssn/padto', 16, 'classes.ssn.padto: there is no such key here'],
  ['in an agent', 'agents/cx-agent/denies', [], 'agents.cx-agent.denies: there is no such key here'],
  ['in a person', 'people/operator/sytem', true, 'people.operator.sytem: there is no such key here'],
  ['in a grant', 'agents/hr-agent/grants/2/wen', {}, 'agents.hr-agent.grants[2].wen: there is no such key here'],
  [
    'in a condition',
    'agents/hr-agent/grants/2/when/purposes',
    ['x'],
    'agents.hr-agent.grants[2].when.purposes: there is no such key here',
  ],
  ['in an identity', 'agents/hr-agent/identities/0/iss', '', 'agents.hr-agent.identities[0].iss: there is no such key'],
  ['in the local issuer', 'issuers/local/jwks', 'x', 'issuers.local.jwks: there is no such key here'],
  ['in an issuer', 'issuers/corp', { ...remote, audience: 'x' }, 'issuers.corp.audience: there is no such key here'],
  ['in a column', 'columns/1/adopted', true, 'columns[1].adopted: there is no such key here'],
  ['in a tenant', 'columns/1/tenant/values', 'x', 'columns[1].tenant.values: there is no such key here'],
  ['in an index', 'columns/0/index/0/bit', 1, 'columns[0].index[0].bit: there is no such key here'],
  ['in an approval', 'approvals/destroy/m', 1, 'approvals.destroy.m: there is no such key here'],
  ['a missing key', 'classes/ssn/mask', undefined, 'classes.ssn.mask: is missing'],
  ['another schema', 'schemaVersion', 2, 'schemaVersion: must be 1'],
  ['another padTo', 'classes/ssn/padTo', 17, 'classes.ssn.padTo: must be one of 16, 32, 48, 64'],
  ['a name no class has', 'classes/SSN-1', shippedFile().classes['ssn'], 'classes.SSN-1: must be 2 to 16 lower-case'],
  ['edges as numbers', 'classes/salary/edges', [50000], 'classes.salary.edges[0]: must be a text in quotes'],
  ['edges as floats', 'classes/salary/edges', ['5e4'], 'classes.salary.edges[0]: must be a plain decimal'],
  ['no duration', 'classes/ssn/rotateEvery', '3 months', 'classes.ssn.rotateEvery: must be an ISO 8601 duration'],
  [
    'no condition',
    'agents/hr-agent/grants/2/when/purpose',
    [],
    'agents.hr-agent.grants[2].when.purpose: must not be empty',
  ],
  ['a table without schema', 'columns/0/table', 'employees', 'columns[0].table: must be schema.table'],
  ['a table with a colon', 'columns/0/table', 'hr:public.employees', 'columns[0].table: '],
  ['too many bits', 'columns/0/index/0/bits', 257, 'columns[0].index[0].bits: must be at most 256'],
  ['keys over http', 'issuers/corp', { ...remote, jwksUrl: 'http://corp.example' }, 'issuers.corp.jwksUrl: '],
  ['a symmetric signature', 'issuers/corp', { ...remote, algorithms: ['HS256'] }, 'issuers.corp.algorithms[0]: '],
  ['no agent at all', 'agents/cx-agent', null, 'agents.cx-agent: must be an object'],
  ['a grant that is a number', 'agents/cx-agent/grants/0', 1, 'agents.cx-agent.grants[0]: has none of the forms'],
  [
    'a condition with another name',
    'agents/hr-agent/grants/2/when',
    { role: 1 },
    'agents.hr-agent.grants[2].when.role: ',
  ],
  ['a condition that is none', 'agents/hr-agent/grants/2/when', {}, 'agents.hr-agent.grants[2].when: names no cond'],
  ['a mask with digits', 'classes/ssn/mask', '123-45-6789', 'classes.ssn.mask: must hold no digits'],
  ['an empty mask', 'classes/ssn/mask', '', 'classes.ssn.mask: must not be empty'],
  ['no tenants', 'agents/cx-agent/tenants', [], 'agents.cx-agent.tenants: must not be empty'],
  ['a tenant without a name', 'agents/cx-agent/tenants', [''], 'agents.cx-agent.tenants[0]: must not be empty'],
  [
    'too many bytes',
    'agents/cx-agent/tenants',
    ['é'.repeat(257)],
    'agents.cx-agent.tenants[0]: must not be longer than',
  ],
  ['far too many', 'agents/cx-agent/tenants', ['é'.repeat(513)], 'agents.cx-agent.tenants[0]: must be no longer than'],
  [
    'too many bytes in a column',
    'columns/0/tenant',
    { value: 'é'.repeat(257) },
    'columns[0].tenant.value: must not be',
  ],
  [
    'a padded text',
    'agents/cx-agent/deny',
    ['*:ssn '.repeat(20)],
    'agents.cx-agent.deny[0]: must be no longer than 64',
  ],
  ['no host', 'issuers/corp', { ...remote, jwksUrl: 'https://' }, 'issuers.corp.jwksUrl: must be an https address'],
  ['a bad host', 'issuers/corp', { ...remote, jwksUrl: 'https://[' }, 'issuers.corp.jwksUrl: must be an https address'],
  [
    'a password',
    'issuers/corp',
    { ...remote, jwksUrl: 'https://u:hunter2@corp.example/' },
    'issuers.corp.jwksUrl: must be an https address',
  ],
  ['no signature', 'issuers/corp', { ...remote, algorithms: ['none'] }, 'issuers.corp.algorithms[0]: must be one of'],
  ['no algorithms', 'issuers/corp', { ...remote, algorithms: [] }, 'issuers.corp.algorithms: must not be empty'],
  ['an issuer without a name', 'issuers/', remote, 'issuers[""]: must begin with a letter or digit'],
  ['no people', 'approvals/destroy/n', 0, 'approvals.destroy.n: must be at least 1'],
  ['half a person', 'approvals/destroy/n', 1.5, 'approvals.destroy.n: must be a whole number'],
  ['a class that is a text', 'classes/bank', 'bank', 'classes.bank: must be an object'],
  ['views of another kind', 'classes/bank/views', ['half'], 'classes.bank.views[0]: must be one of "full", "last4"'],
  ['a person that is a list', 'people/operator', [], 'people.operator: must be an object'],
  ['an issuer of no form', 'issuers/local', 1, 'issuers.local: has none of the forms'],
  [
    'a name that blurs paths',
    'agents/a.b',
    { tenants: ['*'], grants: [], x: 1 },
    'agents["a.b"].x: there is no such key',
  ],
  ['a section of another kind', 'columns', {}, 'columns: must be a list'],
];

/** One mistake for each section, which only cross-checks find. */
const crossMistakes: [path: string, value: unknown][] = [
  ['classes/plan', { ...shippedFile().classes['bank'], defaultView: 'full' }],
  ['agents/spare', { tenants: ['*'], grants: ['rotate:ssn', { scope: 'decrypt:ssn:bucket' }] }],
  ['people/spare', { tenants: ['*'], identities: [{ issuer: 'nowhere', sub: 'x' }], grants: ['match:tax'] }],
  ['columns/3', { ...shippedFile().columns[1], column: 'tenant', class: 'nothing' }],
];
const crossProblems = [
  'classes.plan.defaultView: must not be full: full is always asked for by name',
  'agents.spare.grants[0]: rotate spans tenants: it needs a person with "system": true',
  'agents.spare.grants[1].scope: class ssn has no view bucket',
  'people.spare: an agent has this name already',
  'people.spare.identities[0].issuer: there is no issuer of this name',
  'people.spare.grants[0]: there is no class tax',
  'columns[3].class: there is no class nothing',
  'columns[3].column: key and tenant columns stay readable',
];

/** The text of the shipped file with `value` at each path. */
function textWith(...changes: [path: string, value: unknown][]): string {
  const file = shippedFile();
  for (const [path, value] of changes) {
    const steps = path.split('/');
    const last = steps.pop()!;
    const place = steps.reduce((at, step) => at[step] as Record<string, unknown>, file as Record<string, unknown>);
    place[last] = value;
  }
  return JSON.stringify(file);
}

describe('policy/policy: parsePolicy', () => {
  for (const [name, path, value, expected] of shapeChecks) {
    it(`refuses: ${name}`, () => {
      const problems = problemsOf(textWith([path, value]));
      assert.equal(problems.length, 1, problems.join('\n'));
      assert.ok(problems[0]!.startsWith(expected), `${problems[0]} is not ${expected}`);
    });
  }

  it('finds what is wrong beside each of these', () => {
    assert.deepEqual(problemsOf(textWith(...crossMistakes)).toSorted(), crossProblems.toSorted());
    for (const [name, path, value, expected] of shapeChecks) {
      // Of a whole section that is something else, nothing more can be said.
      if (path === 'columns') continue;
      const problems = problemsOf(textWith(...crossMistakes, [path, value]));
      const rest = problems.filter((problem) => !problem.startsWith(expected));
      assert.deepEqual(rest.toSorted(), crossProblems.toSorted(), name);
      assert.equal(problems.length, crossProblems.length + 1, name);
    }
  });

  it('goes on checking what else stands in a thing that is broken', () => {
    const text = textWith(
      ['classes/ssn/padTo', 17],
      ['classes/ssn/rotateEvery', 'soon'],
      ['classes/ssn/defaultView', 'full'],
      ['agents/cx-agent/tenants', []],
      ['agents/cx-agent/grants', ['read:ssn', 7, { scope: 'match:tax', when: { hours: '9-17' } }]],
      ['people/operator/grants', [null, 'decrypt:ssn']],
      ['people/operator/deny', ['*:ssn:full', 7]],
    );
    assert.deepEqual(
      problemsOf(text).map((problem) => problem.split(': ')[0]),
      [
        'classes.ssn.padTo',
        'classes.ssn.rotateEvery',
        'classes.ssn.defaultView',
        'agents.cx-agent.tenants',
        'agents.cx-agent.grants[0]',
        'agents.cx-agent.grants[1]',
        'agents.cx-agent.grants[2].scope',
        'agents.cx-agent.grants[2].when.hours',
        'people.operator.grants[0]',
        'people.operator.grants[1]',
        'people.operator.deny[0]',
        'people.operator.deny[1]',
      ],
    );
  });

  it('never repeats what stands in the file', () => {
    const secret = 'hunter2hunter2';
    for (const [, path] of shapeChecks) {
      for (const value of [secret, [secret], { secret }]) {
        const refusal = refusalOf(textWith([path, value]));
        assert.ok(refusal?.message.includes(secret) !== true, path);
      }
    }
  });

  it('says the line: of a mistake its own, of what is missing that of what lacks it', () => {
    const text = readText('keys-policy.json');
    const lineOf = (words: string) => text.split('\n').findIndex((each) => each.includes(words)) + 1;
    const lines = (changed: string) => refusalOf(changed)!.problems.map(({ path, line }) => [path, line]);
    assert.deepEqual(lines(text.replace('"match:ssn"]', '"match:tax"]').replace('"mask": "***-**-****"', '"x": 1')), [
      ['classes.ssn.mask', lineOf('"ssn":')],
      ['classes.ssn.x', lineOf('"ssn":')],
      ['agents.cx-agent.grants[1]', lineOf('"cx-agent"')],
    ]);
    assert.deepEqual(lines(text.replace('"n": 2', '"n": 3')), [['approvals.destroy.n', lineOf('"approvals"')]]);
    assert.deepEqual(lines('\n\n[]'), [['', 1]]);
  });

  it('reports every problem at once', () => {
    const file = shippedFile();
    file.classes['ssn']!.defaultView = 'full';
    file.agents['cx-agent']!.grants = ['nonsense', 'rotate:tax'];
    file.columns.at(-1)!.column = 'id';
    const places = problemsOf(JSON.stringify(file)).map((problem) => problem.split(': ')[0]);
    assert.deepEqual(places, [
      'classes.ssn.defaultView',
      'agents.cx-agent.grants[0]',
      'agents.cx-agent.grants[1]',
      'agents.cx-agent.grants[1]',
      'columns[2].column',
    ]);
    const shape = textWith(['x', 1], ['classes/ssn/y', 1], ['unregistered', 'maybe']);
    assert.equal(problemsOf(shape).length, 3);
    assert.throws(
      () => parsePolicy(shape),
      (error) => {
        assert.ok(error instanceof PolicyError);
        return error.message.startsWith('The policy has 3 problems:\n  ');
      },
    );
  });

  it('says line and column of what is not JSON', () => {
    const at = (text: string) => problemsOf(text).map((problem) => problem.replace(/: .*/, ''))[0];
    const cases: [string, string][] = [
      ['', 'line 1, column 1'],
      ['{', 'line 1, column 2'],
      ['{"a": nope}', 'line 1, column 7'],
      ['{\n  "a": 1,\n}', 'line 3, column 1'],
      ['{\n  "a": 1\n  "b": 2\n}', 'line 3, column 3'],
      ['{"a": "x\ny"}', 'line 1, column 7'],
      ['{} {}', 'line 1, column 4'],
      ["{'a': 1}", 'line 1, column 2'],
      ['{"a": 01}', 'line 1, column 8'],
      ['// note\n{}', 'line 1, column 1'],
      ['\ufeff{}', 'line 1, column 1'],
      [readText('keys-policy.json').replace('"schemaVersion": 1,', '"schemaVersion": 1;'), 'line 3, column 21'],
    ];
    for (const [text, expected] of cases) assert.equal(at(text), expected, text.slice(0, 30));
    const cut = readText('keys-policy.json').trimEnd().slice(0, -1);
    assert.equal(at(cut), `line ${cut.split('\n').length}, column ${cut.split('\n').at(-1)!.length + 1}`);
  });

  it('refuses a name that stands twice, of which JSON.parse would drop the first', () => {
    const text = readText('keys-policy.json');
    const twice = text.replace(
      '"deny": ["*:bank", "*:salary"] }',
      '"deny": ["*:bank", "*:salary"], "d\\u0065ny": [] }',
    );
    assert.notEqual(twice, text);
    const line = text.split('\n').findIndex((each) => each.includes('recruit-agent')) + 1;
    const [problem, ...others] = problemsOf(twice);
    assert.deepEqual(others, []);
    assert.match(problem!, new RegExp(`^line ${line}, column \\d+: this name stands in the object twice$`));
  });

  it('refuses what is JSON but no object, and nesting without end', () => {
    for (const text of ['null', '[]', '1', '"x"', '{}']) assert.ok(problemsOf(text).length > 0);
    assert.equal(problemsOf('['.repeat(1_000_000)).length, 1);
  });

  it('keeps what needs approval', () => {
    const group = ['security-auditor', 'security-lead'];
    assert.deepEqual([...shipped.approvals], [['destroy', { group, n: 2, within: 'P1D' }]]);
    assert.equal(policyWith((file) => delete file.approvals).approvals.size, 0);
  });

  it('takes another version for other bytes', () => {
    const text = readText('keys-policy.json');
    assert.notEqual(parsePolicy(text).version, parsePolicy(`${text} `).version);
    assert.match(parsePolicy(text).version, /^[0-9a-f]{16}$/);
  });

  it('finds columns by address and name', () => {
    const policy = policyWith((file) => file.columns.push({ ...file.columns[0]!, table: 'hr.people', index: [] }));
    assert.equal(findColumn(policy, 'hr.people', 'ssn')?.schema, 'hr');
    assert.equal(findColumn(policy, 'hr.people', 'bank'), undefined);
  });
});
