/** Calls that other people have to agree to, as commands show them, and their decisions. */
import { mustBeOk, type Api } from './support.ts';

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

export const rotateCommand = (rest: string) => `  npm run rotate -- ${rest}\n`;

/** Who has still to agree, and what to run `then`. */
export function describeVotes(approval: Approval, then: string): string {
  const { id, required, received, expiresAt, approvers, decisions } = approval;
  const heard = decisions.map(({ person }) => person);
  const asked = approvers
    .filter((name) => !heard.includes(name))
    .map((name) => rotateCommand(`--approve ${id} --as ${name} --reason "…"`));
  if (received >= required) return `It has what it needs. Until ${expiresAt}:\n${then}`;
  const wants = `It has ${received} of ${required} approvals. Until ${expiresAt}, by any of (--deny ends it):\n`;
  return `${wants}${asked.join('')}Then:\n${then}`;
}

/** Decides in the name of one of the people who may. */
export async function decide(
  api: Api,
  asked: { readonly id: string; readonly decision: 'approve' | 'deny'; readonly as: string; readonly reason: string },
): Promise<{ body: object; text: string }> {
  const { id, as: name, ...body } = asked;
  const path = `/v1/approvals/${encodeURIComponent(id)}/decisions`;
  const answer = mustBeOk(await api.call({ name }, 'POST', path, body)) as unknown as Approval;
  const { status, received, required } = answer;
  return { body: answer, text: `Approval ${id} is ${status}: ${received} of ${required} approvals.\n` };
}
