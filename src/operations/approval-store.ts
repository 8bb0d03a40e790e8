/** SQL of approvals: what was asked, what was decided, and that it was used. */
import type { Client, Queryable } from '../db.ts';
import { present } from '../present.ts';
import type { ApprovableAction, ApprovalDecision, Asked, Verdict } from '../policy/approval.ts';

interface NewApproval {
  readonly id: string;
  readonly action: ApprovableAction;
  /** The path of what it is done to. */
  readonly about: string;
  readonly details: object;
  readonly reason: string;
  readonly agent?: string;
  readonly person?: string;
  readonly tenant?: string;
  readonly required: number;
  readonly requestDigest: string;
  /** ISO 8601 duration. */
  readonly within: string;
}

export interface StoredApproval extends Asked, Omit<NewApproval, 'within'> {
  readonly createdAt: Date;
}

/** What is stored of an approval, by its name there. */
const approvalColumns = `a.id, a.action, a.about, a.details, a.reason, a.agent, a.person, a.tenant, a.required,
  a.request_digest as "requestDigest", a.created_at as "createdAt", a.decide_by as "decideBy",
  coalesce((select u.used_at from fieldkeep.approval_uses u where u.approval = a.id), a.used_at) as "usedAt",
  clock_timestamp() as now,
  (select coalesce(json_agg(json_build_object('person', d.person, 'decision', d.decision, 'reason', d.reason,
     'decidedAt', d.decided_at) order by d.decided_at), '[]')
   from fieldkeep.approval_decisions d where d.approval = a.id) as decisions`;

type ApprovalRow = Record<keyof Omit<StoredApproval, 'decisions'>, unknown> & {
  readonly decisions: readonly (Omit<ApprovalDecision, 'decidedAt'> & { decidedAt: string })[];
};

function toApproval({ decisions, ...row }: ApprovalRow): StoredApproval {
  const decided = decisions.map((each) => ({ ...each, decidedAt: new Date(each.decidedAt) }));
  return { ...(present(row) as Omit<StoredApproval, 'decisions'>), decisions: decided };
}

export async function insertApproval(tx: Client, asked: NewApproval): Promise<void> {
  await tx.query(
    `insert into fieldkeep.approvals
       (id, action, about, details, reason, agent, person, tenant, required, request_digest, decide_by)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now() + $11::interval)`,
    [
      asked.id,
      asked.action,
      asked.about,
      JSON.stringify(asked.details),
      asked.reason,
      asked.agent ?? null,
      asked.person ?? null,
      asked.tenant ?? null,
      asked.required,
      asked.requestDigest,
      asked.within,
    ],
  );
}

export async function findApproval(db: Queryable, id: string): Promise<StoredApproval | undefined> {
  const { rows } = await db.query<ApprovalRow>(`select ${approvalColumns} from fieldkeep.approvals a where a.id = $1`, [
    id,
  ]);
  return rows[0] === undefined ? undefined : toApproval(rows[0]);
}

/** The newest that the same request asked for. */
export async function findNewest(db: Queryable, requestDigest: string): Promise<StoredApproval | undefined> {
  const { rows } = await db.query<ApprovalRow>(
    `select ${approvalColumns} from fieldkeep.approvals a where a.request_digest = $1
     order by a.created_at desc limit 1`,
    [requestDigest],
  );
  return rows[0] === undefined ? undefined : toApproval(rows[0]);
}

/** Newest first; `before` is the id that the page before ended with. */
export async function listStored(
  db: Queryable,
  page: { readonly before?: string; readonly limit: number },
): Promise<StoredApproval[]> {
  const { rows } = await db.query<ApprovalRow>(
    `select ${approvalColumns} from fieldkeep.approvals a
     where $1::uuid is null or (a.created_at, a.id) < (select created_at, id from fieldkeep.approvals where id = $1)
     order by a.created_at desc, a.id desc limit $2`,
    [page.before ?? null, page.limit],
  );
  return rows.map(toApproval);
}

export async function insertDecision(
  tx: Client,
  id: string,
  decided: { readonly person: string; readonly decision: Verdict; readonly reason: string },
): Promise<void> {
  await tx.query(
    'insert into fieldkeep.approval_decisions (approval, person, decision, reason) values ($1, $2, $3, $4)',
    [id, decided.person, decided.decision, decided.reason],
  );
}

/** False when it was used before, also by a process of the release before, which writes it beside what was asked. */
export async function setUsed(tx: Client, id: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    `insert into fieldkeep.approval_uses (approval)
     select id from fieldkeep.approvals where id = $1 and used_at is null on conflict do nothing`,
    [id],
  );
  return rowCount === 1;
}
