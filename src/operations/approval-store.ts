/** SQL of approvals: what was asked, what was decided, and that it was used. */
import type { Client, Queryable } from '../db.ts';
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

interface ApprovalRow {
  id: string;
  action: ApprovableAction;
  about: string;
  details: object;
  reason: string;
  agent: string | null;
  person: string | null;
  tenant: string | null;
  required: number;
  request_digest: string;
  created_at: Date;
  decide_by: Date;
  used_at: Date | null;
  decisions: (Omit<ApprovalDecision, 'decidedAt'> & { decidedAt: string })[];
  now: Date;
}

const approvalColumns = `a.id, a.action, a.about, a.details, a.reason, a.agent, a.person, a.tenant, a.required,
  a.request_digest, a.created_at, a.decide_by, a.used_at, clock_timestamp() as now,
  (select coalesce(json_agg(json_build_object('person', d.person, 'decision', d.decision, 'reason', d.reason,
     'decidedAt', d.decided_at) order by d.decided_at), '[]')
   from fieldkeep.approval_decisions d where d.approval = a.id) as decisions`;

function toApproval(row: ApprovalRow): StoredApproval {
  return {
    id: row.id,
    action: row.action,
    about: row.about,
    details: row.details,
    reason: row.reason,
    required: row.required,
    requestDigest: row.request_digest,
    createdAt: row.created_at,
    decideBy: row.decide_by,
    decisions: row.decisions.map((each) => ({ ...each, decidedAt: new Date(each.decidedAt) })),
    now: row.now,
    ...(row.agent !== null && { agent: row.agent }),
    ...(row.person !== null && { person: row.person }),
    ...(row.tenant !== null && { tenant: row.tenant }),
    ...(row.used_at !== null && { usedAt: row.used_at }),
  };
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

/** False when it was used before. */
export async function setUsed(tx: Client, id: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    'update fieldkeep.approvals set used_at = clock_timestamp() where id = $1 and used_at is null',
    [id],
  );
  return rowCount === 1;
}
