/**
 * An api process may change no key, no run and no approval, and is connected to no database with rows. What needs that it
 * hands to a worker, through Fieldkeep's own database, and waits:
 *
 *     api      ask: call and MAC → asked_calls
 *     worker   take: MAC right? still wanted? → asked_answers (once) → the same operation, decided anew → answer
 *     api      answer → caller
 *
 *     mac = "<version>." base64url(HMAC-SHA-512(K, "fe1/asked-call" 00 | call)[0..32])
 *     K   = the data key of family `audit`, tenant '', of that version
 *
 * Whoever has only a database role cannot make the MAC: it takes a key that Vault unwraps. A process that was taken over
 * can, for as long as it may unwrap.
 */
import { timingSafeEqual } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { DataKey } from '../crypto/data-key.ts';
import { toUnavailable, type Pool } from '../db.ts';
import { errorCodes, FieldkeepError, type ErrorCode } from '../errors.ts';
import { canaryTenant } from '../keys/instances.ts';
import type { Keyring } from '../keys/keyring.ts';
import { auditFamily } from '../keys/version.ts';
import { findAnswer, insertCall, type StoredCall } from './store.ts';

const label = Buffer.from('fe1/asked-call\0', 'latin1');
const macBytes = 32;
const pollMs = 10;
/** A call that no worker has taken after this is not taken any more. */
const takeMaxMs = 4_000;
/** Workers stop taking a call a little before whoever asked gives it up. */
const takeMarginMs = 500;
/** Between our clock and the database's. */
const clockSkewMaxMs = 60_000;
/** A worker that ends its work in time needs a moment to say so. */
const graceMs = 500;

/** What is asked, by name, and everything that the worker has to know of it. */
export interface AskedCall {
  readonly id: string;
  readonly name: string;
  readonly content: object;
  /** By the clock of whoever asks, in milliseconds since 1970, so that an old call is no new one. */
  readonly askedAt: number;
  /** How long the answer is waited for, and how long for a worker to take the call. */
  readonly waitMs: number;
  readonly takeMs: number;
}

export interface Answer {
  readonly status?: number;
  readonly body?: unknown;
  readonly location?: string;
  readonly error?: { readonly code: ErrorCode; readonly detail: string; readonly extras: object };
}

function formatMac(key: DataKey, version: number, call: string): string {
  return `${version}.${key.hmac(label, Buffer.from(call, 'utf8')).toString('base64url', 0, macBytes)}`;
}

/** Errors: `keys_not_ready` when there is no key to seal calls with yet. */
async function sealCall(keyring: Keyring, call: string): Promise<string> {
  const version = keyring.state.families.get(auditFamily)?.active;
  const key = version === undefined ? undefined : await keyring.get(canaryTenant, auditFamily, version);
  if (key === undefined) {
    throw new FieldkeepError('keys_not_ready', 'No worker has made the key yet that calls to it are sealed with.', {
      retryAfterSeconds: 1,
    });
  }
  return formatMac(key, version!, call);
}

/** The call, or undefined where the MAC is not ours. Errors: those of the keeper of root keys. */
export async function openCall(keyring: Keyring, { call, mac }: StoredCall): Promise<AskedCall | undefined> {
  const version = Number(/^([1-9][0-9]{0,8})\./.exec(mac)?.[1]);
  if (keyring.state.families.get(auditFamily)?.versions.has(version) !== true) return undefined;
  const key = await keyring.get(canaryTenant, auditFamily, version);
  if (key === undefined) return undefined;
  const [made, given] = [formatMac(key, version, call), mac].map((text) => Buffer.from(text));
  if (made!.length !== given!.length || !timingSafeEqual(made!, given!)) return undefined;
  return JSON.parse(call) as AskedCall;
}

/** Whether somebody still waits for a worker to take the call; `storedAt` and `now` by the database's clock. */
export function isWanted({ askedAt, takeMs }: AskedCall, storedAt: Date, now: Date): boolean {
  const isNew = Math.abs(storedAt.getTime() - askedAt) <= clockSkewMaxMs;
  return isNew && now.getTime() - storedAt.getTime() <= takeMs - takeMarginMs;
}

interface Asking {
  readonly pool: Pool;
  readonly keyring: Keyring;
}

/**
 * Hands a call to a worker and waits for its answer; `id` names it for ever. Undefined when no worker took it in time: then
 * none will. Errors: `keys_not_ready`, `database_unavailable`; `deadline_exceeded` when one took it and has not answered.
 */
export async function ask(
  { pool, keyring }: Asking,
  { id, name, content, waitMs }: { id: string; name: string; content: object; waitMs: number },
): Promise<Answer | undefined> {
  const takeMs = Math.min(takeMaxMs, Math.round(waitMs));
  const asked: AskedCall = { id, name, content, askedAt: Date.now(), waitMs: Math.round(waitMs), takeMs };
  const call = JSON.stringify(asked);
  const mac = await sealCall(keyring, call);
  const since = performance.now();
  try {
    await insertCall(pool, { id, call, mac });
    for (;;) {
      await sleep(pollMs);
      const found = await findAnswer(pool, id);
      if (found?.answer !== undefined) return JSON.parse(found.answer) as Answer;
      if (performance.now() - since < (found === undefined ? takeMs : waitMs + graceMs)) continue;
      if (found === undefined) return undefined;
      throw new FieldkeepError('deadline_exceeded', 'A worker has taken the call and has not answered in time.');
    }
  } catch (error) {
    throw toUnavailable(error);
  }
}

/** The error that the worker's operation ended with. */
export function toError({ code, detail, extras }: NonNullable<Answer['error']>): FieldkeepError {
  return new FieldkeepError(errorCodes.includes(code) ? code : 'internal', detail, extras);
}
