/** The life cycle of an adopted column through the service's API, as the operator: said, followed, and told in sentences. */
import { StartupError } from '../../src/errors.ts';
import { describeVotes, type Approval } from '../approvals.ts';
import { followRun, type RunProgress } from '../progress.ts';
import { formatCount as format, mustBeOk, openProgress, operator, quote, type Api } from '../support.ts';

export interface Adoption {
  readonly table: string;
  readonly column: string;
  readonly from?: string;
  readonly state: string;
  readonly unfilled?: number;
  readonly plaintext?: number;
  readonly countedAt?: string;
  readonly startedAt?: string;
  readonly verifiedAt?: string;
  readonly finishedAt?: string;
  readonly undoneAt?: string;
  readonly problem?: string;
  readonly run?: { readonly id: string; readonly kind: string; readonly doneAt?: string };
  readonly remains?: readonly string[];
}

export type LifeVerb = 'start' | 'verify' | 'finish' | 'undo' | 'leave';

export interface Asked {
  readonly verb: LifeVerb;
  /** As callers name the column: [target:]schema.table.column */
  readonly name: string;
  readonly reason?: string | undefined;
  readonly to?: string | undefined;
  readonly approval?: string | undefined;
  readonly wait: boolean;
  /** What the person typed, to be repeated with an approval. */
  readonly command: string;
}

/** The body of the last answer, sentences for people, and whether somebody has to look. */
export interface Told {
  readonly body: object;
  readonly text: string;
  readonly isStuck?: boolean;
}

const pollMs = 500;
const pathOf = (name: string, verb = '') => `/v1/adoptions/${encodeURIComponent(name)}${verb === '' ? '' : `/${verb}`}`;

export async function look(api: Api, name: string): Promise<Adoption> {
  return mustBeOk(await api.call(operator, 'GET', pathOf(name))) as unknown as Adoption;
}

/** Gives up the run about the column that is under way. Errors: StartupError, when there is none. */
export async function cancel(api: Api, name: string, reason: string | undefined): Promise<string> {
  const { run } = await look(api, name);
  if (run === undefined || run.doneAt !== undefined)
    throw new StartupError(`Nothing that could be cancelled is under way for ${name}.`);
  mustBeOk(
    await api.call(operator, 'POST', `/v1/rotations/${run.id}/cancel`, { ...(reason !== undefined && { reason }) }),
  );
  return `${name}: ${run.kind} is cancelled. What it has done stays so.\n`;
}

export function describeAdoption(adoption: Adoption): string {
  const { table, column, from, state, unfilled, plaintext, problem, remains = [] } = adoption;
  const dates = (['startedAt', 'verifiedAt', 'finishedAt', 'undoneAt'] as const).flatMap((name) =>
    adoption[name] === undefined ? [] : `  ${name.replace('At', '').padEnd(8)} ${adoption[name]}`,
  );
  const counts =
    unfilled === undefined || plaintext === undefined
      ? ''
      : ` · ${format(plaintext)} values ${from === undefined ? 'are plaintext' : `stand in ${from}`}, ${format(unfilled)} of them without an envelope`;
  const lines = [`${table}.${column}: ${state}${counts}`, ...dates, ...(problem === undefined ? [] : [problem])];
  if (remains.length > 0) lines.push('Plaintext is left elsewhere:', ...remains.map((each) => `  ${each}`));
  return `${lines.join('\n')}\n`;
}

/**
 * Until the column is filled, or, where the application goes on writing plaintext, until every row that was there at the
 * start is.
 */
async function followFilling(api: Api, name: string): Promise<Told> {
  const progress = openProgress();
  for (;;) {
    const adoption = await look(api, name);
    const { items } = mustBeOk(await api.call(operator, 'GET', '/v1/rotations?limit=20')) as unknown as {
      items: (RunProgress & { pass?: number })[];
    };
    const run = items.find(({ kind, phase }) => kind === 'adoption' && phase !== 'done');
    const { countedAt = '', startedAt = '' } = adoption;
    const left = countedAt < startedAt ? undefined : adoption.unfilled; // of a large table it may be an older count
    if (run?.blocked !== undefined) return { body: adoption, text: `Blocked: ${run.blocked}\n`, isStuck: true };
    if (adoption.problem !== undefined) return { body: adoption, text: `${adoption.problem}\n`, isStuck: true };
    if (left === 0 || (run?.pass ?? 0) > 2) {
      const some = left === undefined ? 'More' : format(left);
      const rest = left === 0 ? '' : ` ${some} were written meanwhile; the job comes back for them every few seconds.`;
      progress.end(`${name} is filled.${rest}`);
      return { body: adoption, text: '' };
    }
    const of = run?.columns.find(({ table, column }) => `${table}.${column}` === name);
    const done = of === undefined ? 'being counted' : `${format(of.done)} of ${format(of.total)} values`;
    progress.show(`filling ${name}: ${done}`);
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

const starts: Readonly<Record<LifeVerb, string>> = {
  start: 'The job fills',
  verify: 'Every envelope is opened and compared with its source:',
  finish: 'The plaintext is cleared, row by row, of',
  undo: 'The plaintext comes back of',
  leave: 'The envelopes are cleared, row by row, of',
};

/** What comes next, once a run has ended well. */
function describeEnd(verb: LifeVerb, name: string, adoption: Adoption, to: string | undefined): string {
  if (verb === 'finish') return describeAdoption(adoption);
  const option = to === undefined ? '' : ` --to ${to}`;
  const command = to === undefined ? `adopt -- undo ${name}` : `decrypt-column -- ${name}${option}`;
  if (verb === 'undo' && (to ?? adoption.from ?? adoption.column) === adoption.column) {
    return `${name} holds plaintext, and is not encrypted again until somebody starts that.\n`;
  }
  if (verb === 'undo') {
    return `Plaintext stands beside every envelope. Move the application's reads and writes back, then: npm run ${command} --leave\n`;
  }
  if (verb === 'leave')
    return `No envelope is left. The owner of the table runs: npm run adopt -- sql ${name}${option} --undo\n`;
  return '';
}

async function tellPending(api: Api, asked: Asked, body: Record<string, unknown>): Promise<Told> {
  const path = `/v1/approvals/${String(body.approvalId)}`;
  const approval = mustBeOk(await api.call(operator, 'GET', path)) as unknown as Approval;
  const then = `  ${asked.command} --reason ${quote(asked.reason!)} --approval ${approval.id}\n`;
  return {
    body,
    text: `Approval ${approval.id} is about making ${asked.name} plaintext again.\n${describeVotes(approval, then)}`,
  };
}

/** Does it, and with `wait` follows it to its end. Errors: StartupError with what the service answers. */
export async function live(api: Api, asked: Asked): Promise<Told> {
  const { verb, name, reason, to, approval, wait } = asked;
  const request = { ...(reason !== undefined && { reason }), ...(to !== undefined && { to }) };
  const headers = approval === undefined ? {} : { 'approval-id': approval };
  const body = mustBeOk(await api.call(operator, 'POST', pathOf(name, verb), request, headers));
  if (body.approvalId !== undefined && body.id === undefined) return await tellPending(api, asked, body);
  if (!wait) return { body, text: `${starts[verb]} ${name}. Follow it: npm run status\n` };
  if (verb === 'start') return await followFilling(api, name);
  const run = await followRun(api, String(body.id));
  const failed = run.columns.reduce((n, column) => n + column.failed, 0);
  if (run.phase !== 'done') return { body: run, text: '', isStuck: true };
  if (failed > 0) {
    const text = `${format(failed)} rows are other than their source: GET /v1/rotations/${run.id}/failures names them.\n`;
    return { body: run, text, isStuck: true };
  }
  return { body: run, text: describeEnd(verb, name, await look(api, name), to) };
}
