/** Giving up the rows of a rotation that do not open: the operator asks, other people agree, the operator does it. */
import { mustBeOk, operator, type Api } from '../support.ts';
import { getUnfinished } from './control.ts';

export interface Approval {
  readonly id: string;
  readonly status: string;
  readonly expiresAt: string;
  readonly required: number;
  readonly received: number;
  readonly approvers: readonly string[];
  readonly decisions: readonly { person: string }[];
  readonly details: {
    readonly failures?: readonly { table: string; column: string; rows: number }[];
    readonly guards?: readonly { table: string; column: string; version: number; validatedAt: string }[];
    readonly waived?: readonly string[];
  };
}

/** As a word for the shell. */
export const quote = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
const command = (rest: string) => `  npm run rotate -- ${rest}\n`;

/** Who has still to agree, and what to run `then`. */
export function describeVotes(approval: Approval, then: string): string {
  const { id, required, received, expiresAt, approvers, decisions } = approval;
  const heard = decisions.map(({ person }) => person);
  const asked = approvers
    .filter((name) => !heard.includes(name))
    .map((name) => command(`--approve ${id} --as ${name} --reason "…"`));
  if (received >= required) return `It has what it needs. Until ${expiresAt}:\n${then}`;
  const wants = `It has ${received} of ${required} approvals. Until ${expiresAt}, by any of (--deny ends it):\n`;
  return `${wants}${asked.join('')}Then:\n${then}`;
}

function describePending(family: string, reason: string, approval: Approval): string {
  const rows = (approval.details.failures ?? []).map((each) => `  ${each.table}.${each.column}: ${each.rows}\n`);
  const then = command(`${family} --waive --reason ${quote(reason)} --approval ${approval.id}`);
  const head = `Approval ${approval.id} is about giving up rows that do not open:\n${rows.join('')}`;
  return head + describeVotes(approval, then);
}

/** Asks, or with an approval does it. Answers the body of the answer, and sentences for people. */
export async function waive(
  api: Api,
  family: string,
  reason: string,
  approvalId: string | undefined,
): Promise<{ body: object; text: string }> {
  const { id } = await getUnfinished(api, family);
  const headers = approvalId === undefined ? {} : { 'approval-id': approvalId };
  const answer = await api.call(operator, 'POST', `/v1/rotations/${id}/failures/waive`, { reason }, headers);
  const body = mustBeOk(answer);
  if (answer.status !== 202) {
    return { body, text: `${Number(body.waived)} rows are given up. The rotation looks at what is left.\n` };
  }
  const path = `/v1/approvals/${String(body.approvalId)}`;
  const approval = mustBeOk(await api.call(operator, 'GET', path)) as unknown as Approval;
  return { body, text: describePending(family, reason, approval) };
}

/** Decides in the name of one of the people who may. */
export async function decide(
  api: Api,
  asked: { readonly id: string; readonly decision: 'approve' | 'deny'; readonly as: string; readonly reason: string },
): Promise<{ body: object; text: string }> {
  const { id, as: name, ...body } = asked;
  const path = `/v1/approvals/${encodeURIComponent(id)}/decisions`;
  const answer = mustBeOk(
    await api.call({ name }, 'POST', path, { decision: body.decision, reason: body.reason }),
  ) as unknown as Approval;
  const { status, received, required } = answer;
  return { body: answer, text: `Approval ${id} is ${status}: ${received} of ${required} approvals.\n` };
}
