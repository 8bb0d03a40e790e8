/**
 * Refusals, and how they reach the audit log. One with a good credential is an entry of its own, made durable before it is
 * answered. Anybody can cause the others, as many as the network carries, so they are counted:
 *
 *     the first of a source    an entry at once, so that a probe is seen when it happens
 *     the ones after it        counted in memory, and one entry a minute with `count`
 *
 * A source has a number of refusals a minute; above it the answer is 429 and nothing else happens than counting. So the
 * number of durable writes goes by sources and minutes, not by requests; and sources that are more than can be told apart
 * are counted as one. Only what lacks a good credential is limited: all agents of a company may share one address.
 */
import { RateLimiterMemory, RateLimiterRes } from 'rate-limiter-flexible';
import type { Entry } from '../audit/entry.ts';
import { FieldkeepError } from '../errors.ts';
import { refusalEntry } from '../operations/refuse.ts';
import type { Principal } from '../policy/access.ts';
import { newRequestId } from './request-id.ts';
import { sourceOf } from './source.ts';

export interface Refusal {
  readonly requestId: string;
  readonly action: string;
  /** Absent when nobody was authenticated. */
  readonly principal?: Principal;
  /** Whether the policy knows the principal. */
  readonly known: boolean;
  /** The remote address of the connection. */
  readonly address: string | undefined;
  readonly error: FieldkeepError;
}

export interface Refusals {
  /** Returns when `error` may be answered. Errors: the one to answer instead, `audit_unavailable` or `rate_limited`. */
  refuse(refusal: Refusal): Promise<void>;
  /** Writes what is counted. */
  close(): Promise<void>;
}

export interface RefusalsOptions {
  /** Makes entries durable, all in one commit. Errors: `audit_unavailable`. */
  readonly store: (entries: readonly Entry[]) => Promise<void>;
  /** Whether what anybody can cause may be written now; while it may not it is counted on. */
  readonly mayStore?: () => boolean;
  /** Told of every refusal, and of counts that could not be written and are kept. */
  readonly onRefusal?: (code: string) => void;
  readonly onError?: (error: unknown) => void;
  readonly perMinuteMax?: number;
  readonly sourcesMax?: number;
  readonly minuteMs?: number;
}

const perMinuteMaxDefault = 600;
const sourcesMaxDefault = 1_000;
/** Sources beyond the ones that are told apart. */
const others = 'other';

interface Count {
  /** A refusal of this source has its entry: what follows is counted. */
  told: boolean;
  firstMs: number;
  lastMs: number;
  byCode: Map<string, number>;
}

/** Refusals that are not written yet, by source. */
class Counts {
  readonly #max: number;
  #bySource = new Map<string, Count>();

  constructor(sourcesMax: number) {
    this.#max = sourcesMax;
  }

  /** The source that this address counts for from now on: itself, or all the others when too many are known. */
  register(address: string | undefined): string {
    const named = sourceOf(address);
    const source = this.#bySource.has(named) || this.#bySource.size < this.#max ? named : others;
    this.#get(source);
    return source;
  }

  isTold(source: string): boolean {
    return this.#get(source).told;
  }

  tell(source: string): void {
    this.#get(source).told = true;
  }

  add(source: string, code: string): void {
    const count = this.#get(source);
    count.lastMs = Date.now();
    if (count.byCode.size === 0) count.firstMs = count.lastMs;
    count.byCode.set(code, (count.byCode.get(code) ?? 0) + 1);
  }

  /** What was counted since it was last taken. A source without any is forgotten: its next refusal is a first one again. */
  take(): [source: string, count: Count][] {
    const taken = [...this.#bySource].filter(([, { byCode }]) => byCode.size > 0);
    const kept = taken.map(([source]) => [source, { told: true, firstMs: 0, lastMs: 0, byCode: new Map() }] as const);
    this.#bySource = new Map(kept);
    return taken;
  }

  putBack(taken: readonly [source: string, count: Count][]): void {
    for (const [source, { firstMs, lastMs, byCode }] of taken) {
      const since = this.#get(source);
      for (const [code, n] of since.byCode) byCode.set(code, (byCode.get(code) ?? 0) + n);
      Object.assign(since, { told: true, firstMs, lastMs: Math.max(lastMs, since.lastMs), byCode });
    }
  }

  #get(source: string): Count {
    let count = this.#bySource.get(source);
    if (count === undefined) {
      this.#bySource.set(source, (count = { told: false, firstMs: 0, lastMs: 0, byCode: new Map() }));
    }
    return count;
  }
}

export function openRefusals(options: RefusalsOptions): Refusals {
  const { store, mayStore = () => true, onRefusal, onError, minuteMs = 60_000 } = options;
  const { perMinuteMax = perMinuteMaxDefault, sourcesMax = sourcesMaxDefault } = options;
  const limiter = new RateLimiterMemory({ points: perMinuteMax, duration: minuteMs / 1000 });
  const counts = new Counts(sourcesMax);
  let writing: Promise<void> = Promise.resolve();

  /** Errors: `rate_limited`. */
  async function limit(source: string): Promise<void> {
    try {
      await limiter.consume(source);
    } catch (over) {
      if (!(over instanceof RateLimiterRes)) throw over;
      throw new FieldkeepError('rate_limited', 'Too many requests from this address had no good credential.', {
        retryAfterSeconds: Math.max(1, Math.ceil(over.msBeforeNext / 1000)),
      });
    }
  }

  /** Of somebody without a credential, or with one that says nothing to the policy. */
  async function refuseStranger(refusal: Refusal): Promise<void> {
    const { requestId, action, principal, error, address } = refusal;
    const source = counts.register(address);
    try {
      await limit(source);
      if (principal !== undefined) {
        return await store([refusalEntry({ requestId, action, principal, code: error.code })]);
      }
      if (counts.isTold(source) || !mayStore()) return counts.add(source, error.code);
      counts.tell(source);
      await store([{ ...refusalEntry({ requestId, action, code: error.code }), purpose: `source ${source}` }]);
    } catch (failure) {
      counts.add(source, error.code); // it has no entry of its own
      throw failure;
    }
  }

  async function write(): Promise<void> {
    if (!mayStore()) return;
    const taken = counts.take();
    if (taken.length === 0) return;
    try {
      await store(taken.map(([source, count]) => summarise(source, count)));
    } catch (failure) {
      counts.putBack(taken);
      onError?.(failure);
    }
  }

  const timer = setInterval(() => (writing = writing.then(write)), minuteMs);
  return {
    async refuse(refusal) {
      const { requestId, action, principal, known, error } = refusal;
      onRefusal?.(error.code);
      if (principal === undefined || !known) return await refuseStranger(refusal);
      await store([refusalEntry({ requestId, action, principal, code: error.code })]);
    },
    async close() {
      clearInterval(timer);
      writing = writing.then(write);
      await writing;
    },
  };
}

/** One entry for all that one source was refused. */
function summarise(source: string, { firstMs, lastMs, byCode }: Count): Entry {
  const codes = [...byCode].sort(([, a], [, b]) => b - a);
  const count = codes.reduce((sum, [, n]) => sum + n, 0);
  const span = `${new Date(firstMs).toISOString()} to ${new Date(lastMs).toISOString()}`;
  const split = codes.map(([code, n]) => `${code} ${n}`).join(', ');
  const entry = refusalEntry({ requestId: newRequestId(), action: 'authenticate', code: codes[0]![0] });
  return { ...entry, count, purpose: `source ${source}, ${span}: ${split}` };
}
