/**
 * The worker's side of asked calls (ask.ts): takes what was asked, makes sure that a process of ours asked it and that
 * somebody still waits, does it, and writes the answer down. It looks when it is woken and every two seconds.
 */
import type { Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Keyring } from '../keys/keyring.ts';
import { isWanted, openCall, type Answer, type AskedCall } from './ask.ts';
import { deleteCall, deleteOld, listUntaken, setAnswer, takeCall, type StoredCall, type UntakenCall } from './store.ts';

const lookEveryMs = 2_000;
const atOnceMax = 8;
const cleanEveryMs = 60_000;
/** Whoever may write there could fill the log otherwise. */
const tellEveryMs = 60_000;

interface Parts {
  readonly pool: Pool;
  readonly keyring: Keyring;
  readonly instanceId: string;
}

interface Duty {
  /** Whether this worker is one to do it now; otherwise another one takes the call. */
  readonly mayTake: (call: AskedCall) => Promise<boolean>;
  /** Does what a call asks. Errors become its answer. */
  readonly perform: (call: AskedCall) => Promise<Answer>;
}

export interface Taker {
  /** Looks now. */
  wake(): void;
  /** Takes nothing more, and waits for what was taken. */
  stop(): Promise<void>;
}

function answerOf(error: unknown): Answer {
  if (error instanceof FieldkeepError) {
    return { error: { code: error.code, detail: error.message, extras: error.extras } };
  }
  return { error: { code: 'internal', detail: 'The request could not be completed.', extras: {} } };
}

export function startTaking(parts: Parts, { mayTake, perform }: Duty, onError: (error: unknown) => void): Taker {
  const { pool, keyring, instanceId } = parts;
  const working = new Set<Promise<void>>();
  let stopped = false;
  let looking: Promise<void> | undefined;
  let again = false;
  let cleanedAt = -Infinity;
  let toldAt = -Infinity;

  async function work(stored: StoredCall, call: AskedCall): Promise<void> {
    if (!(await takeCall(pool, stored.id, instanceId))) return;
    const answer = await perform(call).catch((error: unknown) => {
      if (!(error instanceof FieldkeepError)) onError(error);
      return answerOf(error);
    });
    await setAnswer(pool, stored.id, JSON.stringify(answer));
  }

  /** Undefined for what is not acted on: no MAC of ours, or nobody waits any more. */
  async function admit(stored: UntakenCall): Promise<AskedCall | undefined> {
    const call = await openCall(keyring, stored);
    if (call?.id === stored.id && isWanted(call, stored.askedAt, stored.now)) return call;
    await deleteCall(pool, stored.id);
    if (call !== undefined) return undefined;
    if (performance.now() - toldAt > tellEveryMs) {
      toldAt = performance.now();
      onError(
        new FieldkeepError('forbidden', `Asked call ${stored.id} was written by no process of ours: it is ignored.`),
      );
    }
    return undefined;
  }

  async function look(): Promise<void> {
    if (performance.now() - cleanedAt > cleanEveryMs) {
      cleanedAt = performance.now();
      await deleteOld(pool);
    }
    for (const stored of await listUntaken(pool, atOnceMax * 4)) {
      if (stopped) return;
      const call = await admit(stored);
      if (call === undefined || !(await mayTake(call))) continue;
      while (working.size >= atOnceMax) await Promise.race(working);
      const job: Promise<void> = work(stored, call)
        .catch(onError)
        .finally(() => working.delete(job));
      working.add(job);
    }
  }

  function wake(): void {
    if (stopped) return;
    again = true;
    looking ??= (async () => {
      while (again && !stopped) {
        again = false;
        await look().catch((error: unknown) => onError(error));
      }
      looking = undefined;
    })();
  }

  const timer = setInterval(wake, lookEveryMs);
  wake();
  return {
    wake,
    async stop() {
      stopped = true;
      clearInterval(timer);
      await looking;
      await Promise.all(working);
    },
  };
}
