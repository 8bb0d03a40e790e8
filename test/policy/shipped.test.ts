/** The policy that ships: it parses, editors know its shape, and every agent may do exactly what it is meant to. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { decide, type Action, type Principal, type Question } from '../../src/policy/access.ts';
import { findColumn } from '../../src/policy/policy.ts';
import { policySchema, views } from '../../src/policy/schema.ts';
import { fieldActions, plainActions } from '../../src/policy/scope.ts';
import { readText, shipped } from './support.ts';

const classes = ['ssn', 'bank', 'salary', 'unheard'];

/** Everything a principal may do: `action:class`, for decrypt `action:class:view`, or `…:(none)=view` where none is named. */
function listAllowed(who: Principal, extra: Partial<Question> = {}): string[] {
  const allowed: string[] = [];
  const ask = (words: string, question: Question) => {
    const { decision, view, policyVersion, missingScope } = decide(shipped, who, { ...question, ...extra });
    assert.equal(policyVersion, shipped.version);
    assert.equal(missingScope === undefined, decision === 'allow');
    if (decision === 'allow') allowed.push(view === undefined || view === question.view ? words : `${words}=${view}`);
    else assert.equal(view, undefined);
  };
  for (const action of plainActions) ask(action, { action });
  for (const action of fieldActions) {
    for (const name of classes) {
      ask(`${action}:${name}${action === 'decrypt' ? ':(none)' : ''}`, { action, class: name });
      if (action !== 'decrypt') continue;
      const ladder = shipped.classes.get(name)?.views ?? views;
      for (const view of ladder) ask(`${action}:${name}:${view}`, { action, class: name, view });
    }
  }
  return allowed;
}

const agent = (name: string, tenant = 'acme'): Principal => ({ agent: name, tenant, system: false });
const person = (name: string): Principal => ({ person: name, system: true });
const all = (prefix: string, ...names: string[]) => names.map((name) => `${prefix}${name}`);

describe('policy: what ships', () => {
  it('is named by its bytes', () => {
    const text = readText('keys-policy.json');
    assert.equal(shipped.version, createHash('sha256').update(text).digest('hex').slice(0, 16));
  });

  it('has the shape that keys-policy.schema.json tells editors', () => {
    const made: unknown = JSON.parse(JSON.stringify(z.toJSONSchema(policySchema, { io: 'input' })));
    assert.deepEqual(JSON.parse(readText('keys-policy.schema.json')), made);
  });

  it('registers the columns of the demo', () => {
    assert.equal(shipped.unregistered, 'deny');
    const ssn = findColumn(shipped, 'demo.employees', 'ssn')!;
    assert.deepEqual(ssn, {
      table: 'demo.employees',
      address: 'demo.employees',
      schema: 'demo',
      name: 'employees',
      key: ['id'],
      tenant: { column: 'tenant' },
      column: 'ssn',
      class: 'ssn',
      adopt: true,
      index: [{ name: 'eq', column: 'ssn_eq', bits: 13, unique: false }],
    });
    assert.deepEqual(findColumn(shipped, 'demo.employees', 'bank')?.index, []);
    assert.equal(findColumn(shipped, 'demo.employees', 'ssn_eq'), undefined);
    assert.equal(findColumn(shipped, 'employees', 'ssn'), undefined);
    assert.equal(findColumn(shipped, 'demo.employees\nssn', ''), undefined);
  });

  const table: Record<string, string[]> = {
    'invoice-agent': ['encrypt:bank', ...all('decrypt:bank:', '(none)=masked', 'last4', 'masked', 'exists')],
    'payroll-agent': [
      ...all('encrypt:', 'ssn', 'bank', 'salary', 'unheard'),
      ...all('decrypt:bank:', '(none)=masked', 'full', 'last4', 'masked', 'exists'),
      ...all('decrypt:salary:', '(none)=masked', 'full', 'bucket', 'masked', 'exists'),
      ...all('reencrypt:', 'ssn', 'bank', 'salary', 'unheard'),
    ],
    'recruit-agent': ['decrypt:ssn:(none)=exists', 'decrypt:ssn:exists'],
    'cx-agent': [...all('decrypt:ssn:', '(none)=masked', 'last4', 'masked', 'exists'), 'match:ssn'],
    'hr-agent': ['match:ssn', 'search:ssn'],
  };
  for (const [name, expected] of Object.entries(table)) {
    it(`${name} may do what it is meant to, and nothing else`, () => {
      assert.deepEqual(listAllowed(agent(name)), expected);
      const other = name === 'hr-agent' ? [] : expected;
      assert.deepEqual(listAllowed(agent(name, 'globex')), other, 'in another tenant');
      assert.deepEqual(listAllowed({ agent: name, system: false }), [], 'without a tenant');
    });
  }

  it('hr-agent opens social security numbers for onboarding only', () => {
    const opens = all('decrypt:ssn:', '(none)=masked', 'full', 'last4', 'masked', 'exists');
    const expected = [...opens, 'match:ssn', 'search:ssn'];
    assert.deepEqual(listAllowed(agent('hr-agent'), { purpose: 'onboarding' }), expected);
    for (const purpose of ['', 'Onboarding', 'onboarding ', 'audit']) {
      assert.deepEqual(listAllowed(agent('hr-agent'), { purpose }), table['hr-agent']);
    }
    assert.deepEqual(listAllowed(agent('hr-agent', 'globex'), { purpose: 'onboarding' }), []);
  });

  it('people of the system turn keys and read the log, and have no data', () => {
    const families = ['ssn', 'bank', 'salary', 'unheard'];
    assert.deepEqual(listAllowed(person('operator')), [
      ...all('rotate:', ...families),
      ...all('destroy:', ...families),
    ]);
    assert.deepEqual(listAllowed(person('security-auditor')), ['audit', 'approve']);
    assert.deepEqual(listAllowed(person('security-lead')), ['approve']);
  });

  it('knows nobody else', () => {
    for (const name of ['', 'nobody', 'constructor', '__proto__', 'toString', 'Invoice-agent']) {
      assert.deepEqual(listAllowed(agent(name)), []);
      assert.deepEqual(listAllowed(person(name)), []);
    }
    assert.deepEqual(listAllowed({ system: true }), []);
    assert.deepEqual(listAllowed({ system: false, tenant: 'acme', scopes: ['encrypt:*', 'audit'] }), []);
  });

  it('names the rule that decided', () => {
    const rule = (name: string, action: Action, className: string, extra: Partial<Question> = {}) =>
      decide(shipped, agent(name), { action, class: className, ...extra }).ruleId;
    assert.equal(rule('invoice-agent', 'encrypt', 'bank'), 'invoice-agent/grants/0');
    assert.equal(rule('invoice-agent', 'decrypt', 'bank', { view: 'masked' }), 'invoice-agent/grants/1');
    assert.equal(rule('invoice-agent', 'decrypt', 'bank', { view: 'full' }), 'default');
    assert.equal(rule('invoice-agent', 'encrypt', 'ssn'), 'default');
    assert.equal(rule('recruit-agent', 'decrypt', 'bank'), 'recruit-agent/deny/0');
    assert.equal(rule('recruit-agent', 'encrypt', 'salary'), 'recruit-agent/deny/1');
    const elsewhere = decide(shipped, agent('hr-agent', 'globex'), { action: 'match', class: 'ssn' });
    assert.equal(elsewhere.ruleId, 'hr-agent/tenants');
  });
});
