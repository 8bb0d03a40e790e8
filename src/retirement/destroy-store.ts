/** SQL of destructions: what was agreed to, how far it got, and its certificate. */
import type { Client, Queryable } from '../db.ts';
import type { Evidence } from './evidence.ts';
import { present } from '../present.ts';

/** Somebody's yes, as it was given. */
export interface Agreement {
  readonly person: string;
  readonly decision: string;
  readonly reason: string;
  readonly decidedAt: string;
}

/** What the keeper of root keys has confirmed. */
export interface KeeperAnswer {
  readonly keeper: 'vault' | 'embedded';
  /** As the keeper calls it. */
  readonly key: string;
  /** Oldest versions there are: 0 before anything was given up. */
  readonly oldestBefore: number;
  readonly oldestAfter: number;
}

export interface Destruction {
  readonly id: string;
  readonly family: string;
  readonly version: number;
  readonly approval: string;
  readonly decisions: readonly Agreement[];
  readonly details: object;
  readonly withoutGuards: boolean;
  readonly reason: string;
  readonly requestedBy: string;
  readonly askedAt: Date;
  /** What was found right before the end, and which version of the root key was the oldest then. */
  readonly evidence?: Evidence & { readonly oldestBefore: number };
  readonly keeperAnswer?: KeeperAnswer;
  readonly carriedOutBy?: string;
  readonly destroyedAt?: Date;
  /** The request id of the entry that tells of it. */
  readonly entry?: string;
  readonly copiesRemovedAt?: Date;
  readonly certificate?: string;
  readonly signature?: string;
  readonly publicKey?: string;
  readonly signingKeyVersion?: number;
  readonly finishedAt?: Date;
  readonly refused?: string;
  readonly refusedAt?: Date;
  readonly problem?: string;
  /** By whom and why, in a sentence; it is refused, unless the keeper has done it before. */
  readonly calledOff?: string;
}

type Row = { [K in keyof Destruction]-?: Destruction[K] | null };

const columns = `id, family, version, approval, decisions, details, without_guards as "withoutGuards", reason,
  requested_by as "requestedBy", asked_at as "askedAt", evidence, keeper_answer as "keeperAnswer",
  carried_out_by as "carriedOutBy", destroyed_at as "destroyedAt", entry, copies_removed_at as "copiesRemovedAt",
  certificate, signature, public_key as "publicKey", signing_key_version as "signingKeyVersion",
  finished_at as "finishedAt", refused, refused_at as "refusedAt", problem, called_off as "calledOff"`;

const toDestruction = (row: Row) => present(row) as unknown as Destruction;

export type NewDestruction = Pick<
  Destruction,
  'id' | 'family' | 'version' | 'approval' | 'decisions' | 'details' | 'withoutGuards' | 'reason' | 'requestedBy'
>;

/** False when another one of the family is open, or of the version was not refused. */
export async function insertDestruction(tx: Client, made: NewDestruction): Promise<boolean> {
  const { rowCount } = await tx.query(
    `insert into fieldkeep.destructions
       (id, family, version, approval, decisions, details, without_guards, reason, requested_by)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing`,
    [
      ...[made.id, made.family, made.version, made.approval, JSON.stringify(made.decisions)],
      ...[JSON.stringify(made.details), made.withoutGuards, made.reason, made.requestedBy],
    ],
  );
  return rowCount === 1;
}

export async function getDestruction(db: Queryable, id: string): Promise<Destruction> {
  const { rows } = await db.query<Row>(`select ${columns} from fieldkeep.destructions where id = $1`, [id]);
  return toDestruction(rows[0]!);
}

/** Of a version, the newest: there may be refused ones before it. */
export async function findDestruction(
  db: Queryable,
  family: string,
  version: number,
): Promise<Destruction | undefined> {
  const { rows } = await db.query<Row>(
    `select ${columns} from fieldkeep.destructions where family = $1 and version = $2 order by asked_at desc limit 1`,
    [family, version],
  );
  return rows[0] === undefined ? undefined : toDestruction(rows[0]);
}

/** Of a family, the newest of each version. */
export async function listDestructions(db: Queryable, family: string): Promise<Destruction[]> {
  const { rows } = await db.query<Row>(
    `select distinct on (version) ${columns} from fieldkeep.destructions where family = $1
     order by version, asked_at desc`,
    [family],
  );
  return rows.map(toDestruction);
}

/** Those that somebody should take further now. */
export async function listOpen(db: Queryable): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select id from fieldkeep.destructions
     where finished_at is null and refused_at is null and (retry_at is null or retry_at <= clock_timestamp())
       and (driver_until is null or driver_until <= clock_timestamp())
     order by asked_at`,
  );
  return rows.map((row) => row.id);
}

/** Takes it for `ms`, or keeps it; false when another process has it, or nothing is left to do. */
export async function claimDestruction(db: Queryable, id: string, driver: string, ms: number): Promise<boolean> {
  const { rowCount } = await db.query(
    `update fieldkeep.destructions
     set driver = $2, driver_until = clock_timestamp() + make_interval(secs => $3::float8 / 1000)
     where id = $1 and finished_at is null and refused_at is null
       and (driver = $2 or driver_until is null or driver_until <= clock_timestamp())`,
    [id, driver, ms],
  );
  return rowCount === 1;
}

/** Keeps it for `ms`, right before what cannot be taken back; false when that is not to be done any more. */
export async function claimLastStep(db: Queryable, id: string, driver: string, ms: number): Promise<boolean> {
  const { rowCount } = await db.query(
    `update fieldkeep.destructions set driver_until = clock_timestamp() + make_interval(secs => $3::float8 / 1000)
     where id = $1 and driver = $2 and destroyed_at is null and refused_at is null and called_off is null`,
    [id, driver, ms],
  );
  return rowCount === 1;
}

/** Whoever goes on with it next refuses it. False when it is over. The first to call it off is remembered. */
export async function setCalledOff(tx: Client, id: string, why: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.destructions set called_off = coalesce(called_off, $2), retry_at = null, problem = null
     where id = $1 and destroyed_at is null and refused_at is null`,
    [id, why],
  );
  return rowCount === 1;
}

/** `problem` and when to try again: what kept it from its end this time; neither, nothing did. */
export async function releaseDestruction(
  db: Queryable,
  id: string,
  driver: string,
  held?: { readonly problem: string; readonly retryMs: number },
): Promise<void> {
  await db.query(
    `update fieldkeep.destructions set driver_until = null, problem = $3,
       retry_at = clock_timestamp() + make_interval(secs => $4::float8 / 1000)
     where id = $1 and driver = $2`,
    [id, driver, held?.problem ?? null, held?.retryMs ?? null],
  );
}

/** What was found right before the end. False when it was destroyed or refused meanwhile, or another process has it. */
export async function setEvidence(
  tx: Client,
  id: string,
  driver: string,
  evidence: NonNullable<Destruction['evidence']>,
): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.destructions set evidence = $3, checked_at = clock_timestamp()
     where id = $1 and driver = $2 and destroyed_at is null and refused_at is null`,
    [id, driver, JSON.stringify(evidence)],
  );
  return rowCount === 1;
}

export async function setRefused(tx: Client, id: string, driver: string, why: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.destructions set refused = $3, refused_at = clock_timestamp(), driver_until = null
     where id = $1 and driver = $2 and destroyed_at is null and refused_at is null`,
    [id, driver, why],
  );
  return rowCount === 1;
}

/** The keeper has confirmed it: whatever was said meanwhile, it is so. False when that was recorded before. */
export async function setConfirmed(
  tx: Client,
  id: string,
  { answer, by, entry }: { readonly answer: KeeperAnswer; readonly by: string; readonly entry: string },
): Promise<boolean> {
  const { rowCount } = await tx.query(
    `update fieldkeep.destructions
     set keeper_answer = $2, carried_out_by = $3, entry = $4, destroyed_at = clock_timestamp(),
         refused = null, refused_at = null
     where id = $1 and destroyed_at is null`,
    [id, JSON.stringify(answer), by, entry],
  );
  return rowCount === 1;
}

export async function setCopiesRemoved(db: Queryable, id: string): Promise<void> {
  await db.query(
    `update fieldkeep.destructions set copies_removed_at = clock_timestamp()
     where id = $1 and copies_removed_at is null`,
    [id],
  );
}

/** Its text is made once. Answers the one that stands. */
export async function setCertificate(db: Queryable, id: string, text: string): Promise<string> {
  const { rows } = await db.query<{ certificate: string }>(
    `update fieldkeep.destructions set certificate = coalesce(certificate, $2) where id = $1 returning certificate`,
    [id, text],
  );
  return rows[0]!.certificate;
}

export async function setSigned(
  db: Queryable,
  id: string,
  {
    signature,
    publicKey,
    version,
  }: { readonly signature: string; readonly publicKey: string; readonly version: number },
): Promise<void> {
  await db.query(
    `update fieldkeep.destructions
     set signature = $2, public_key = $3, signing_key_version = $4, finished_at = clock_timestamp(), problem = null
     where id = $1 and finished_at is null`,
    [id, signature, publicKey, version],
  );
}
