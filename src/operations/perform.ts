/**
 * Every operation runs through here, in this order:
 *
 *   1. decide   may this principal do this?            (policy/access.ts, pure)
 *   2. compute  do the work; writes nothing
 *   3. commit   its writes and its audit entry, in one transaction, under the epoch it was computed under
 *   4. release  only now does the caller see the result, and only while it is fresh
 *
 * An attempt that is refused or fails leaves its entry in the same way before its error is thrown. When the epoch moved
 * between 1 and 3 (a key was activated, the policy changed), or the writes find what they rest on changed, nothing was
 * stored, and the attempt starts again at 1. It also does where this process has another policy at 4: the entry then stands
 * for an answer that nobody saw.
 */
import { StaleEpoch, isFresh, type AuditRecord } from '../audit/log.ts';
import type { Entry } from '../audit/entry.ts';
import type { Client } from '../db.ts';
import { describeError, FieldkeepError } from '../errors.ts';
import type { Principal } from '../policy/access.ts';
import type { Service } from '../service.ts';

/** A request that was authenticated and has the right shape. */
export interface Call {
  /** Made by the server, UUIDv7; the same in the answer, the log line and the entry. */
  readonly requestId: string;
  readonly principal: Principal;
  readonly body: unknown;
  readonly params: Readonly<Record<string, string>>;
  readonly query: Readonly<Record<string, string | undefined>>;
  readonly idempotencyKey?: string;
  /** The approval that the call is to run under. */
  readonly approvalId?: string;
  /** When the caller stops waiting, on the clock of performance.now(). */
  readonly deadline: number;
}

export interface Result {
  readonly status?: number;
  readonly body: unknown;
  readonly location?: string;
  /** To be asked right before the answer is written: a late answer may carry an envelope of a version that retired. */
  isFresh(): boolean;
}

export type Operation = (service: Service, call: Call) => Promise<Result>;

/** What one run of steps 1 and 2 came to: the record to commit, then an answer or an error to release. */
export interface Attempt {
  readonly record: AuditRecord;
  readonly answer?: Omit<Result, 'isFresh'>;
  readonly error?: FieldkeepError;
  /** Statements that stand or fall with the entry. */
  readonly writes?: (tx: Client) => Promise<void>;
}

/** Thrown by `writes`: what was computed does not hold any more. Nothing is stored, and it is computed again. */
export class Overtaken extends Error {}

const attemptsMax = 10;

/** Steps 3 and 4 around `attempt`, which does 1 and 2; called again when the epoch moved or its writes were overtaken. */
export async function perform(
  service: Service,
  call: Call,
  attempt: () => Attempt | Promise<Attempt>,
): Promise<Result> {
  for (let n = 0; n < attemptsMax && performance.now() < call.deadline; n += 1) {
    if (service.policyWatch?.isFresh() === false) await service.policyWatch.look(); // it slept, or was busy
    const { epoch } = service.keyring.state;
    const { policy } = service;
    const pending = attempt();
    const { record, answer, error, writes } = pending instanceof Promise ? await pending : pending;
    let receipt;
    try {
      receipt = await service.audit.append([record], epoch, writes);
    } catch (failure) {
      if (failure instanceof Overtaken) continue;
      if (!(failure instanceof StaleEpoch)) throw failure;
      await service.keyring.refresh();
      continue;
    }
    if (error !== undefined) throw error;
    // What a policy takes away does not wait for the epoch, which our own database may be slow to raise.
    if (service.policy !== policy && writes === undefined) continue;
    return { ...answer!, isFresh: () => isFresh(receipt) && service.policyWatch?.isFresh() !== false };
  }
  throw new FieldkeepError('deadline_exceeded', 'The request could not be answered in time; nothing was revealed.');
}

/** Errors: `policy_superseded` in a process that must not decide by its policy. */
export function mustServe({ standing }: Pick<Service, 'standing'>): void {
  if (standing.outdated === undefined) return;
  throw new FieldkeepError('policy_superseded', `This process answers nobody: ${standing.outdated}.`);
}

/** Whose doing it is, for people: the person, or the agent alone. */
export function requesterOf({ principal: { agent, person } }: Call): string {
  return person ?? agent ?? 'unknown';
}

/** The members that every entry has. */
export function beginEntry(call: Pick<Call, 'requestId' | 'principal'>, action: string): Entry {
  const { tenant, agent, person } = call.principal;
  return {
    v: 1,
    time: new Date().toISOString(),
    requestId: call.requestId,
    action,
    decision: 'allow',
    outcome: 'ok',
    ...(tenant !== undefined && { tenant }),
    ...(agent !== undefined && { agent }),
    ...(person !== undefined && { person }),
  };
}

/** Any error as the one that the caller is told; what is not ours has no words of its own. */
export function toFieldkeepError(service: Service, error: unknown): FieldkeepError {
  if (error instanceof FieldkeepError) return error;
  service.log.error({ error: describeError(error) }, 'An operation failed for a reason it does not know.');
  return new FieldkeepError('internal', 'The request could not be completed.');
}
