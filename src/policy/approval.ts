/**
 * Calls that other people have to agree to: who may decide, and how an approval stands. Nothing of that is stored: it
 * follows from what was asked, what was decided, the policy in force and the database's clock. Pure.
 *
 *     pending → approved → used        expired: not approved in time, or approved and then not used in time
 *        ↘ denied, by any one of them
 *
 * Whoever asked, the agent and the person alike, decides nothing.
 */
import { FieldkeepError } from '../errors.ts';
import { decide, type Principal } from './access.ts';
import type { Approval, Policy } from './policy.ts';

export type ApprovableAction = 'destroy' | 'waive' | 'decrypt';
export type Verdict = 'approve' | 'deny';
export type ApprovalStatus = 'pending' | 'approved' | 'denied' | 'expired' | 'used';

/** How long an approval can be used after the last of the needed people agreed. */
export const useWithinMs = 3_600_000;

export interface ApprovalDecision {
  readonly person: string;
  readonly decision: Verdict;
  readonly reason: string;
  readonly decidedAt: Date;
}

/** Of an approval, what the rule looks at. */
export interface Asked {
  readonly action: ApprovableAction;
  readonly agent?: string;
  readonly person?: string;
  /** How many the policy named when it was asked. */
  readonly required: number;
  readonly decideBy: Date;
  readonly usedAt?: Date;
  readonly decisions: readonly ApprovalDecision[];
  /** By the database's clock, when this was read. */
  readonly now: Date;
}

export interface Standing {
  readonly status: ApprovalStatus;
  readonly required: number;
  readonly received: number;
  /** To decide by; once approved, to use it by. */
  readonly expiresAt: Date;
}

/** Giving values up, or decrypting a column, is as grave as destroying a key: without a rule of their own they go by its. */
export function findApprovalRule(policy: Policy, action: ApprovableAction): Approval | undefined {
  return policy.approvals.get(action) ?? policy.approvals.get('destroy');
}

/** Everybody whose decision counts: in the group, holding `approve`, and not among those who asked. Each once. */
export function listApprovers(policy: Policy, asked: Pick<Asked, 'action' | 'agent' | 'person'>): string[] {
  const mayApprove = (name: string) =>
    name !== asked.agent &&
    name !== asked.person &&
    decide(policy, { person: name, system: true }, { action: 'approve' }).decision === 'allow';
  return [...new Set(findApprovalRule(policy, asked.action)?.group)].filter(mayApprove);
}

/** By the policy in force: who has left the group since does not count, and where it asks for more people, so does this. */
export function standingOf(policy: Policy, asked: Asked): Standing {
  const required = Math.max(asked.required, findApprovalRule(policy, asked.action)?.n ?? 0);
  const agreed = (name: string) => asked.decisions.find((each) => each.person === name && each.decision === 'approve');
  const approvals = listApprovers(policy, asked)
    .flatMap((name) => agreed(name)?.decidedAt.getTime() ?? [])
    .toSorted((a, b) => a - b);
  const last = approvals[required - 1];
  const expiresAt = last === undefined ? asked.decideBy : new Date(last + useWithinMs);
  return { status: statusOf(asked, last !== undefined, expiresAt), required, received: approvals.length, expiresAt };
}

function statusOf(asked: Asked, approved: boolean, expiresAt: Date): ApprovalStatus {
  if (asked.usedAt !== undefined) return 'used';
  if (asked.decisions.some(({ decision }) => decision === 'deny')) return 'denied';
  if (asked.now >= expiresAt) return 'expired';
  return approved ? 'approved' : 'pending';
}

/** Errors: `approval_used`, `approval_denied`, `approval_expired`: nothing can be done under it any more. */
export function checkOpen({ status }: Standing): void {
  if (status === 'used') throw new FieldkeepError('approval_used', 'The approval was used: it allows one call.');
  if (status === 'denied') throw new FieldkeepError('approval_denied', 'The approval was denied.');
  if (status === 'expired')
    throw new FieldkeepError('approval_expired', 'The approval has expired. Ask for a new one.');
}

/** Errors: `forbidden` for who has no say in it, `conflict` where nothing is left to decide, `approval_expired`. */
export function checkDecider(policy: Policy, asked: Asked, { agent, person }: Principal): void {
  if (person !== undefined && [asked.agent, asked.person].includes(person)) {
    throw new FieldkeepError('forbidden', 'Whoever asked for an approval does not decide on it.');
  }
  if (person === undefined || agent !== undefined || !listApprovers(policy, asked).includes(person)) {
    throw new FieldkeepError('forbidden', 'The policy does not name the principal among those who decide on this.');
  }
  if (asked.decisions.some((each) => each.person === person)) {
    throw new FieldkeepError('conflict', 'The principal has decided on this already.');
  }
  const { status } = standingOf(policy, asked);
  if (status === 'expired') throw new FieldkeepError('approval_expired', 'The time to decide on this is over.');
  if (status !== 'pending') throw new FieldkeepError('conflict', `There is nothing left to decide: it is ${status}.`);
}
