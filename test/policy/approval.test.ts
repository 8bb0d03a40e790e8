/** Who may decide on what other people have to agree to, and how it stands. */
import assert from 'node:assert/strict';
import type { Principal } from '../../src/policy/access.ts';
import {
  checkDecider,
  checkOpen,
  findApprovalRule,
  listApprovers,
  standingOf,
  useWithinMs,
  type ApprovalDecision,
  type ApprovalStatus,
  type Asked,
} from '../../src/policy/approval.ts';
import { FieldkeepError } from '../../src/errors.ts';
import { policyWith, shipped } from './support.ts';

const hour = 3_600_000;
const at = (hours: number) => new Date(Date.UTC(2026, 0, 1) + hours * hour);

/** `boss` may do both; `intern` is in the group without the right; `clerk` has the right and is not in the group. */
const policy = policyWith((file) => {
  file.people['boss'] = { system: true, grants: ['rotate:*', 'approve'] };
  file.people['intern'] = { system: true, grants: ['audit'] };
  file.people['clerk'] = { system: true, grants: ['approve'] };
  file.people['suspended'] = { system: true, grants: ['approve'], deny: ['approve'] };
  const group = ['security-auditor', 'security-lead', 'boss', 'intern', 'suspended', 'boss'];
  file.approvals = { waive: { group, n: 2, within: 'P1D' } };
});

const decided = (person: string, decision: 'approve' | 'deny', hours: number): ApprovalDecision => ({
  ...{ person, decision, reason: 'because', decidedAt: at(hours) },
});
const approve = (person: string, hours: number) => decided(person, 'approve', hours);
const asked = (more: Partial<Asked> = {}): Asked => ({
  ...{ action: 'waive', person: 'operator', required: 2, decideBy: at(24), decisions: [], now: at(1) },
  ...more,
});
const person = (name: string): Principal => ({ person: name, system: true });
const codeOf = (work: () => unknown) => {
  try {
    work();
    return undefined;
  } catch (error) {
    assert.ok(error instanceof FieldkeepError);
    return error.code;
  }
};

describe('policy/approval', () => {
  it('goes by the rule of destroy where waive has none', () => {
    assert.equal(findApprovalRule(shipped, 'waive'), shipped.approvals.get('destroy'));
    assert.equal(findApprovalRule(policy, 'waive')!.group.length, 6);
    assert.equal(findApprovalRule(policy, 'destroy'), undefined);
    const nobody = policyWith((file) => delete file.approvals);
    assert.equal(findApprovalRule(nobody, 'waive'), undefined);
  });

  it('names each of the group who holds the right and did not ask', () => {
    const approvers = (who: Pick<Asked, 'agent' | 'person'>) => listApprovers(policy, { action: 'waive', ...who });
    assert.deepEqual(approvers({ person: 'operator' }), ['security-auditor', 'security-lead', 'boss']);
    assert.deepEqual(approvers({ person: 'boss' }), ['security-auditor', 'security-lead']);
    assert.deepEqual(approvers({ agent: 'hr-agent', person: 'security-lead' }), ['security-auditor', 'boss']);
    assert.deepEqual(approvers({ agent: 'boss', person: 'security-lead' }), ['security-auditor']);
    assert.deepEqual(listApprovers(policy, { action: 'destroy', person: 'operator' }), []);
  });

  const standings: [string, Partial<Asked>, ApprovalStatus, number][] = [
    ['nobody decided', {}, 'pending', 0],
    ['one of two', { decisions: [approve('security-lead', 1)] }, 'pending', 1],
    ['two', { decisions: [approve('security-lead', 1), approve('boss', 1)] }, 'approved', 2],
    ['one person twice', { decisions: [approve('boss', 1), approve('boss', 2)] }, 'pending', 1],
    ['who asked', { person: 'boss', decisions: [approve('boss', 1), approve('security-lead', 1)] }, 'pending', 1],
    ['a stranger', { decisions: [approve('clerk', 1), approve('boss', 1)] }, 'pending', 1],
    ['without the right', { decisions: [approve('intern', 1), approve('suspended', 1)] }, 'pending', 0],
    ['a denial', { decisions: [decided('boss', 'deny', 1)] }, 'denied', 0],
    [
      'a denial among approvals',
      { decisions: [approve('boss', 1), approve('security-lead', 1), decided('security-auditor', 'deny', 1)] },
      'denied',
      2,
    ],
    ['the last moment to decide', { now: new Date(at(24).getTime() - 1) }, 'pending', 0],
    ['too late to decide', { now: at(24) }, 'expired', 0],
    ['denied, then late', { now: at(25), decisions: [decided('boss', 'deny', 1)] }, 'denied', 0],
    [
      'the last moment to use it, after the time to decide',
      { now: new Date(at(24.5).getTime() - 1), decisions: [approve('security-lead', 1), approve('boss', 23.5)] },
      'approved',
      2,
    ],
    [
      'too late to use it, long before the time to decide is over',
      { now: at(3), decisions: [approve('boss', 2), approve('security-lead', 1)] },
      'expired',
      2,
    ],
    ['used', { now: at(50), usedAt: at(2), decisions: [approve('security-lead', 1), approve('boss', 1)] }, 'used', 2],
    ['three were needed', { required: 3, decisions: [approve('security-lead', 1), approve('boss', 1)] }, 'pending', 2],
  ];
  for (const [name, more, status, received] of standings) {
    it(`stands: ${name}`, () => {
      const standing = standingOf(policy, asked(more));
      assert.deepEqual([standing.status, standing.received], [status, received]);
    });
  }

  it('expires an hour after the approval that completed it', () => {
    assert.equal(useWithinMs, hour);
    assert.deepEqual(standingOf(policy, asked()).expiresAt, at(24));
    const decisions = [approve('boss', 5), approve('security-lead', 2), approve('security-auditor', 7)];
    assert.deepEqual(standingOf(policy, asked({ now: at(5.5), decisions })).expiresAt, at(6));
  });

  it('follows the policy in force: who left does not count, and more are needed when it says so', () => {
    const decisions = [approve('security-lead', 1), approve('security-auditor', 1)];
    const stands = (changed: typeof policy) => standingOf(changed, asked({ decisions })).status;
    assert.equal(stands(shipped), 'approved');
    assert.equal(stands(policyWith((file) => (file.people['security-lead']!.grants = ['audit']))), 'pending');
    const stricter = policyWith((file) => {
      file.people['boss'] = { system: true, grants: ['approve'] };
      file.approvals!['destroy'] = { group: ['security-auditor', 'security-lead', 'boss'], n: 3, within: 'P1D' };
    });
    assert.equal(stands(stricter), 'pending');
    assert.equal(stands(policyWith((file) => delete file.approvals)), 'pending');
    const laxer = policyWith((file) => (file.approvals!['destroy']!.n = 1));
    assert.equal(standingOf(laxer, asked({ decisions: decisions.slice(1) })).status, 'pending');
  });

  it('lets be used only what is open', () => {
    const codes = (['pending', 'approved', 'used', 'denied', 'expired'] as const).map((status) =>
      codeOf(() => checkOpen({ status, required: 2, received: 2, expiresAt: at(1) })),
    );
    assert.deepEqual(codes, [undefined, undefined, 'approval_used', 'approval_denied', 'approval_expired']);
  });

  const deciders: [string, Principal, Partial<Asked>, string | undefined][] = [
    ['one of the group', person('boss'), {}, undefined],
    ['who asked', person('boss'), { person: 'boss' }, 'forbidden'],
    ['for whom an agent asked', person('boss'), { agent: 'hr-agent', person: 'boss' }, 'forbidden'],
    ['not in the group', person('clerk'), {}, 'forbidden'],
    ['in the group without the right', person('intern'), {}, 'forbidden'],
    ['an agent in the name of one', { agent: 'hr-agent', person: 'boss', system: false }, {}, 'forbidden'],
    ['an agent', { agent: 'hr-agent', system: false }, {}, 'forbidden'],
    ['once more', person('boss'), { decisions: [approve('boss', 1)] }, 'conflict'],
    ['after enough', person('boss'), { required: 1, ...twoOthers() }, 'conflict'],
    ['after a denial', person('boss'), { decisions: [decided('security-lead', 'deny', 1)] }, 'conflict'],
    ['after its use', person('boss'), { usedAt: at(1), ...twoOthers() }, 'conflict'],
    ['too late', person('boss'), { now: at(24) }, 'approval_expired'],
  ];
  function twoOthers() {
    return { decisions: [approve('security-lead', 1), approve('security-auditor', 1)] };
  }
  for (const [name, who, more, code] of deciders) {
    it(`hears ${name}: ${code ?? 'yes'}`, () => {
      assert.equal(
        codeOf(() => checkDecider(policy, asked(more), who)),
        code,
      );
    });
  }
});
