/**
 * Calls that are not about one field (keys, rotations, the audit itself): one decision, one entry, and perhaps writes
 * that are committed together with it.
 */
import { formatEntry, type Entry } from '../audit/entry.ts';
import type { Client } from '../db.ts';
import { toUnavailable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { decide, type Decision, type Principal, type Question } from '../policy/access.ts';
import type { Policy } from '../policy/policy.ts';
import type { Service } from '../service.ts';
import { mustAllow } from './field.ts';
import { beginEntry, mustServe, perform, toFieldkeepError, type Attempt, type Call, type Result } from './perform.ts';

export interface Computed {
  readonly status?: number;
  readonly body?: unknown;
  readonly location?: string;
  /** What they answer, if anything, is the body: it then shows what they have made. */
  readonly writes?: (tx: Client) => Promise<unknown>;
  /** More members for the entry: keyVersion, count. */
  readonly facts?: Partial<Entry>;
}

/** Allowed when any of the questions is; otherwise the first refusal, which names the usual scope. No question: allowed. */
function decideAny(policy: Policy, principal: Principal, questions: readonly Question[]): Decision {
  const decisions = questions.map((question) => decide(policy, principal, question));
  const fallback: Decision = { decision: 'allow', ruleId: 'authenticated', policyVersion: policy.version };
  return decisions.find((each) => each.decision === 'allow') ?? decisions[0] ?? fallback;
}

/** Every one must be allowed: answers the first refusal, else the first decision. */
function decideAll(policy: Policy, principal: Principal, questions: readonly [Question, ...Question[]]): Decision {
  const decisions = questions.map((question) => decide(policy, principal, question));
  return decisions.find((each) => each.decision === 'deny') ?? decisions[0]!;
}

/** For a call whose right depends on what it finds: decides once more. Errors: `forbidden` unless all are allowed. */
type Narrow = (what: { readonly class?: string; readonly questions: readonly [Question, ...Question[]] }) => void;

interface What {
  readonly action: string;
  readonly class?: string;
  readonly questions: readonly Question[];
  /** Answers a principal of a tenant what is that tenant's own. Absent: the call spans tenants. */
  readonly ofTenant?: true;
}

/** Errors: `forbidden` for a principal of a tenant, whatever it may do there. */
function refuseTenants({ system }: Principal): void {
  if (system) return;
  const detail =
    'What this call is about spans tenants: it is for system principals, and the principal is of a tenant.';
  throw new FieldkeepError('forbidden', detail);
}

/** Runs a call whose entry says `action` and whose right is any of `questions`, and what `compute` narrows it to. */
export function performCall(
  service: Service,
  call: Call,
  what: What,
  compute: (narrow: Narrow) => Promise<Computed> | Computed,
): Promise<Result> {
  return perform(service, call, async (): Promise<Attempt> => {
    const { policy } = service;
    const entry = beginEntry(call, what.action);
    entry.policyVersion = policy.version;
    const judge = (decision: Decision, className: string | undefined) => {
      if (className !== undefined && policy.classes.has(className)) entry.class = className;
      entry.decision = decision.decision;
      entry.ruleId = decision.ruleId;
      mustAllow(decision);
    };
    try {
      mustServe(service);
      judge(decideAny(policy, call.principal, what.questions), what.class);
      if (what.ofTenant !== true) refuseTenants(call.principal);
      const { facts, writes, ...rest } = await compute((more) =>
        judge(decideAll(policy, call.principal, more.questions), more.class),
      );
      const record = { line: formatEntry({ ...entry, ...facts }) };
      const answer = { ...rest, body: rest.body };
      if (writes === undefined) return { record, answer };
      const write = async (tx: Client) => {
        answer.body = (await writes(tx)) ?? rest.body;
      };
      return { record, answer, writes: write };
    } catch (failure) {
      const error = toFieldkeepError(service, toUnavailable(failure));
      if (error.code === 'forbidden' && entry.decision === 'allow') {
        entry.decision = 'deny'; // by more than a grant
        delete entry.ruleId;
      }
      entry.outcome = entry.decision === 'deny' ? 'denied' : 'failed';
      entry.code = error.code;
      return { record: { line: formatEntry(entry) }, error };
    }
  });
}
