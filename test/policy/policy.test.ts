/** A policy is read whole or refused whole: every problem is named with its place, and nothing unknown passes. */
import assert from 'node:assert/strict';
import { findColumn, parsePolicy, PolicyError } from '../../src/policy/policy.ts';
import { policyWith, problemsOf, readText, shippedFile } from './support.ts';

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
  ['a missing key', 'classes/ssn/mask', undefined, 'classes.ssn.mask: '],
  ['another schema', 'schemaVersion', 2, 'schemaVersion: '],
  ['another padTo', 'classes/ssn/padTo', 17, 'classes.ssn.padTo: Invalid option: expected one of 16|32|48|64'],
  ['a name no class has', 'classes/SSN-1', shippedFile().classes['ssn'], 'classes.SSN-1: '],
  ['edges as numbers', 'classes/salary/edges', [50000], 'classes.salary.edges[0]: '],
  ['edges as floats', 'classes/salary/edges', ['5e4'], 'classes.salary.edges[0]: '],
  ['no duration', 'classes/ssn/rotateEvery', '3 months', 'classes.ssn.rotateEvery: '],
  ['no condition', 'agents/hr-agent/grants/2/when/purpose', [], 'agents.hr-agent.grants[2].when.purpose: '],
  ['a table without schema', 'columns/0/table', 'employees', 'columns[0].table: '],
  ['a table with a colon', 'columns/0/table', 'hr:public.employees', 'columns[0].table: '],
  ['too many bits', 'columns/0/index/0/bits', 257, 'columns[0].index[0].bits: '],
  ['keys over http', 'issuers/corp', { ...remote, jwksUrl: 'http://corp.example' }, 'issuers.corp.jwksUrl: '],
  ['a symmetric signature', 'issuers/corp', { ...remote, algorithms: ['HS256'] }, 'issuers.corp.algorithms[0]: '],
  ['no agent at all', 'agents/cx-agent', null, 'agents.cx-agent: '],
  ['a grant that is a number', 'agents/cx-agent/grants/0', 1, 'agents.cx-agent.grants[0]: '],
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
