/**
 * Brings the mirrors up to date behind what requests do: keys that were made before there was a mirror, states that went
 * forward, keys of destroyed versions. It works beside whoever wakes it, one look at a time and all targets at once, so that
 * a target that does not answer holds nobody up.
 *
 *     every 10 s, when woken     keys that are not noted as mirrored; states, when the epoch has moved
 *     every 10 min, at start     every key on both sides: what was lost there is put back, what is unknown here is told
 */
import { toUnavailable, type Pool } from '../db.ts';
import { describeError, FieldkeepError } from '../errors.ts';
import type { Policy } from '../policy/policy.ts';
import { follows, isSameEpoch, type Epoch } from './epoch.ts';
import type { Keyring } from './keyring.ts';
import { askTarget, catchUp, describeTrouble, listTargets, readMirror } from './mirror.ts';
import { countUnmirrored, deleteVersions, listUnknownFamilies, updateStates, upsertMirror } from './mirror-store.ts';
import type { KeyState, KeyVersion } from './version.ts';

const lookEveryMs = 10_000;
const compareEveryMs = 600_000;

export interface MirrorShop {
  readonly pool: Pool;
  readonly targets: { find(name: string): Pool | undefined };
  readonly keyring: Keyring;
  readonly policy: Pick<Policy, 'columns'>;
}

interface Place {
  readonly own: Pool;
  readonly target: string;
  readonly db: Pool;
  readonly families: readonly string[];
  readonly state: KeyState;
}

interface Seen {
  comparedAt: number;
  /** The epoch whose states the mirror has. */
  epoch?: Epoch;
  unknown: readonly string[];
  told?: string | undefined;
}

/** What the mirror knows of its families and we do not. It is read before our own tables, where every key stands first. */
async function compare(own: Pool, db: Pool): Promise<string[]> {
  const unknown = new Set<string>();
  await readMirror(db, async (lines) => {
    for (const family of await listUnknownFamilies(own, lines)) unknown.add(family);
  });
  return [...unknown].sort();
}

function versionsOf(state: KeyState, families: readonly string[]): KeyVersion[] {
  return families.flatMap((family) => [...(state.families.get(family)?.versions.values() ?? [])]);
}

/** Also what is destroyed: a worker may have copied a key at the moment when it was. */
async function carryStates(db: Pool, versions: readonly KeyVersion[]): Promise<void> {
  await askTarget(db, async (client) => {
    const destroyed = versions.filter(({ state }) => state === 'destroyed');
    if (destroyed.length > 0) await deleteVersions(client, destroyed);
    await updateStates(
      client,
      versions.filter(({ state }) => state !== 'destroyed'),
    );
  });
}

export class MirrorKeeper {
  readonly #onError: (error: unknown) => void;
  readonly #seen = new Map<string, Seen>();
  #under: Promise<void> | undefined;
  #lookedAt = -Infinity;

  /** `onError` is told once of every trouble, not with every try. */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** Begins to look, unless that was just done or is under way. */
  wake(shop: MirrorShop): void {
    if (this.#under !== undefined || performance.now() - this.#lookedAt < lookEveryMs) return;
    void this.look(shop);
  }

  /** Looks now. Does not throw: what is in the way of a mirror is written down, and tried again. */
  look(shop: MirrorShop): Promise<void> {
    this.#under ??= this.#lookAtAll(shop).finally(() => {
      this.#under = undefined;
      this.#lookedAt = performance.now();
    });
    return this.#under;
  }

  async stop(): Promise<void> {
    await this.#under;
  }

  async #lookAtAll({ pool, targets, keyring, policy }: MirrorShop): Promise<void> {
    const found = [...listTargets(policy)].flatMap(([target, families]) => {
      const db = targets.find(target);
      return db === undefined ? [] : [{ target, families, db }]; // a worker that is connected looks
    });
    await Promise.all(found.map((each) => this.#lookAt({ ...each, own: pool, state: keyring.state })));
  }

  async #lookAt(at: Place): Promise<void> {
    const { own, target, families } = at;
    const seen = this.#seen.get(target) ?? { comparedAt: -Infinity, unknown: [] };
    this.#seen.set(target, seen);
    let problem: string | null = null;
    try {
      problem = await this.#bringUp(at, seen);
    } catch (error) {
      problem = describeTrouble(target, error);
      seen.comparedAt = -Infinity; // it may come back as another one: restored, emptied
    }
    try {
      const behind = await countUnmirrored(own, target, { families });
      const known = problem === null || seen.comparedAt > -Infinity ? { unknown: seen.unknown } : {};
      await upsertMirror(own, { target, behind, problem, ...known });
    } catch (error) {
      this.#tell(seen, JSON.stringify(describeError(error)), toUnavailable(error));
      return;
    }
    this.#tell(seen, problem ?? undefined, new FieldkeepError('internal', problem ?? ''));
  }

  /** Answers what a person has to look at, in a sentence. */
  async #bringUp({ own, target, db, families, state }: Place, seen: Seen): Promise<string | null> {
    const now = performance.now();
    const wentBack = seen.epoch !== undefined && !follows(state.epoch, seen.epoch); // the mirror may know more now
    const all = now - seen.comparedAt >= compareEveryMs || seen.unknown.length > 0 || wentBack;
    if (all) {
      seen.unknown = await compare(own, db);
      seen.comparedAt = now;
    }
    if (all || seen.epoch === undefined || !isSameEpoch(seen.epoch, state.epoch)) {
      await carryStates(db, versionsOf(state, families));
      seen.epoch = state.epoch;
    }
    const other = await catchUp(own, target, db, { families, all });
    if (other === undefined) return null;
    return `The mirror of ${target} holds another key of family ${other.family}, version ${other.version} for a tenant than our own database: nothing is sealed under it there.`;
  }

  #tell(seen: Seen, what: string | undefined, error: unknown): void {
    if (what !== undefined && what !== seen.told) this.#onError(error);
    seen.told = what;
  }
}
