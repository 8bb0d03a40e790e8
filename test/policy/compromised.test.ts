/** Values of a compromised version: only grants that say so cover them, on every side, and nothing else changes. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { decide, effectiveGrants, type Decision, type Principal, type Question } from '../../src/policy/access.ts';
import type { Policy, View } from '../../src/policy/policy.ts';
import type { GrantEntry, PolicyFile } from '../../src/policy/schema.ts';
import { fieldActions, openingActions } from '../../src/policy/scope.ts';
import { policyWith, problemsOf, shipped, shippedFile } from './support.ts';

type Change = (file: PolicyFile) => void;

/** A policy of one agent `a` and one person `p`. */
function pair(agentGrants: GrantEntry[], personGrants: GrantEntry[], change: Change = () => undefined): Policy {
  return policyWith((file) => {
    file.agents = { a: { tenants: ['*'], grants: agentGrants } };
    file.people = { p: { tenants: ['acme'], grants: personGrants } };
    delete file.approvals;
    change(file);
  });
}

const alone: Principal = { agent: 'a', tenant: 'acme', system: false };
const behalf: Principal = { ...alone, person: 'p' };
const flagged = (scope: string): GrantEntry => ({ scope, compromised: true });
const decrypt = (view?: View): Question => ({
  action: 'decrypt',
  class: 'ssn',
  compromised: true,
  ...(view !== undefined && { view }),
});
const of = (action: 'match' | 'reencrypt'): Question => ({ action, class: 'ssn', compromised: true });
const short = ({ decision, ruleId, view }: Decision) => [decision, ruleId, ...(view === undefined ? [] : [view])];
const deniesReading: Change = (file) => (file.classes['ssn']!.compromised = 'deny');

describe('policy/access: compromised versions', () => {
  it('are opened by grants that say so only', () => {
    const plain = pair(['decrypt:ssn:full', 'match:ssn', 'reencrypt:*'], []);
    for (const question of [decrypt(), decrypt('full'), decrypt('exists'), of('match'), of('reencrypt')]) {
      assert.deepEqual(short(decide(plain, alone, question)), ['deny', 'compromised']);
    }
    const says = pair([flagged('decrypt:ssn:last4'), flagged('match:*'), flagged('reencrypt:ssn')], []);
    assert.deepEqual(short(decide(says, alone, decrypt('last4'))), ['allow', 'a/grants/0', 'last4']);
    assert.deepEqual(short(decide(says, alone, decrypt())), ['allow', 'a/grants/0', 'masked']);
    assert.deepEqual(short(decide(says, alone, of('match'))), ['allow', 'a/grants/1']);
    assert.deepEqual(short(decide(says, alone, of('reencrypt'))), ['allow', 'a/grants/2']);
  });

  it('name the scope that is missing', () => {
    const plain = pair(['decrypt:ssn:full', 'match:*'], []);
    assert.equal(decide(plain, alone, decrypt('full')).missingScope, 'decrypt:ssn:full');
    assert.equal(decide(plain, alone, of('match')).missingScope, 'match:ssn');
  });

  it('are shown as far as the grant that says so goes', () => {
    const policy = pair(['decrypt:ssn:full', flagged('decrypt:ssn:exists')], []);
    assert.deepEqual(short(decide(policy, alone, decrypt())), ['allow', 'a/grants/1', 'exists']);
    assert.deepEqual(short(decide(policy, alone, decrypt('exists'))), ['allow', 'a/grants/1', 'exists']);
    assert.deepEqual(short(decide(policy, alone, decrypt('last4'))), ['deny', 'compromised']);
    assert.deepEqual(short(decide(policy, alone, { ...decrypt('last4'), compromised: false })), [
      'allow',
      'a/grants/0',
      'last4',
    ]);
  });

  it('stay closed to everybody where the class says deny', () => {
    const policy = pair([flagged('decrypt:*:full'), flagged('decrypt:ssn:full')], [], deniesReading);
    assert.deepEqual(short(decide(policy, alone, decrypt())), ['deny', 'compromised']);
    assert.deepEqual(short(decide(policy, alone, { ...decrypt(), compromised: false })), [
      'allow',
      'a/grants/0',
      'masked',
    ]);
    const bank = decide(policy, alone, { ...decrypt(), class: 'bank' });
    assert.deepEqual(short(bank), ['allow', 'a/grants/0', 'masked'], 'another class is another matter');
    const said = pair([flagged('decrypt:ssn:full')], [], (file) => (file.classes['ssn']!.compromised = 'grants'));
    assert.equal(decide(said, alone, decrypt()).decision, 'allow');
  });

  it('need it of the agent and of the person; a token’s scopes only narrow', () => {
    const both = pair([flagged('decrypt:ssn:full')], [flagged('decrypt:ssn:last4')]);
    assert.deepEqual(short(decide(both, behalf, decrypt('last4'))), ['allow', 'a/grants/0', 'last4']);
    assert.deepEqual(short(decide(both, behalf, decrypt('full'))), ['deny', 'default'], 'nor would it be otherwise');
    const one = pair([flagged('decrypt:ssn:full')], ['decrypt:ssn:last4']);
    const other = pair(['decrypt:ssn:full'], [flagged('decrypt:ssn:last4')]);
    for (const policy of [one, other]) {
      assert.deepEqual(short(decide(policy, behalf, decrypt('last4'))), ['deny', 'compromised']);
    }
    const token = (...scopes: string[]) => short(decide(both, { ...behalf, scopes }, decrypt()));
    assert.deepEqual(token('decrypt:ssn:exists'), ['allow', 'a/grants/0', 'exists']);
    assert.deepEqual(token('match:ssn'), ['deny', 'token']);
  });

  it('are never why who had no right anyway is refused', () => {
    const denied = pair([flagged('decrypt:ssn:full'), 'decrypt:ssn:full'], [flagged('decrypt:ssn:full')], (file) => {
      file.people['p']!.deny = ['*:ssn'];
    });
    assert.deepEqual(short(decide(denied, behalf, decrypt())), ['deny', 'p/deny/0']);
    assert.equal(decide(denied, alone, decrypt()).decision, 'allow');
    assert.deepEqual(short(decide(pair(['decrypt:ssn:full'], ['match:ssn']), behalf, decrypt())), ['deny', 'default']);
    assert.deepEqual(short(decide(shipped, { ...alone, agent: 'cx-agent' }, decrypt('full'))), ['deny', 'default']);
    assert.deepEqual(short(decide(pair(['decrypt:ssn'], []), { ...alone, scopes: [] }, decrypt())), ['deny', 'token']);
  });

  it('keep the conditions of the grant', () => {
    const when = { purpose: ['incident'] };
    const policy = pair([{ scope: 'decrypt:ssn:full', when, compromised: true }, 'decrypt:ssn:masked'], []);
    assert.deepEqual(short(decide(policy, alone, { ...decrypt('full'), purpose: 'incident' })), [
      'allow',
      'a/grants/0',
      'full',
    ]);
    assert.deepEqual(short(decide(policy, alone, decrypt('full'))), ['deny', 'default']);
    assert.deepEqual(short(decide(policy, alone, decrypt())), ['deny', 'compromised']);
    assert.deepEqual(effectiveGrants(policy, alone), [
      'decrypt:ssn:full including compromised versions when purpose is incident',
      'decrypt:ssn:masked',
    ]);
    const match = pair([{ scope: 'match:ssn', compromised: true }], []);
    assert.deepEqual(effectiveGrants(match, alone), ['match:ssn including compromised versions']);
  });

  it('only ever narrow', () => {
    const view = fc.constantFrom('', ':full', ':last4', ':exists');
    const grant = fc
      .tuple(fc.constantFrom(...openingActions), fc.constantFrom('ssn', '*'), view, fc.boolean())
      .map(([action, name, shown, says]): GrantEntry => {
        const scope = `${action}:${name}${action === 'decrypt' ? shown : ''}`;
        return says ? { scope, compromised: true } : scope;
      });
    const grants = fc.array(grant, { maxLength: 5 });
    const plain = (list: readonly GrantEntry[]) => list.map((each) => (typeof each === 'string' ? each : each.scope));
    const ladder = shipped.classes.get('ssn')!.views;
    const placeOf = ({ decision, view: shown }: Decision) =>
      decision === 'deny' ? Infinity : shown === undefined ? 0 : ladder.indexOf(shown);
    fc.assert(
      fc.property(grants, grants, fc.boolean(), (own, theirs, nobody) => {
        const policy = pair(own, theirs, nobody ? deniesReading : undefined);
        const without = pair(plain(own), plain(theirs));
        const asks = [decrypt(), ...ladder.map(decrypt), of('match'), of('reencrypt')];
        for (const who of [alone, behalf]) {
          for (const question of asks) {
            const usual = { ...question, compromised: false };
            const [closed, open] = [decide(policy, who, question), decide(policy, who, usual)];
            assert.ok(placeOf(closed) >= placeOf(open));
            assert.deepEqual(open, { ...decide(without, who, usual), policyVersion: open.policyVersion });
            if (nobody) assert.equal(closed.decision, 'deny');
          }
        }
      }),
      { numRuns: 100 },
    );
  });
});

describe('policy/checks: compromised versions', () => {
  const problemsWith = (change: Change) => {
    const file = shippedFile();
    change(file);
    return problemsOf(JSON.stringify(file));
  };

  it('are for what opens values', () => {
    for (const action of fieldActions.filter((each) => each !== 'rotate' && each !== 'destroy')) {
      const problems = problemsWith((file) => file.agents['cx-agent']!.grants.push(flagged(`${action}:ssn`)));
      const words = `agents.cx-agent.grants[2].compromised: ${action} opens no value: only decrypt, match and reencrypt do`;
      assert.deepEqual(problems, openingActions.has(action) ? [] : [words]);
    }
    const audit = problemsWith((file) => file.people['security-auditor']!.grants.push(flagged('audit')));
    assert.match(audit.join(), /people\.security-auditor\.grants\[2\]\.compromised: audit opens no value/);
  });

  it('are spelled as the schema says, and other mistakes are told beside them', () => {
    const problems = problemsWith((file) => {
      Object.assign(file.classes['ssn']!, { compromised: 'nobody' });
      file.agents['cx-agent']!.grants.push({ scope: 'match:tax', compromised: false } as never);
      file.people['operator']!.grants.push({ scope: 'decrypt:ssn', compromised: 'yes' } as never);
    });
    assert.deepEqual(problems, [
      'classes.ssn.compromised: must be one of "grants", "deny"',
      'agents.cx-agent.grants[2].scope: there is no class tax',
      'agents.cx-agent.grants[2].compromised: must be true',
      'people.operator.grants[2].scope: a system principal has no tenant and so no right to data',
      'people.operator.grants[2].compromised: must be true',
    ]);
  });
});
