/**
 * What the versions of a family still lack before they may be destroyed, and what became of those that were to be, as status
 * shows it. Asks no database but our own.
 */
import { findApprovalRule } from '../policy/approval.ts';
import { listDestructions, type Destruction } from '../retirement/destroy-store.ts';
import { readFacts } from '../retirement/facts.ts';
import { listMissing, type Missing, type RetireFacts } from '../retirement/retire.ts';
import { describeSearch } from '../retirement/undeclared.ts';
import type { Service } from '../service.ts';

export interface Retirement {
  readonly guards: readonly { table: string; column: string; version: number; validatedAt: Date }[];
  readonly missing: readonly { what: string; until?: Date }[];
  /** Nothing is missing but what counting, and searching, shows. */
  readonly destroyable: boolean;
  /** How many people have to agree then. */
  readonly approvals?: number;
}

function view(facts: RetireFacts, approvals: number | undefined): Retirement {
  const searched = facts.undeclared === undefined ? [] : describeSearch(facts.undeclared).map((what) => ({ what }));
  const missing: Retirement['missing'] = (
    [...listMissing(facts), ...searched] as readonly Pick<Missing, 'what' | 'until'>[]
  ).map(({ what, until }) => ({ what, ...(until !== undefined && { until }) }));
  const guards = facts.columns.flatMap(({ table, column, guard }) =>
    guard === undefined ? [] : [{ table, column, version: guard.version, validatedAt: guard.validatedAt }],
  );
  return { guards, missing, destroyable: missing.length === 0, ...(approvals !== undefined && { approvals }) };
}

/** By version: those that were followed and are not destroyed. */
export async function describeRetirements(service: Service, family: string): Promise<Map<number, Retirement>> {
  const approvals = findApprovalRule(service.policy, 'destroy')?.n;
  const facts = await readFacts(service, family);
  return new Map([...facts].map(([version, each]) => [version, view(each, approvals)]));
}

/** How it stands, for people. */
export function viewDestruction(destruction: Destruction): object {
  const { family, version, approval, askedAt, destroyedAt, refused, refusedAt, problem, signature } = destruction;
  const open = destruction.calledOff === undefined ? 'destroying' : 'calling-off';
  const status = destroyedAt !== undefined ? 'destroyed' : refusedAt === undefined ? open : 'refused';
  return {
    ...{ family, version, status, approvalId: approval, askedAt },
    ...(destroyedAt !== undefined && { destroyedAt, certificate: signature === undefined ? 'unsigned' : 'signed' }),
    ...(refused !== undefined && { refused }),
    ...(problem !== undefined && { problem }),
  };
}

/** By version: what was agreed to, and how far it is. */
export async function describeDestructions({ pool }: Service, family: string): Promise<Map<number, object>> {
  return new Map((await listDestructions(pool, family)).map((each) => [each.version, viewDestruction(each)]));
}
