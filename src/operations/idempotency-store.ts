/** SQL of answers, kept for ten minutes under the principal and its Idempotency-Key, so that a call can be repeated safely. */
import type { Client, Queryable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Call } from './perform.ts';

const keptFor = '10 minutes';

export interface KeptAnswer {
  readonly status: number;
  readonly body: unknown;
}

/** A call and the digest of what it asks: the same key with another request is a mistake. */
export type KeyedCall = Call & { readonly idempotencyDigest?: string };

function principalOf({ principal }: Call): string {
  return JSON.stringify([principal.agent ?? null, principal.person ?? null, principal.tenant ?? null]);
}

/** The answer that the same call got before. Errors: `conflict` when the key was used for another request. */
export async function findAnswer(db: Queryable, call: KeyedCall): Promise<KeptAnswer | undefined> {
  if (call.idempotencyKey === undefined) return undefined;
  const { rows } = await db.query<{ request_digest: string; status: number; body: string }>(
    `select request_digest, status, body from fieldkeep.idempotency_keys
     where principal = $1 and key = $2 and created_at > now() - $3::interval`,
    [principalOf(call), call.idempotencyKey, keptFor],
  );
  const row = rows[0];
  if (row === undefined) return undefined;
  if (row.request_digest !== call.idempotencyDigest) {
    throw new FieldkeepError('conflict', 'This Idempotency-Key was used for another request.');
  }
  return { status: row.status, body: JSON.parse(row.body) };
}

/** Keeps the answer in the transaction that does the work, and forgets what is older. */
export async function insertAnswer(tx: Client, call: KeyedCall, answer: KeptAnswer): Promise<void> {
  await tx.query('delete from fieldkeep.idempotency_keys where created_at <= now() - $1::interval', [keptFor]);
  if (call.idempotencyKey === undefined) return;
  await tx.query(
    `insert into fieldkeep.idempotency_keys (principal, key, request_digest, status, body) values ($1, $2, $3, $4, $5)`,
    [principalOf(call), call.idempotencyKey, call.idempotencyDigest, answer.status, JSON.stringify(answer.body)],
  );
}
