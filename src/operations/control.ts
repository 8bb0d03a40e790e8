/**
 * POST /v1/rotations/{id}/pause, /resume, /cancel: a run is held, let go on, or given up. Only the word is stored; whoever
 * works on the run finds it at its next step.
 */
import type { Client } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { postponeDue } from '../keys/store.ts';
import type { Question } from '../policy/access.ts';
import { addDuration } from '../policy/schedule.ts';
import { cancelRun, pauseRun, resumeRun } from '../rotation/control-store.ts';
import { viewRun } from '../rotation/progress.ts';
import { findRun, type Run } from '../rotation/store.ts';
import { columnsOf } from '../rotation/work.ts';
import type { Service } from '../service.ts';
import { performCall, type Computed } from './call.ts';
import { Overtaken, requesterOf, type Call, type Operation, type Result } from './perform.ts';
import { rotateAnything } from './questions.ts';
import { getRun } from './rotations.ts';

const rotateAny: Question = { action: 'rotate', class: '*' };

/** The run's family, or every class that an adoption covers; where the policy has none any more, all of them. */
function questionsOn({ catalog }: Service, run: Run): [Question, ...Question[]] {
  const classes = run.family === undefined ? columnsOf(catalog, run).map((column) => column.class) : [run.family];
  const [first, ...rest] = [...new Set(classes)].map((name): Question => ({ action: 'rotate', class: name }));
  return first === undefined ? [rotateAny] : [first, ...rest];
}

/** Runs a call on the run of its path. Who may rotate nothing is refused before the run is looked for. */
export function performOnRun(
  service: Service,
  call: Call,
  action: string,
  compute: (run: Run) => Promise<Computed> | Computed,
): Promise<Result> {
  return performCall(service, call, { action, questions: rotateAnything(service) }, async (narrow) => {
    const run = await getRun(service, call.params['id']!);
    narrow({ ...(run.family !== undefined && { class: run.family }), questions: questionsOn(service, run) });
    const { facts, ...computed } = await compute(run);
    return { ...computed, facts: { ...(run.version !== undefined && { keyVersion: run.version }), ...facts } };
  });
}

interface Verb {
  readonly name: 'pause' | 'resume' | 'cancel';
  /** Errors: `conflict` where it may not be. */
  readonly check?: (run: Run) => void;
  /** False when the run has ended meanwhile. */
  readonly write: (tx: Client, run: Run, reason: string | undefined, call: Call, service: Service) => Promise<boolean>;
}

function control(verb: Verb): Operation {
  return async (service, call) => {
    const { reason } = call.body as { reason?: string };
    const result = await performOnRun(service, call, 'rotate', (run) => {
      if (run.doneAt !== undefined) throw new FieldkeepError('conflict', `The ${run.kind} has ended.`);
      verb.check?.(run);
      const what = `${verb.name} of ${run.kind} ${run.id}`;
      return {
        facts: { purpose: reason === undefined ? what : `${what}: ${reason}` },
        async writes(tx) {
          if (!(await verb.write(tx, run, reason, call, service))) throw new Overtaken();
          return await viewRun(tx, (await findRun(tx, run.id))!);
        },
      };
    });
    service.wake();
    return result;
  };
}

export const pauseRotation = control({ name: 'pause', write: (tx, run) => pauseRun(tx, run.id) });

export const resumeRotation = control({ name: 'resume', write: (tx, run) => resumeRun(tx, run.id) });

/** A version that was made stays: active, or pending for the rotation that comes next, which is not the one that was due. */
export const cancelRotation = control({
  name: 'cancel',
  check(run) {
    if (run.compromised) throw new FieldkeepError('conflict', 'An emergency rotation can be paused, not cancelled.');
    if (run.kind !== 'adoption') return;
    const detail = 'An adoption can be paused; it ends for good when "adopt" is taken from the columns in the policy.';
    throw new FieldkeepError('conflict', detail);
  },
  async write(tx, run, reason, call, { policy }) {
    const why = reason ?? `by ${requesterOf(call)}`;
    const rotateEvery = run.kind === 'rotation' ? policy.classes.get(run.family!)?.rotateEvery : undefined;
    if (rotateEvery !== undefined) await postponeDue(tx, run.family!, addDuration(new Date(), rotateEvery));
    return await cancelRun(tx, run.id, why);
  },
});
