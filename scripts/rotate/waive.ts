/** Giving up the rows of a rotation that do not open: the operator asks, other people agree, the operator does it. */
import { describeVotes, rotateCommand, type Approval } from '../approvals.ts';
import { mustBeOk, operator, quote, type Api } from '../support.ts';
import { getUnfinished } from './control.ts';

function describePending(family: string, reason: string, approval: Approval): string {
  const rows = (approval.details.failures ?? []).map((each) => `  ${each.table}.${each.column}: ${each.rows}\n`);
  const then = rotateCommand(`${family} --waive --reason ${quote(reason)} --approval ${approval.id}`);
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
