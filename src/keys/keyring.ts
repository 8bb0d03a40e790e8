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
 * A key that seals for a column in a target is committed in that target's mirror before (mirror.ts): a key at hand
 * remembers in which mirrors it is.
 *
 * A process that faces agents holds no right to make keys and is connected to no target: it asks a worker and waits 2 s.
 */
import { timingSafeEqual } from 'node:crypto';
import { encodeWrapContext } from '../crypto/context.ts';
import { DataKey } from '../crypto/data-key.ts';
import { toUnavailable, withClient, type Pool, type Queryable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { mirrorKey, mustBeKnown, type FindTarget } from './mirror.ts';
import { RootKeyError, type RootKeys } from './root-keys.ts';
import { follows } from './epoch.ts';
import { readEpoch } from './epoch-store.ts';
import { findDataKey, insertDataKey, listFingerprints, loadKeyState, type KeyName, type Wanted } from './store.ts';
import { auditFamily, type KeyState } from './version.ts';

export const lifetimeMs = 300_000;
const lifetimeSpread = 0.1;
const refreshFrom = 0.8;
const refreshAgainMs = 2_000;
const idleMs = 60_000;
const absentMs = 2_000;
const workerMaxMs = 2_000;
const mirrorMaxMs = 2_000;
const cachedKeysMax = 20_000;

interface Cached {
  readonly key: DataKey;
  /** Targets whose mirror holds it. */
  readonly mirrored: Set<string>;
  readonly expiresAt: number;
  refreshAt: number;
  usedAt: number;
}

/** What is remembered instead of a key: that there is none, or why there is none to be had. */
interface Negative {
  readonly until: number;
  readonly error?: Error;
}

interface KeyringOptions {
  readonly pool: Pool;
  readonly rootKeys: RootKeys;
  /** Has a worker make a data key, or mirror it, and resolves when that was done; absent: this process makes keys itself. */
  readonly askForKey?: (wanted: Wanted, waitMs: number) => Promise<void>;
  /** Targets that this process is connected to, and whose mirrors it may write if it may make keys. */
  readonly findTarget?: FindTarget;
  /** The families that this process serves; all when absent. The internal family is always among them. */
  readonly families?: readonly string[];
  /** Told about failed background refreshes. */
  readonly onError: (error: unknown) => void;
  /** Milliseconds that only go forward; tests put their own here. */
  readonly now?: () => number;
}

/** Calls at once share one run of `work`. */
function share<T>(running: Map<string, Promise<T>>, id: string, work: () => Promise<T>): Promise<T> {
  let promise = running.get(id);
  if (promise === undefined) {
    promise = work().finally(() => running.delete(id));
    running.set(id, promise);
  }
  return promise;
}

function notServed(family: string): FieldkeepError {
  return new FieldkeepError('keys_not_ready', `This process does not serve class ${family}.`, { retryAfterSeconds: 1 });
}

export class Keyring {
  /** The newest picture of key state that this process has seen. */
  state: KeyState;
  /** How often the keeper was asked to unwrap; with warm keys it stands still. */
  unwraps = 0;

  readonly #pool: Pool;
  readonly #rootKeys: RootKeys;
  readonly #onError: (error: unknown) => void;
  readonly #now: () => number;
  readonly #askForKey: KeyringOptions['askForKey'];
  readonly #findTarget: FindTarget;
  readonly #families: ReadonlySet<string> | undefined;
  readonly #cached = new Map<string, Cached>();
  readonly #negative = new Map<string, Negative>();
  /** Keys that were asked of a worker in vain: whoever wants one made fails at once for a moment. */
  readonly #unanswered = new Map<string, Negative>();
  readonly #fetching = new Map<string, Promise<DataKey | undefined>>();
  readonly #making = new Map<string, Promise<DataKey>>();
  readonly #mirroring = new Map<string, Promise<void>>();
  readonly #sweeper: NodeJS.Timeout;
  #refreshing: Promise<void> | undefined;

  private constructor(options: KeyringOptions, state: KeyState) {
    this.#pool = options.pool;
    this.#rootKeys = options.rootKeys;
    this.#onError = options.onError;
    this.#now = options.now ?? (() => performance.now());
    this.#askForKey = options.askForKey;
    this.#findTarget = options.findTarget ?? (() => undefined);
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
    return this.#find(id, tenant, family, version)?.key ?? this.#look(id, { tenant, family, version });
  }

  /** Whether this process answers for the family. Vault holds it to that: it has no right to the others' root keys. */
  serves(family: string): boolean {
    return this.#families === undefined || this.#families.has(family);
  }

  /**
   * The data key of a name, made when the name has none. Two hundred calls at once make one. With `target` it may seal for
   * columns there: the mirror of that target holds it. Errors: as `get`, and `keys_not_ready` while a key cannot be made or
   * mirrored.
   */
  getOrMake(tenant: string, family: string, version: number, target?: string): DataKey | Promise<DataKey> {
    const id = `${tenant}\n${family}\n${version}`;
    const found = this.#find(id, tenant, family, version);
    if (found !== undefined && (target === undefined || found.mirrored.has(target))) return found.key;
    return this.#ensure(id, { tenant, family, version }, target);
  }

  /**
   * Reads key state again. Keys of versions that are gone or destroyed are dropped, and so is, where the database may have
   * lost commits, every key that it does not have as we know it. Calls at once share one reading.
   */
  refresh(): Promise<void> {
    this.#refreshing ??= this.#reload().finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  /**
   * Whether the database may hold less than this process has seen: it is another server, or its epoch is older. Answers
   * computed from what we know do not commit there; that is then loaded again. Errors: those of the database.
   */
  async isAhead(): Promise<boolean> {
    const ahead = !follows(await readEpoch(this.#pool), this.state.epoch);
    if (ahead) this.refresh().catch(this.#onError);
    return ahead;
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

  /** What is at hand, used now. */
  #find(id: string, tenant: string, family: string, version: number): Cached | undefined {
    const found = this.#cached.get(id);
    const now = this.#now();
    if (found === undefined || now >= found.expiresAt || now - found.usedAt >= idleMs) return undefined;
    found.usedAt = now;
    if (now >= found.refreshAt) {
      found.refreshAt = now + refreshAgainMs; // a failed one is not repeated with every request
      this.#refreshAhead(id, { tenant, family, version });
    }
    return found;
  }

  #look(id: string, name: KeyName): Promise<DataKey | undefined> {
    const negative = this.#negative.get(id);
    if (negative !== undefined && this.#now() < negative.until) {
      return negative.error === undefined ? Promise.resolve(undefined) : Promise.reject(negative.error);
    }
    if (!this.serves(name.family)) return Promise.reject(notServed(name.family));
    return this.#fetch(id, name);
  }

  async #ensure(id: string, name: KeyName, target: string | undefined): Promise<DataKey> {
    const { tenant, family, version } = name;
    const key =
      this.#find(id, tenant, family, version)?.key ??
      (await this.#look(id, name)) ??
      (await share(this.#making, id, () => this.#make(id, name)));
    if (target === undefined || this.#cached.get(id)?.mirrored.has(target) === true) return key;
    await share(this.#mirroring, `${id}\n${target}`, () => this.#mirror(id, name, target));
    return key;
  }

  async #reload(): Promise<void> {
    const before = this.state.epoch;
    // Readings go one after the other: one that is older says that the database has gone back, and is the truth.
    const { state, stored } = await withClient(this.#pool, async (db) => {
      const state = await loadKeyState(db);
      return { state, stored: follows(state.epoch, before) ? undefined : await this.#listStored(db) };
    }).catch((error: unknown) => {
      throw toUnavailable(error);
    });
    this.state = state;
    this.#negative.clear();
    if (stored !== undefined) this.#unanswered.clear();
    for (const [id, { key }] of this.#cached) {
      const [, family = '', version = ''] = id.split('\n');
      const known = state.families.get(family)?.versions.get(Number(version));
      const isThere = stored === undefined || stored.get(id)?.equals(key.fingerprint) === true;
      if (known === undefined || known.state === 'destroyed' || !isThere) this.#cached.delete(id);
    }
  }

  /** The fingerprints of the keys at hand, as the database has them now. */
  async #listStored(db: Queryable): Promise<Map<string, Buffer>> {
    const names = [...this.#cached.keys()].map((id): KeyName => {
      const [tenant = '', family = '', version = ''] = id.split('\n');
      return { tenant, family, version: Number(version) };
    });
    const stored = await listFingerprints(db, names);
    return new Map(stored.map((key) => [`${key.tenant}\n${key.family}\n${key.version}`, key.fingerprint]));
  }

  #fetch(id: string, name: KeyName): Promise<DataKey | undefined> {
    return share(this.#fetching, id, () =>
      this.#unwrapStored(id, name).catch((error: unknown) => this.#evictRefused(id, error)),
    );
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
    // One that was read from another server than the state that it is used under may be lost there.
    if (stored.server !== this.state.epoch.server) await this.refresh();
    if (stored.server !== this.state.epoch.server) {
      const detail = 'The database was replaced while a data key was read from it.';
      throw new FieldkeepError('keys_not_ready', detail, { retryAfterSeconds: 1 });
    }
    this.#keep(id, key, stored.mirrored);
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
    if (this.#askForKey !== undefined) {
      const what = `The first data key of family ${name.family} for this tenant has not been made yet`;
      await this.#askWorker(id, name, undefined, what);
      return await this.#fetchNew(id, name);
    }
    try {
      await mustBeKnown(this.#pool, name.family);
    } catch (error) {
      throw toUnavailable(error);
    }
    const context = encodeWrapContext(name.tenant, name.family, name.version);
    const wrapped = await this.#rootKeys.makeDataKey(name.family, known.transitVersion, context);
    const made = await this.#unwrap(name, wrapped);
    try {
      await insertDataKey(this.#pool, name, { wrapped, fingerprint: made.fingerprint }, known.transitVersion);
    } catch (error) {
      throw toUnavailable(error);
    }
    // Another process may have been first: what is stored is the key, and it is read before anything is sealed.
    return await this.#fetchNew(id, name);
  }

  /** A key that has just been stored; a look that is under way may have begun before. */
  async #fetchNew(id: string, name: KeyName): Promise<DataKey> {
    for (let tries = 0; tries < 2; tries += 1) {
      this.#negative.delete(id);
      const key = await this.#fetch(id, name);
      if (key !== undefined) return key;
    }
    throw new FieldkeepError('keys_not_ready', `A data key of family ${name.family} could not be stored.`, {
      retryAfterSeconds: 1,
    });
  }

  /** Has the mirror of `target` hold the key; afterwards what is at hand knows it. */
  async #mirror(id: string, name: KeyName, target: string): Promise<void> {
    const db = this.#askForKey === undefined ? this.#findTarget(target) : undefined;
    if (db === undefined) {
      const what = `A data key of family ${name.family} is not in the mirror of ${target} yet`;
      await this.#askWorker(`${id}\n${target}`, name, target, what);
    } else {
      await this.#writeMirror(`${id}\n${target}`, name, target, db);
    }
    this.#cached.get(id)?.mirrored.add(target);
  }

  /** Whoever waits is told in time; a write that hangs ends by itself, and what it did is found at the next try. */
  async #writeMirror(id: string, name: KeyName, target: string, db: Pool): Promise<void> {
    this.#mustNotRepeat(id);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const detail = `The mirror of ${target} does not answer, so nothing is sealed there under a data key that it lacks.`;
      const error = new FieldkeepError('keys_not_ready', detail, { retryAfterSeconds: 2 });
      timer = setTimeout(() => reject(error), mirrorMaxMs);
    });
    try {
      await Promise.race([mirrorKey(this.#pool, target, db, name), late]);
    } catch (error) {
      if (error instanceof FieldkeepError && error.code === 'internal') this.#onError(error);
      if (error instanceof Error) this.#unanswered.set(id, { until: this.#now() + absentMs, error });
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  #mustNotRepeat(id: string): void {
    const unanswered = this.#unanswered.get(id);
    if (unanswered?.error !== undefined && this.#now() < unanswered.until) throw unanswered.error;
  }

  /** Waits until a worker, asked now, has stored the key, and in the mirror of `target` if that is what is wanted. */
  async #askWorker(id: string, name: KeyName, target: string | undefined, what: string): Promise<void> {
    this.#mustNotRepeat(id);
    const isThere = async () => {
      const stored = await findDataKey(this.#pool, name.tenant, name.family, name.version);
      return stored !== undefined && (target === undefined || stored.mirrored.includes(target));
    };
    let problem: unknown = new FieldkeepError('keys_not_ready', `${what}: no worker answered.`, {
      retryAfterSeconds: 2,
    });
    try {
      if (await isThere()) return;
      await this.#askForKey?.({ ...name, target }, workerMaxMs).catch((error: unknown) => (problem = error));
      if (await isThere()) return;
    } catch (error) {
      throw toUnavailable(error);
    }
    if (problem instanceof Error) this.#unanswered.set(id, { until: this.#now() + absentMs, error: problem });
    throw problem;
  }

  #keep(id: string, key: DataKey, mirrored: readonly string[]): void {
    if (this.#cached.size >= cachedKeysMax) {
      const oldest = this.#cached.keys().next();
      if (!oldest.done) this.#cached.delete(oldest.value);
    }
    const now = this.#now();
    const lifetime = lifetimeMs * (1 + lifetimeSpread * (2 * Math.random() - 1));
    this.#cached.delete(id); // a refreshed key moves to the young end
    this.#cached.set(id, {
      ...{ key, mirrored: new Set(mirrored), expiresAt: now + lifetime },
      ...{ refreshAt: now + lifetime * refreshFrom, usedAt: now },
    });
  }

  #refreshAhead(id: string, name: KeyName): void {
    if (this.#fetching.has(id)) return;
    this.#fetch(id, name).catch(this.#onError);
  }
}
