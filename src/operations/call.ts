/**
 * Calls that are not about one field (keys, rotations, the audit itself): one decision, one entry, and perhaps writes
 * that are committed together with it.
 */
import { formatEntry, type Entry } from '../audit/entry.ts';
import type { Client } from '../db.ts';
import { toUnavailable } from '../db.ts';
import { decide, type Decision, type Principal, type Question } from '../policy/access.ts';
import type { Policy } from '../policy/policy.ts';
import type { Service } from '../service.ts';
import { mustAllow } from './field.ts';
import { beginEntry, perform, toFieldkeepError, type Attempt, type Call, type Result } from './perform.ts';

export interface Computed {
  readonly status?: number;
  readonly body: unknown;
  readonly location?: string;
  readonly writes?: (tx: Client) => Promise<void>;
  /** More members for the entry: keyVersion, count. */
  readonly facts?: Partial<Entry>;
}

/** Allowed when any of the questions is; otherwise the first refusal, which names the usual scope. No question: allowed. */
export function decideAny(policy: Policy, principal: Principal, questions: readonly Question[]): Decision {
  const decisions = questions.map((question) => decide(policy, principal, question));
  const fallback: Decision = { decision: 'allow', ruleId: 'authenticated', policyVersion: policy.version };
  return decisions.find((each) => each.decision === 'allow') ?? decisions[0] ?? fallback;
}

/** Runs a call whose entry says `action` and whose right is any of `questions`. */
export function performCall(
  service: Service,
  call: Call,
  what: { readonly action: string; readonly class?: string; readonly questions: readonly Question[] },
  compute: () => Promise<Computed> | Computed,
): Promise<Result> {
  return perform(service, call, async (): Promise<Attempt> => {
    const { policy } = service;
    const entry = beginEntry(call, what.action);
    entry.policyVersion = policy.version;
    if (what.class !== undefined && policy.classes.has(what.class)) entry.class = what.class;
    try {
      const decision = decideAny(policy, call.principal, what.questions);
      entry.decision = decision.decision;
      entry.ruleId = decision.ruleId;
      mustAllow(decision);
      const { facts, writes, ...answer } = await compute();
      const record = { line: formatEntry({ ...entry, ...facts }) };
      return { record, answer, ...(writes !== undefined && { writes }) };
    } catch (failure) {
      const error = toFieldkeepError(service, toUnavailable(failure));
      entry.outcome = entry.decision === 'deny' ? 'denied' : 'failed';
      entry.code = error.code;
      return { record: { line: formatEntry(entry) }, error };
    }
  });
}
