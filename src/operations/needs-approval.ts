/**
 * For calls that other people have to agree to. The first call asks and is answered 202 with the approval's id; repeated
 * with that id in `Approval-Id`, by the same principal and asking the same, it runs, once:
 *
 *     ask → people decide (approvals.ts) → the same call again → `use`, in the transaction of what it does
 *
 * Writes hold the epoch (audit/stream.ts), so one call writes at a time, and what it then finds to be so stays so.
 *
 * An approval is for one request, named by its digest: who asks, what for and why, and what it is about down to the last
 * row. What has changed since was not agreed to.
 */
import { randomUUID } from 'node:crypto';
import { canonicalDigest } from '../crypto/canonical.ts';
import type { Client, Queryable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { checkOpen, findApprovalRule, listApprovers, standingOf, type ApprovableAction } from '../policy/approval.ts';
import type { Approval, Policy } from '../policy/policy.ts';
import { present } from '../present.ts';
import type { Service } from '../service.ts';
import { findApproval, findNewest, insertApproval, setUsed, type StoredApproval } from './approval-store.ts';
import type { Computed } from './call.ts';
import { Overtaken, type Call } from './perform.ts';
import { uuidPattern } from './page.ts';

export interface Ask<D extends object> {
  readonly action: ApprovableAction;
  /** The path of what it is done to. */
  readonly about: string;
  readonly reason: string;
  /** What exactly, as those who decide are shown it. */
  readonly details: () => Promise<D>;
}

/** Either the answer to a call that has to wait, or what it may do. */
type ApprovalOutcome<D> =
  | { readonly pending: Computed }
  | {
      readonly id: string;
      readonly details: D;
      /** To be called by the call's writes. */
      use(tx: Client): Promise<void>;
    };

/** Errors: `forbidden` where nobody may agree; `not_found` and the codes of approvals for what `Approval-Id` names. */
export async function needsApproval<D extends object>(
  service: Service,
  call: Call,
  ask: Ask<D>,
): Promise<ApprovalOutcome<D>> {
  const rule = getRule(service.policy, call, ask.action);
  // What it is about is looked at first and told last: where an equal call has just used the approval up, that is in the
  // way, and not that nothing is left to do.
  const [looked] = await Promise.allSettled([ask.details()]);
  const named = call.approvalId === undefined ? undefined : await getOpen(service, call, ask, call.approvalId);
  if (looked.status === 'rejected') throw looked.reason;
  const details = looked.value;
  const requestDigest = digestRequest(call, ask, details);
  if (named === undefined) return await begin(service, call, { rule, ask, details, requestDigest });
  if (named.requestDigest !== requestDigest) throw mismatch();
  if (standingOf(service.policy, named).status !== 'approved') return { pending: answerPending(service.policy, named) };
  return {
    id: named.id,
    details,
    async use(tx) {
      if (!(await setUsed(tx, named.id))) throw new Overtaken();
    },
  };
}

function getRule(policy: Policy, { principal }: Call, action: ApprovableAction): Approval {
  const rule = findApprovalRule(policy, action);
  if (rule === undefined) throw new FieldkeepError('forbidden', 'The policy names nobody who may approve this.');
  if (listApprovers(policy, { action, ...whoAsks(principal) }).length < rule.n) {
    throw new FieldkeepError(
      'forbidden',
      'Beside the principal, the policy names too few people who may approve this.',
    );
  }
  return rule;
}

function whoAsks({ agent, person, tenant }: Call['principal']) {
  return present({ agent, person, tenant });
}

function digestRequest(call: Call, { action, about, reason }: Ask<object>, details: object): string {
  return canonicalDigest({ principal: whoAsks(call.principal), action, about, reason, details });
}

function mismatch(): FieldkeepError {
  return new FieldkeepError(
    'approval_mismatch',
    'The approval is for another request than this one. Ask for a new one.',
  );
}

/** The approval that the call names, if it is this principal's, about this, and can still be used. */
async function getOpen(service: Service, call: Call, ask: Ask<object>, id: string): Promise<StoredApproval> {
  const found = uuidPattern.test(id) ? await findApproval(service.pool, id) : undefined;
  if (found === undefined) throw new FieldkeepError('not_found', 'There is no approval with this id.');
  const [{ agent, person, tenant }, { action, about }] = [call.principal, ask];
  const same = found.agent === agent && found.person === person && found.tenant === tenant;
  if (!same || found.action !== action || found.about !== about) throw mismatch();
  checkOpen(standingOf(service.policy, found));
  return found;
}

async function findOpen(policy: Policy, db: Queryable, digest: string): Promise<StoredApproval | undefined> {
  const found = await findNewest(db, digest);
  if (found === undefined) return undefined;
  const { status } = standingOf(policy, found);
  return status === 'pending' || status === 'approved' ? found : undefined;
}

/** The standing approval of an equal request, or a new one. */
async function begin<D extends object>(
  { pool, policy }: Service,
  { principal }: Call,
  asked: { rule: Approval; ask: Ask<D>; details: D; requestDigest: string },
): Promise<ApprovalOutcome<D>> {
  const { rule, ask, details, requestDigest } = asked;
  const standing = await findOpen(policy, pool, requestDigest);
  if (standing !== undefined) return { pending: answerPending(policy, standing) };
  const id = randomUUID();
  const { action, about, reason } = ask;
  const made = { id, action, about, reason, details, required: rule.n, within: rule.within, requestDigest };
  return {
    pending: {
      ...describeAnswer(id),
      async writes(tx) {
        if ((await findOpen(policy, tx, requestDigest)) !== undefined) throw new Overtaken();
        await insertApproval(tx, { ...made, ...whoAsks(principal) });
        return viewPending(policy, (await findApproval(tx, id))!);
      },
    },
  };
}

function describeAnswer(id: string): Pick<Computed, 'status' | 'location' | 'facts'> {
  return { status: 202, location: `/v1/approvals/${id}`, facts: { purpose: `approval ${id} asked` } };
}

function viewPending(policy: Policy, approval: StoredApproval): object {
  const { expiresAt, required, received } = standingOf(policy, approval);
  const { id: approvalId, requestDigest } = approval;
  return { status: 'pending', approvalId, expiresAt, required, received, requestDigest };
}

function answerPending(policy: Policy, approval: StoredApproval): Computed {
  return { ...describeAnswer(approval.id), body: viewPending(policy, approval) };
}
