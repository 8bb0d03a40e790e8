/**
 * The keyring is the one object that hands out data keys.
 *
 * A key that was used in the last minute costs nothing: `get` answers it at once, without a promise. Others are
 * unwrapped by the keeper of root keys, once however many ask, and their fingerprint is compared before first use.
 *
 *     lifetime   300 s ± 10 % after the unwrap, whatever the use     idle     60 s without use
 *     refresh    from 80 % of the lifetime on, in the background     absent, refused   remembered for 2 s
 *
 * While the keeper is away, keys work until their lifetime is over. When it refuses a key, the copy goes at once.
 *
 * A process that faces agents holds no right to make keys: it asks a worker, through the database, and waits 2 s.
 */
import { timingSafeEqual } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { encodeWrapContext } from '../crypto/context.ts';
import { DataKey } from '../crypto/data-key.ts';
import { toUnavailable, type Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { RootKeyError, type RootKeys } from './root-keys.ts';
import { findDataKey, insertDataKey, loadKeyState, notifyWanted, type KeyName } from './store.ts';
import { auditFamily, type KeyState, type KeyVersion } from './version.ts';

export const lifetimeMs = 300_000;
const lifetimeSpread = 0.1;
const refreshFrom = 0.8;
const refreshAgainMs = 2_000;
const idleMs = 60_000;
const absentMs = 2_000;
const workerMaxMs = 2_000;
const workerPollMs = 25;
const cachedKeysMax = 20_000;

interface Cached {
  readonly key: DataKey;
  readonly expiresAt: number;
  refreshAt: number;
  usedAt: number;
}

/** What is remembered instead of a key: that there is none, or why there is none to be had. */
interface Negative {
  readonly until: number;
  readonly error?: Error;
}

export interface KeyringOptions {
  readonly pool: Pool;
  readonly rootKeys: RootKeys;
  /** Whether this process may make data keys itself. */
  readonly makes?: boolean;
  /** The families that this process serves; all when absent. The internal family is always among them. */
  readonly families?: readonly string[];
  /** Told about failed background refreshes. */
  readonly onError: (error: unknown) => void;
  /** Milliseconds that only go forward; tests put their own here. */
  readonly now?: () => number;
}

function notServed(family: string): FieldkeepError {
  return new FieldkeepError('keys_not_ready', `This process does not serve class ${family}.`, { retryAfterSeconds: 1 });
}

export class Keyring {
  /** The newest picture of key state that this process has seen. */
  state: KeyState;
  /** How often the keeper was asked to unwrap; with warm keys it stands still. */
  unwraps = 0;
  /** Versions that requests have used since the last heartbeat, which writes them down and empties the set. */
  readonly used = new Set<KeyVersion>();

  readonly #pool: Pool;
  readonly #rootKeys: RootKeys;
  readonly #onError: (error: unknown) => void;
  readonly #now: () => number;
  readonly #makes: boolean;
  readonly #families: ReadonlySet<string> | undefined;
  readonly #cached = new Map<string, Cached>();
  readonly #negative = new Map<string, Negative>();
  /** Keys that were asked of a worker in vain: whoever wants one made fails at once for a moment. */
  readonly #unanswered = new Map<string, Negative>();
  readonly #fetching = new Map<string, Promise<DataKey | undefined>>();
  readonly #making = new Map<string, Promise<DataKey>>();
  readonly #sweeper: NodeJS.Timeout;
  #refreshing: Promise<void> | undefined;

  private constructor(options: KeyringOptions, state: KeyState) {
    this.#pool = options.pool;
    this.#rootKeys = options.rootKeys;
    this.#onError = options.onError;
    this.#now = options.now ?? (() => performance.now());
    this.#makes = options.makes ?? true;
    this.#families = options.families && new Set([...options.families, auditFamily]);
    this.state = state;
    this.#sweeper = setInterval(() => this.sweep(), 10_000);
    this.#sweeper.unref();
  }

  static async open(options: KeyringOptions): Promise<Keyring> {
    return new Keyring(options, await loadKeyState(options.pool));
  }

  /**
   * The data key of a name: at once when it is at hand, else a promise; `undefined` when the name has none. Never makes
   * one. Errors: `vault_unavailable`, `database_unavailable`, `internal` (fingerprint).
   */
  get(tenant: string, family: string, version: number): DataKey | Promise<DataKey | undefined> {
    const id = `${tenant}\n${family}\n${version}`;
    const found = this.#cached.get(id);
    const now = this.#now();
    if (found !== undefined && now < found.expiresAt && now - found.usedAt < idleMs) {
      found.usedAt = now;
      if (now >= found.refreshAt) {
        found.refreshAt = now + refreshAgainMs; // a failed one is not repeated with every request
        this.#refreshAhead(id, { tenant, family, version });
      }
      return found.key;
    }
    const negative = this.#negative.get(id);
    if (negative !== undefined && now < negative.until) {
      return negative.error === undefined ? Promise.resolve(undefined) : Promise.reject(negative.error);
    }
    if (!this.serves(family)) return Promise.reject(notServed(family));
    return this.#fetch(id, { tenant, family, version });
  }

  /** Whether this process answers for the family. Vault holds it to that: it has no right to the others' root keys. */
  serves(family: string): boolean {
    return this.#families === undefined || this.#families.has(family);
  }

  /** The data key of a name, made when the name has none. Two hundred calls at once make one. Errors: as `get`. */
  getOrMake(tenant: string, family: string, version: number): DataKey | Promise<DataKey> {
    const found = this.get(tenant, family, version);
    if (found instanceof DataKey) return found;
    const id = `${tenant}\n${family}\n${version}`;
    return found.then((key) => {
      if (key !== undefined) return key;
      let making = this.#making.get(id);
      if (making === undefined) {
        making = this.#make(id, { tenant, family, version }).finally(() => this.#making.delete(id));
        this.#making.set(id, making);
      }
      return making;
    });
  }

  /** Reads key state again; keys of versions that are gone or destroyed are dropped. Calls at once share one reading. */
  refresh(): Promise<void> {
    this.#refreshing ??= this.#reload().finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  /** Drops what is over its time; runs by itself every ten seconds. */
  sweep(): void {
    const now = this.#now();
    for (const [id, { expiresAt, usedAt }] of this.#cached) {
      if (now >= expiresAt || now - usedAt >= idleMs) this.#cached.delete(id);
    }
    for (const memory of [this.#negative, this.#unanswered]) {
      for (const [id, { until }] of memory) if (now >= until) memory.delete(id);
    }
  }

  close(): void {
    clearInterval(this.#sweeper);
    this.#cached.clear();
  }

  async #reload(): Promise<void> {
    let state: KeyState;
    try {
      state = await loadKeyState(this.#pool);
    } catch (error) {
      throw toUnavailable(error);
    }
    if (state.epoch < this.state.epoch) return; // an older reading came back late
    this.state = state;
    this.#negative.clear();
    for (const id of this.#cached.keys()) {
      const [, family = '', version = ''] = id.split('\n');
      const known = state.families.get(family)?.versions.get(Number(version));
      if (known === undefined || known.state === 'destroyed') this.#cached.delete(id);
    }
  }

  #fetch(id: string, name: KeyName): Promise<DataKey | undefined> {
    let fetching = this.#fetching.get(id);
    if (fetching === undefined) {
      fetching = this.#unwrapStored(id, name)
        .catch((error: unknown) => this.#evictRefused(id, error))
        .finally(() => this.#fetching.delete(id));
      this.#fetching.set(id, fetching);
    }
    return fetching;
  }

  async #unwrapStored(id: string, name: KeyName): Promise<DataKey | undefined> {
    let stored;
    try {
      stored = await findDataKey(this.#pool, name.tenant, name.family, name.version);
    } catch (error) {
      throw toUnavailable(error);
    }
    if (stored === undefined) {
      this.#cached.delete(id);
      this.#negative.set(id, { until: this.#now() + absentMs });
      return undefined;
    }
    const key = await this.#unwrap(name, stored.wrapped);
    this.#check(name, key, stored.fingerprint);
    this.#keep(id, key);
    return key;
  }

  /** No grace: what the keeper refuses is not used again, and the keeper is not asked again for a moment. */
  #evictRefused(id: string, error: unknown): never {
    if (error instanceof RootKeyError && error.refused) {
      this.#cached.delete(id);
      this.#negative.set(id, { until: this.#now() + absentMs, error });
    }
    throw error;
  }

  async #unwrap(name: KeyName, wrapped: string): Promise<DataKey> {
    this.unwraps += 1;
    const context = encodeWrapContext(name.tenant, name.family, name.version);
    return DataKey.from(await this.#rootKeys.unwrap(name.family, wrapped, context));
  }

  /** Two fingerprints for one name: somebody changed the stored key. Nothing is sealed or opened with either. */
  #check(name: KeyName, key: DataKey, fingerprint: Uint8Array): void {
    if (timingSafeEqual(key.fingerprint, fingerprint)) return;
    throw new FieldkeepError(
      'internal',
      `The stored data key of family ${name.family}, version ${name.version} does not match its fingerprint.`,
    );
  }

  async #make(id: string, name: KeyName): Promise<DataKey> {
    const known = this.state.families.get(name.family)?.versions.get(name.version);
    if (known === undefined) {
      throw new FieldkeepError('version_unknown', `Family ${name.family} has no version ${name.version}.`);
    }
    if (!this.#makes) {
      const unanswered = this.#unanswered.get(id);
      if (unanswered?.error !== undefined && this.#now() < unanswered.until) throw unanswered.error;
      return await this.#askWorker(id, name);
    }
    const context = encodeWrapContext(name.tenant, name.family, name.version);
    const wrapped = await this.#rootKeys.makeDataKey(name.family, known.transitVersion, context);
    const made = await this.#unwrap(name, wrapped);
    try {
      await insertDataKey(this.#pool, name, { wrapped, fingerprint: made.fingerprint });
    } catch (error) {
      throw toUnavailable(error);
    }
    // Another process may have been first: what is stored is the key, and it is read before anything is sealed.
    this.#negative.delete(id);
    const key = await this.#fetch(id, name);
    if (key !== undefined) return key;
    throw new FieldkeepError('keys_not_ready', `A data key of family ${name.family} could not be stored.`, {
      retryAfterSeconds: 1,
    });
  }

  /** A worker makes the key and stores it; looking for it there also finds what another process asked for. */
  async #askWorker(id: string, name: KeyName): Promise<DataKey> {
    const deadline = performance.now() + workerMaxMs;
    try {
      await notifyWanted(this.#pool, name);
      while (performance.now() < deadline) {
        await sleep(workerPollMs);
        this.#negative.delete(id);
        const key = await this.#fetch(id, name);
        if (key !== undefined) return key;
      }
    } catch (error) {
      throw toUnavailable(error);
    }
    const detail = `The first data key of family ${name.family} for this tenant has not been made yet: no worker answered.`;
    const error = new FieldkeepError('keys_not_ready', detail, { retryAfterSeconds: 2 });
    this.#unanswered.set(id, { until: this.#now() + absentMs, error });
    throw error;
  }

  #keep(id: string, key: DataKey): void {
    if (this.#cached.size >= cachedKeysMax) {
      const oldest = this.#cached.keys().next();
      if (!oldest.done) this.#cached.delete(oldest.value);
    }
    const now = this.#now();
    const lifetime = lifetimeMs * (1 + lifetimeSpread * (2 * Math.random() - 1));
    this.#cached.delete(id); // a refreshed key moves to the young end
    this.#cached.set(id, { key, expiresAt: now + lifetime, refreshAt: now + lifetime * refreshFrom, usedAt: now });
  }

  #refreshAhead(id: string, name: KeyName): void {
    if (this.#fetching.has(id)) return;
    this.#fetch(id, name).catch(this.#onError);
  }
}
