/**
 * The life of our token at Vault:
 *
 *     log in → renew at ⅔ of its life (± 10 %) → … → its renewals end → log in again
 *
 * A renewal that fails is tried again with backoff while the token lives. When Vault refuses a call, `recover` finds out
 * whether the token is to blame. Logins at once share one, and after a failed one nobody asks again for a moment, so that
 * a thousand requests do not make a thousand logins.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { RootKeyError } from './root-keys.ts';
import { VaultError, type Vault, type VaultAnswer } from './vault.ts';
import { LoginRefused, type Login, type SecurityEvent } from './vault-login.ts';

const renewAt = 2 / 3;
const jitter = 0.1;
/** A token that is about to end is not asked about without pause. */
const restMinMs = 1_000;
const retryFirstMs = 1_000;
const retryMaxMs = 30_000;
const loginPauseMs = 500;
/** setTimeout overflows at 2³¹ ms, less than the 768 hours a token may live. */
const timerMaxMs = 24 * 3600 * 1000;

/** Whoever calls Vault with the token of a session. */
export interface VaultCaller {
  readonly vault: Vault;
  readonly session: VaultSession;
}

/** A call with the session's token; once more with a new one when the refusal was about the token. Errors: as the call's. */
export async function callWithSession(
  { vault, session }: VaultCaller,
  method: 'GET' | 'POST',
  path: string,
  body?: object,
): Promise<VaultAnswer> {
  const token = await session.getToken();
  try {
    return await vault.call(method, path, token, body);
  } catch (error) {
    if (!(error instanceof VaultError && error.status === 403)) throw error;
    if (!(await session.recover(token))) throw error;
  }
  return await vault.call(method, path, await session.getToken(), body);
}

interface SessionState {
  /** Whether Vault took our credential when we last asked. */
  readonly authenticated: boolean;
  /** Absent for a token that does not end, and when there is none. */
  readonly expiresAt?: Date;
  readonly logins: number;
  readonly renewals: number;
  readonly failures: number;
  readonly securityEvents: number;
}

export interface SessionOptions {
  readonly vault: Vault;
  readonly login: () => Promise<Login>;
  readonly onError: (error: unknown) => void;
  readonly onSecurityEvent: (event: SecurityEvent, detail: string) => void;
}

export class VaultSession {
  readonly #options: SessionOptions;
  #login: Login | undefined;
  /** On the clock of performance.now(). */
  #expiresAt = Infinity;
  #entering: Promise<Login> | undefined;
  #failed: { readonly error: unknown; readonly at: number } | undefined;
  /** The security event that was told since the last login that succeeded. */
  #reported: SecurityEvent | undefined;
  #stop = new AbortController();
  readonly #counters = { logins: 0, renewals: 0, failures: 0, securityEvents: 0 };

  constructor(options: SessionOptions) {
    this.#options = options;
  }

  get state(): SessionState {
    const ends = this.#login !== undefined && this.#expiresAt !== Infinity;
    const expiresAt = new Date(Date.now() + this.#expiresAt - performance.now());
    return { authenticated: this.#isAlive(), ...this.#counters, ...(ends && { expiresAt }) };
  }

  /** A token that should be good; logs in when there is none. Errors: LoginRefused, VaultError. */
  async getToken(): Promise<string> {
    if (this.#isAlive()) return this.#login!.token;
    return (await this.#enter()).token;
  }

  /**
   * After a refusal: true when the token was to blame and there is a new one, so that the call is worth repeating; false
   * when the token is good and Vault means the call. Errors: as getToken.
   */
  async recover(token: string): Promise<boolean> {
    if (this.#login?.token !== token) return (await this.getToken()) !== token;
    try {
      await this.#options.vault.call('GET', 'auth/token/lookup-self', token);
      return false;
    } catch (error) {
      if (!(error instanceof VaultError && error.status === 403)) throw error;
    }
    this.#drop(token); // unless another call's refusal has done so while we asked
    return (await this.getToken()) !== token;
  }

  stop(): void {
    this.#stop.abort();
    this.#login = undefined;
  }

  #drop(token: string): void {
    if (this.#login?.token === token) this.#login = undefined;
  }

  #isAlive(): boolean {
    return this.#login !== undefined && performance.now() < this.#expiresAt;
  }

  #enter(): Promise<Login> {
    this.#entering ??= this.#enterOnce().finally(() => {
      this.#entering = undefined;
    });
    return this.#entering;
  }

  async #enterOnce(): Promise<Login> {
    if (this.#failed !== undefined && performance.now() - this.#failed.at < loginPauseMs) throw this.#failed.error;
    try {
      const login = await this.#options.login();
      this.#counters.logins += 1;
      this.#failed = undefined;
      this.#reported = undefined;
      this.#adopt(login);
      this.#stop.abort(); // the keeper of the token before
      this.#stop = new AbortController();
      void this.#keep(login, this.#stop.signal);
      return login;
    } catch (error) {
      this.#fail(error);
      throw error;
    }
  }

  #fail(error: unknown): void {
    this.#counters.failures += 1;
    this.#failed = { error, at: performance.now() };
    const event = error instanceof LoginRefused ? error.event : undefined;
    if (event === undefined || event === this.#reported) return; // one event, however often the login is tried
    this.#reported = event;
    this.#counters.securityEvents += 1;
    this.#options.onSecurityEvent(event, (error as LoginRefused).message);
  }

  #adopt(login: Login): void {
    this.#login = login;
    this.#expiresAt = login.ttlSeconds === 0 ? Infinity : performance.now() + login.ttlSeconds * 1000;
  }

  /** Renews `first` for as long as that works, then logs in again. */
  async #keep(first: Login, signal: AbortSignal): Promise<void> {
    let login = first;
    try {
      while (login.ttlSeconds > 0) {
        const life = login.ttlSeconds * 1000;
        const wait = life * renewAt * (1 + jitter * (2 * Math.random() - 1));
        await rest(Math.max(restMinMs, wait), signal);
        const renewed = login.renewable ? await this.#renew(login, signal) : undefined;
        // Towards its maximal life Vault grants less and less: a new token then serves better than ever shorter renewals.
        if (renewed === undefined || renewed.ttlSeconds < first.ttlSeconds / 2) return await this.#reenter(signal);
        this.#adopt((login = renewed));
      }
    } catch (error) {
      if (!signal.aborted) this.#options.onError(error);
    }
  }

  /** Undefined when Vault will not renew it. */
  async #renew(login: Login, signal: AbortSignal): Promise<Login | undefined> {
    for (let n = 0; performance.now() < this.#expiresAt; n += 1) {
      try {
        const { auth } = await this.#options.vault.call('POST', 'auth/token/renew-self', login.token, {});
        const { lease_duration: ttl, renewable } = auth ?? {};
        if (typeof ttl !== 'number') throw new VaultError('Vault answers a renewal without a TTL.');
        this.#counters.renewals += 1;
        return { ...login, ttlSeconds: ttl, renewable: renewable === true };
      } catch (error) {
        this.#counters.failures += 1;
        if (!signal.aborted) this.#options.onError(error);
        if (error instanceof RootKeyError && error.refused) return undefined;
        await this.#backOff(n, signal);
      }
    }
    return undefined;
  }

  /** The token that is going to end stays in use until there is another. */
  async #reenter(signal: AbortSignal): Promise<void> {
    for (let n = 0; !signal.aborted; n += 1) {
      try {
        await this.#enter(); // aborts `signal` when it succeeds
        return;
      } catch (error) {
        this.#options.onError(error);
        await this.#backOff(n, signal);
      }
    }
  }

  async #backOff(n: number, signal: AbortSignal): Promise<void> {
    await rest(Math.min(retryMaxMs, retryFirstMs * 2 ** n) * (1 + jitter * Math.random()), signal);
  }
}

async function rest(ms: number, signal: AbortSignal): Promise<void> {
  const until = performance.now() + ms;
  for (let left = ms; left > 0; left = until - performance.now()) {
    await sleep(Math.min(left, timerMaxMs), undefined, { signal, ref: false });
  }
}
