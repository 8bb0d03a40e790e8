/**
 * Operations that change keys, runs or approvals, or look at rows, are a worker's. An api process hands them over
 * (asked/ask.ts): the worker decides anew, by its own policy, does them, and writes their entry. What no worker takes
 * leaves an entry here.
 */
import { ask, toError, type Answer, type AskedCall } from '../asked/ask.ts';
import { FieldkeepError } from '../errors.ts';
import { present } from '../present.ts';
import type { Service } from '../service.ts';
import type { Call, Operation, Result } from './perform.ts';
import { refusalEntry, storeEntries } from './refuse.ts';

/** Time that is left to answer the caller after a worker has. */
const answerMs = 250;

/** A call as it travels: everything but its deadline, which is on this process's clock. */
type Content = Omit<Call, 'deadline'>;

/** The operation `name` as an api process runs it; `action` is what the log calls one that no worker took. */
export function handOver(service: Service, name: string, action: string, call: Call): Promise<Result> {
  const { deadline, ...content } = call;
  return askFor(service, { name, content, waitMs: Math.max(0, deadline - performance.now() - answerMs) }).catch(
    async (error: unknown) => {
      // One that a worker took has its entry from there.
      if (!(error instanceof NotTaken)) throw error;
      const { requestId, principal } = content;
      await storeEntries(service, [refusalEntry({ requestId, principal, action, code: error.problem.code })]);
      throw error.problem;
    },
  );
}

class NotTaken extends Error {
  readonly problem: FieldkeepError;

  constructor(problem: FieldkeepError) {
    super(problem.message);
    this.name = 'NotTaken';
    this.problem = problem;
  }
}

async function askFor(
  service: Service,
  { name, content, waitMs }: { name: string; content: Content; waitMs: number },
): Promise<Result> {
  let answer: Answer | undefined;
  try {
    answer = await ask(service, { id: content.requestId, name, content, waitMs });
  } catch (error) {
    if (error instanceof FieldkeepError && error.code !== 'deadline_exceeded') throw new NotTaken(error);
    throw error;
  }
  if (answer === undefined) {
    const detail = 'No worker took the call, so nothing was done. A process with ROLE=worker has to run.';
    throw new NotTaken(new FieldkeepError('deadline_exceeded', detail, { retryAfterSeconds: 5 }));
  }
  if (answer.error !== undefined) throw toError(answer.error);
  const { status, body, location } = answer;
  return { body, isFresh: () => true, ...present({ status, location }) };
}

/** Runs what an api process handed over, for its answer. Errors: those of the operation. */
export async function performAsked(
  operations: Readonly<Record<string, Operation>>,
  service: Service,
  { id, name, content, waitMs }: AskedCall,
): Promise<Answer> {
  const operation = Object.hasOwn(operations, name) ? operations[name] : undefined;
  const call = content as Content;
  if (operation === undefined || call.requestId !== id) {
    throw new FieldkeepError('internal', 'The worker does not know this call: it may be of another release.');
  }
  const { status, body, location } = await operation(service, { ...call, deadline: performance.now() + waitMs });
  return { body, ...present({ status, location }) };
}
