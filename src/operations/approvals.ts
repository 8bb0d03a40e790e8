/** GET /v1/approvals, /v1/approvals/{id} and the decisions on them: what is asked for, and who agrees. */
import { FieldkeepError } from '../errors.ts';
import { checkDecider, listApprovers, standingOf, type Verdict } from '../policy/approval.ts';
import type { Policy } from '../policy/policy.ts';
import type { Service } from '../service.ts';
import { findApproval, insertDecision, listStored, type StoredApproval } from './approval-store.ts';
import { performCall } from './call.ts';
import { questionsAbout } from './questions.ts';
import { Overtaken, type Call, type Operation } from './perform.ts';
import { cutPage, readPage, uuidPattern } from './page.ts';

function viewApproval(policy: Policy, approval: StoredApproval): object {
  const { id, action, about, details, reason, agent, person, requestDigest, createdAt, decisions, usedAt } = approval;
  const { status, required, received, expiresAt } = standingOf(policy, approval);
  return {
    ...{ id, status, action, about, details, reason, createdAt, expiresAt, required, received },
    ...{ requestedBy: { agent, person }, approvers: listApprovers(policy, approval), decisions, requestDigest, usedAt },
  };
}

/** Whoever decides, whoever may have asked, and whoever reads the audit. */
function questionsOnApprovals(service: Service) {
  return [{ action: 'approve' } as const, ...questionsAbout(undefined, service)];
}

/** Errors: `not_found`. */
async function getStored(service: Service, call: Call): Promise<StoredApproval> {
  const id = call.params['id']!;
  const found = uuidPattern.test(id) ? await findApproval(service.pool, id) : undefined;
  if (found === undefined) throw new FieldkeepError('not_found', 'There is no approval with this id.');
  return found;
}

/** Errors: `not_found`, and those of `checkDecider`. */
async function getUndecided(service: Service, call: Call): Promise<StoredApproval> {
  const approval = await getStored(service, call);
  checkDecider(service.policy, approval, call.principal);
  return approval;
}

export const listApprovals: Operation = (service, call) =>
  performCall(service, call, { action: 'approvals', questions: questionsOnApprovals(service) }, async () => {
    const { page, next } = cutPage(call, await listStored(service.pool, readPage(call)), ({ id }) => id);
    return { body: { items: page.map((approval) => viewApproval(service.policy, approval)), ...next } };
  });

export const getApproval: Operation = (service, call) =>
  performCall(service, call, { action: 'approvals', questions: questionsOnApprovals(service) }, async () => ({
    body: viewApproval(service.policy, await getStored(service, call)),
  }));

export const decideApproval: Operation = (service, call) =>
  performCall(service, call, { action: 'approve', questions: [{ action: 'approve' }] }, async () => {
    const { policy } = service;
    const { decision, reason } = call.body as { decision: Verdict; reason: string };
    const { id, decisions } = await getUndecided(service, call);
    const person = call.principal.person!;
    return {
      facts: { purpose: `${decision} of approval ${id}: ${reason}` },
      async writes(tx) {
        const now = (await findApproval(tx, id))!;
        if (now.decisions.length !== decisions.length) throw new Overtaken(); // somebody else was first
        await insertDecision(tx, id, { person, decision, reason });
        return viewApproval(policy, (await findApproval(tx, id))!);
      },
    };
  });
