/** Effective right = agent ∩ token ∩ person; deny wins; nothing that is added to narrow ever widens. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { decide, effectiveGrants, type Decision, type Principal, type Question } from '../../src/policy/access.ts';
import type { Policy, View } from '../../src/policy/policy.ts';
import { views, type PolicyFile } from '../../src/policy/schema.ts';
import { fieldActions } from '../../src/policy/scope.ts';
import { isInvalid, policyWith, shipped } from './support.ts';

/** A policy of one agent `a` and one person `p`. */
function pair(
  agentGrants: string[],
  personGrants: string[],
  change: (file: PolicyFile) => void = () => undefined,
): Policy {
  return policyWith((file) => {
    file.agents = { a: { tenants: ['*'], grants: agentGrants } };
    file.people = { p: { tenants: ['acme', 'globex'], grants: personGrants } };
    delete file.approvals;
    change(file);
  });
}
const alone: Principal = { agent: 'a', tenant: 'acme', system: false };
const behalf: Principal = { ...alone, person: 'p' };
const decrypt = (view?: View): Question => ({ action: 'decrypt', class: 'ssn', ...(view !== undefined && { view }) });
const short = ({ decision, ruleId, view }: Decision) => [decision, ruleId, ...(view === undefined ? [] : [view])];

describe('policy/access: views', () => {
  it('gives the highest view that is granted and not above the default, where none is named', () => {
    const cases: [string[], string][] = [
      [['decrypt:ssn:full'], 'masked'],
      [['decrypt:ssn:last4'], 'masked'],
      [['decrypt:ssn:masked'], 'masked'],
      [['decrypt:ssn:exists'], 'exists'],
      [['decrypt:ssn:exists', 'decrypt:ssn:full'], 'masked'],
      [['decrypt:ssn:full', 'decrypt:ssn:exists'], 'masked'],
      [['decrypt:*:exists'], 'exists'],
    ];
    for (const [grants, expected] of cases) {
      assert.equal(decide(pair(grants, []), alone, decrypt()).view, expected, grants.join());
    }
    const policy = pair(['decrypt:ssn:full'], [], (file) => (file.classes['ssn']!.defaultView = 'last4'));
    assert.equal(decide(policy, alone, decrypt()).view, 'last4');
  });

  it('a grant covers what is below its view and nothing above; without a view it ends at the default', () => {
    const ladder = ['full', 'last4', 'masked', 'exists'] as const;
    for (const [i, granted] of [...ladder, undefined].entries()) {
      const policy = pair([granted === undefined ? 'decrypt:ssn' : `decrypt:ssn:${granted}`], []);
      const top = granted === undefined ? 2 : i;
      for (const [j, asked] of ladder.entries()) {
        const expected = j >= top ? ['allow', 'a/grants/0', asked] : ['deny', 'default'];
        assert.deepEqual(short(decide(policy, alone, decrypt(asked))), expected);
      }
    }
  });

  it('takes a grant for every class to the next view below on a ladder that lacks it', () => {
    const granted = (view: string) => {
      const policy = pair([`decrypt:*:${view}`], []);
      return ['ssn', 'salary'].map((name) =>
        shipped.classes
          .get(name)!
          .views.filter(
            (each) => decide(policy, alone, { action: 'decrypt', class: name, view: each }).decision === 'allow',
          )
          .join(),
      );
    };
    assert.deepEqual(granted('full'), ['full,last4,masked,exists', 'full,bucket,masked,exists']);
    assert.deepEqual(granted('last4'), ['last4,masked,exists', 'masked,exists']);
    assert.deepEqual(granted('bucket'), ['masked,exists', 'bucket,masked,exists']);
    const without = pair(
      ['decrypt:*:exists'],
      [],
      (file) => (file.classes['ssn']!.views = ['full', 'last4', 'masked']),
    );
    assert.deepEqual(short(decide(without, alone, decrypt())), ['deny', 'default']);
    assert.deepEqual(short(decide(without, { ...alone, scopes: ['decrypt:*:exists'] }, decrypt())), [
      'deny',
      'default',
    ]);
  });

  it('throws request_invalid for a view that is not on the ladder, whoever asks, and for nothing else', () => {
    for (const who of [alone, { system: false }, { ...alone, tenant: 'zzz' }]) {
      assert.throws(() => decide(pair([], []), who, decrypt('bucket')), isInvalid);
      assert.throws(() => decide(shipped, who, { action: 'decrypt', class: 'salary', view: 'last4' }), isInvalid);
    }
    for (const view of views) {
      const { decision } = decide(shipped, alone, { action: 'decrypt', class: 'unheard', view });
      assert.equal(decision, 'deny');
    }
  });

  it('says which scope is missing', () => {
    const missing = (question: Question) => decide(pair([], []), alone, question).missingScope;
    assert.equal(missing(decrypt()), 'decrypt:ssn');
    assert.equal(missing(decrypt('full')), 'decrypt:ssn:full');
    assert.equal(missing({ action: 'audit' }), 'audit');
    assert.equal(missing({ action: 'encrypt', class: 'unheard' }), 'encrypt:*');
  });
});

describe('policy/access: sides', () => {
  it('intersects agent, token and person', () => {
    const policy = pair(['decrypt:ssn:full', 'encrypt:ssn'], ['decrypt:ssn:last4', 'match:ssn']);
    assert.deepEqual(short(decide(policy, alone, decrypt('full'))), ['allow', 'a/grants/0', 'full']);
    assert.deepEqual(short(decide(policy, behalf, decrypt('full'))), ['deny', 'default']);
    assert.deepEqual(short(decide(policy, behalf, decrypt('last4'))), ['allow', 'a/grants/0', 'last4']);
    assert.deepEqual(short(decide(policy, behalf, { action: 'encrypt', class: 'ssn' })), ['deny', 'default']);
    assert.deepEqual(short(decide(policy, behalf, { action: 'match', class: 'ssn' })), ['deny', 'default']);
    const token = (...scopes: string[]) => ({ ...behalf, scopes });
    assert.deepEqual(short(decide(policy, token('decrypt:ssn:masked'), decrypt('last4'))), ['deny', 'token']);
    assert.deepEqual(short(decide(policy, token('decrypt:ssn:full'), decrypt('full'))), ['deny', 'default']);
    assert.deepEqual(short(decide(policy, token('decrypt:ssn:full'), decrypt('last4'))), [
      'allow',
      'a/grants/0',
      'last4',
    ]);
    assert.deepEqual(short(decide(policy, token('decrypt:*:exists'), decrypt())), ['allow', 'a/grants/0', 'exists']);
    assert.deepEqual(short(decide(policy, token(), decrypt('exists'))), ['deny', 'token']);
    assert.deepEqual(short(decide(policy, token('encrypt:ssn'), decrypt('exists'))), ['deny', 'token']);
  });

  it('scopes of a token are read as strictly as grants', () => {
    const policy = pair(['encrypt:*', 'decrypt:ssn:full', 'audit'], []);
    const bad = [
      '*:ssn',
      '*:*',
      '*',
      'encrypt',
      'encrypt:',
      'encrypt:bank',
      'ENCRYPT:ssn',
      ' encrypt:ssn',
      'encrypt:ssn:full',
    ];
    for (const scope of bad) {
      const who = { ...alone, scopes: [scope, 'openid'] };
      assert.deepEqual(short(decide(policy, who, { action: 'encrypt', class: 'ssn' })), ['deny', 'token'], scope);
    }
    assert.equal(
      decide(policy, { ...alone, scopes: ['bad', 'encrypt:ssn'] }, { action: 'encrypt', class: 'ssn' }).decision,
      'allow',
    );
    const audit = (...scopes: string[]) => decide(policy, { ...alone, scopes }, { action: 'audit' }).decision;
    assert.deepEqual([audit('audit'), audit('audit:ssn'), audit('encrypt:*')], ['allow', 'deny', 'deny']);
    for (const scopes of [
      ['decrypt:ssn:full', 'decrypt:ssn:exists'],
      ['decrypt:ssn:exists', 'decrypt:*:full'],
    ]) {
      assert.equal(decide(policy, { ...alone, scopes }, decrypt('full')).decision, 'allow');
    }
    assert.equal(decide(policy, { ...alone, scopes: ['decrypt:ssn'] }, decrypt()).view, 'masked');
    assert.equal(decide(policy, { ...alone, scopes: ['decrypt:ssn'] }, decrypt('last4')).decision, 'deny');
    assert.equal(decide(policy, { ...alone, scopes: ['decrypt:*:bucket'] }, decrypt('last4')).decision, 'deny');
  });

  it('a person has a right alone, in its own tenants', () => {
    const policy = pair([], ['decrypt:ssn:last4', 'audit']);
    const as = (tenant?: string): Principal => ({
      person: 'p',
      system: false,
      ...(tenant !== undefined && { tenant }),
    });
    assert.deepEqual(short(decide(policy, as('acme'), decrypt('last4'))), ['allow', 'p/grants/0', 'last4']);
    assert.equal(decide(policy, as('globex'), { action: 'audit' }).decision, 'allow');
    for (const who of [as('initech'), as(''), as('*'), as()]) {
      assert.deepEqual(short(decide(policy, who, decrypt())), ['deny', 'p/tenants']);
    }
  });

  it('both have to be at home in the tenant', () => {
    const policy = pair(['match:ssn'], ['match:ssn'], (file) => (file.agents['a']!.tenants = ['acme', 'initech']));
    const at = (tenant: string) => short(decide(policy, { ...behalf, tenant }, { action: 'match', class: 'ssn' }));
    assert.deepEqual(at('acme'), ['allow', 'a/grants/0']);
    assert.deepEqual(at('initech'), ['deny', 'p/tenants']);
    assert.deepEqual(at('globex'), ['deny', 'a/tenants']);
  });

  it('deny wins over every grant, on either side, and covers all views and the classes that do not exist', () => {
    const denies: [string[], string[]][] = [
      [['decrypt:ssn'], []],
      [['*:ssn'], []],
      [['*:*'], []],
      [['decrypt:*'], []],
      [[], ['*:ssn']],
    ];
    for (const [agentDeny, personDeny] of denies) {
      const policy = pair(['decrypt:ssn:full', 'decrypt:*:full'], ['decrypt:ssn:full'], (file) => {
        file.agents['a']!.deny = agentDeny;
        file.people['p']!.deny = personDeny;
      });
      const rule = agentDeny.length > 0 ? 'a/deny/0' : 'p/deny/0';
      for (const view of ['full', 'exists', undefined] as const) {
        assert.deepEqual(short(decide(policy, behalf, decrypt(view))), ['deny', rule]);
      }
    }
    const policy = pair(['encrypt:*'], [], (file) => (file.agents['a']!.deny = ['*:*']));
    assert.deepEqual(short(decide(policy, alone, { action: 'encrypt', class: 'unheard' })), ['deny', 'a/deny/0']);
  });

  it('an unknown class is allowed by grants for every class only', () => {
    const unknown = (grant: string, scopes?: string[]) =>
      decide(pair([grant], []), { ...alone, ...(scopes && { scopes }) }, { action: 'encrypt', class: 'unheard' })
        .decision;
    assert.deepEqual([unknown('encrypt:*'), unknown('encrypt:ssn'), unknown('reencrypt:*')], ['allow', 'deny', 'deny']);
    assert.equal(unknown('encrypt:*', ['encrypt:ssn']), 'deny');
    for (const name of ['*', '', 'constructor', '__proto__', 'ssn:full', 'SSN']) {
      const { decision } = decide(pair(['encrypt:ssn'], []), alone, { action: 'encrypt', class: name });
      assert.equal(decision, 'deny');
    }
    assert.equal(decide(pair(['encrypt:ssn'], []), alone, { action: 'encrypt' }).decision, 'deny');
    const audit = pair(['audit'], []);
    assert.equal(decide(audit, alone, { action: 'audit', class: 'ssn' }).decision, 'deny');
  });

  it('a purpose opens its own grant and leaves the others', () => {
    const policy = pair([], [], (file) => {
      const when = { purpose: ['onboarding', 'offboarding'] };
      file.agents['a']!.grants = ['decrypt:ssn:exists', { scope: 'decrypt:ssn:full', when }, { scope: 'match:ssn' }];
    });
    const ask = (purpose?: string) =>
      short(decide(policy, alone, { ...decrypt(), ...(purpose !== undefined && { purpose }) }));
    assert.deepEqual(ask(), ['allow', 'a/grants/0', 'exists']);
    assert.deepEqual(ask('fun'), ['allow', 'a/grants/0', 'exists']);
    assert.deepEqual(ask('offboarding'), ['allow', 'a/grants/1', 'masked']);
    assert.equal(decide(policy, alone, { action: 'match', class: 'ssn' }).decision, 'allow');
    assert.deepEqual(short(decide(policy, alone, decrypt('last4'))), ['deny', 'default']);
  });

  it('says to people what is granted', () => {
    const policy = pair(['encrypt:ssn'], ['decrypt:ssn:last4'], (file) => (file.agents['a']!.deny = ['*:bank']));
    assert.deepEqual(effectiveGrants(policy, alone), ['encrypt:ssn', 'not *:bank']);
    assert.deepEqual(effectiveGrants(policy, { ...behalf, scopes: ['encrypt:*'] }), [
      'encrypt:ssn, not *:bank',
      'and only: decrypt:ssn:last4',
      'and only: encrypt:*',
    ]);
    assert.deepEqual(effectiveGrants(shipped, { agent: 'hr-agent', tenant: 'acme', system: false }), [
      'search:ssn',
      'match:ssn',
      'decrypt:ssn:full when purpose is onboarding',
    ]);
    assert.deepEqual(effectiveGrants(policy, { system: false }), []);
  });
});

describe('policy/access: nothing that narrows widens', () => {
  const name = fc.constantFrom('ssn', 'bank', 'salary', '*');
  const view: fc.Arbitrary<string> = fc.constantFrom('', ':full', ':masked', ':exists');
  const action = fc.constantFrom(...fieldActions.filter((each) => each !== 'rotate' && each !== 'destroy'));
  const scope = fc.tuple(action, name, view).map(([a, c, v]) => `${a}:${c}${a === 'decrypt' ? v : ''}`);
  const denied = fc.tuple(fc.constantFrom('*', ...fieldActions), name).map(([a, c]) => `${a}:${c}`);
  const scopes = fc.array(scope, { maxLength: 6 });

  /** Every answer, as the highest place on the ladder that is given; Infinity is a denial. */
  function answers(policy: Policy, who: Principal): number[] {
    return fieldActions.flatMap((each) =>
      ['ssn', 'bank', 'salary', 'unheard'].flatMap((className) => {
        const ladder = policy.classes.get(className)?.views;
        if (each !== 'decrypt' || ladder === undefined) {
          return [decide(policy, who, { action: each, class: className }).decision === 'allow' ? 0 : Infinity];
        }
        const asked = [undefined, ...ladder].map((named) =>
          decide(policy, who, { action: each, class: className, ...(named !== undefined && { view: named }) }),
        );
        return asked.map(({ decision, view: given }) => (decision === 'allow' ? ladder.indexOf(given!) : Infinity));
      }),
    );
  }
  function assertNarrower(narrow: readonly number[], wide: readonly number[]): void {
    for (const [i, place] of narrow.entries()) assert.ok(place >= wide[i]!, `answer ${i} widened`);
  }

  it('neither a deny, nor a token’s scopes, nor a person; and a grant never takes away', () => {
    fc.assert(
      fc.property(scopes, scopes, scopes, denied, scope, (own, theirs, token, deny, more) => {
        const policy = pair(own, theirs);
        const base = answers(policy, alone);
        assertNarrower(answers(policy, behalf), base);
        assertNarrower(answers(policy, behalf), answers(policy, { person: 'p', tenant: 'acme', system: false }));
        assertNarrower(answers(policy, { ...alone, scopes: token }), base);
        assertNarrower(
          answers(policy, { ...alone, scopes: token }),
          answers(policy, { ...alone, scopes: [...token, more] }),
        );
        assertNarrower(answers(policy, { ...behalf, scopes: token }), answers(policy, behalf));
        const narrowed = pair(own, theirs, (file) => (file.agents['a']!.deny = [deny]));
        assertNarrower(answers(narrowed, alone), base);
        assertNarrower(base, answers(pair([...own, more], theirs), alone));
      }),
      { numRuns: 150 },
    );
  });
});
