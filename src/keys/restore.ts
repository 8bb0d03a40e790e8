/**
 * Brings a lost or older database back from the mirrors in the customer's databases: what all of them and our own know of
 * each version is put together, made one consistent state, and imported like a backup.
 *
 *     newest known version        active, unless it is compromised; also one that only a mirror knows, as pending: it may
 *                                 have been activated, and rows may be sealed under it, before the mirror was told
 *     versions before it          decrypt-only, where a mirror still took one of them for active
 *     two keys for one name,
 *     two versions of one number  nothing is imported
 */
import type { Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { addDuration } from '../policy/schedule.ts';
import type { Policy } from '../policy/policy.ts';
import {
  beginAgain,
  exportKeys,
  importKeys,
  parseBackup,
  parseMirrorLine,
  rank,
  type Imported,
  type KeyBackup,
  type KeyLine,
  type Tell,
  type VersionLine,
} from './backup.ts';
import { describeTrouble, readMirror } from './mirror.ts';
import { clearUnknown } from './mirror-store.ts';

interface Known {
  line: VersionLine;
  /** Who said it first. */
  readonly from: string;
  readonly isHere: boolean;
}

/** What is put together: versions by family and number, keys by name. */
interface Sum {
  readonly versions: Map<string, Map<number, Known>>;
  readonly keys: Map<string, { readonly line: KeyLine; readonly from: string }>;
}

const here = 'our own database';

function disagree(what: string, one: string, other: string): FieldkeepError {
  const advice = other === here ? ` ${beginAgain}` : '';
  return new FieldkeepError(
    'conflict',
    `${what} is another one in ${one} than in ${other}: nothing was imported.${advice}`,
  );
}

function addVersion({ versions }: Sum, line: VersionLine, from: string, isHere: boolean): void {
  const family = versions.get(line.family) ?? new Map<number, Known>();
  versions.set(line.family, family);
  const known = family.get(line.version);
  if (known === undefined) {
    family.set(line.version, { line, from, isHere });
    return;
  }
  if (known.line.transitVersion !== line.transitVersion || known.line.bind !== line.bind) {
    throw disagree(`Version ${line.version} of family ${line.family}`, from, known.from);
  }
  if (rank(line.state) > rank(known.line.state)) {
    known.line = { ...line, activatedAt: line.activatedAt ?? known.line.activatedAt };
  }
}

function addKey({ keys }: Sum, line: KeyLine, from: string): void {
  const id = `${line.tenant}\n${line.family}\n${line.version}`;
  const known = keys.get(id);
  if (known === undefined) keys.set(id, { line, from });
  else if (known.line.fingerprint !== line.fingerprint || known.line.wrapped !== line.wrapped) {
    throw disagree(`A tenant's key for version ${line.version} of family ${line.family}`, from, known.from);
  }
}

async function addMirror(sum: Sum, target: string, db: Pool): Promise<void> {
  const from = `the mirror of ${target}`;
  try {
    await readMirror(db, (lines) => {
      for (const line of lines) {
        const parsed = parseMirrorLine(line);
        if (parsed === undefined) {
          throw new FieldkeepError('conflict', `A row of ${from} is no wrapped key: nothing was imported.`);
        }
        addVersion(sum, parsed.version, from, false);
        addKey(sum, parsed.key, from);
      }
    });
  } catch (error) {
    if (error instanceof FieldkeepError) throw error;
    throw new FieldkeepError('database_unavailable', `${describeTrouble(target, error)} Nothing was imported.`);
  }
}

/** One family's versions in states that go together: what was followed is past, and the newest is active. */
function settle(versions: ReadonlyMap<number, Known>, now: string): VersionLine[] {
  const mayBeActive = ({ line, isHere }: Known) => line.state === 'active' || (line.state === 'pending' && !isHere);
  const all = [...versions.values()].sort((a, b) => a.line.version - b.line.version);
  // A pending version that we know waits for its rotation to go on: it follows nothing yet.
  const newest = all.findLast(({ line, isHere }) => line.state !== 'pending' || !isHere);
  return all.map((known): VersionLine => {
    const { line } = known;
    if (!mayBeActive(known)) return line;
    const state = known === newest ? 'active' : 'decrypt-only';
    return { ...line, state, activatedAt: line.activatedAt ?? now };
  });
}

/** The next rotation, counted from the version that is active: the schedule itself stood in the database that is gone. */
function scheduleOf(policy: Policy, family: string, versions: readonly VersionLine[]): string | null {
  const rotateEvery = policy.classes.get(family)?.rotateEvery;
  if (rotateEvery === undefined) return null;
  const active = versions.find(({ state }) => state === 'active');
  const since = new Date(active?.activatedAt ?? active?.createdAt ?? Date.now());
  return addDuration(since, rotateEvery).toISOString();
}

export interface Restored extends Imported {
  /** Families whose newest version is compromised: nothing is sealed before they are rotated. */
  readonly closed: readonly string[];
}

/**
 * Imports every mirror, all or nothing; again: adds nothing. The service must not be running. Errors: `conflict` when
 * mirrors and database disagree, `database_unavailable` naming a target that cannot be asked.
 */
export async function restoreFromMirrors(
  own: Pool,
  mirrors: ReadonlyMap<string, Pool>,
  policy: Policy,
  tell?: Tell,
): Promise<Restored> {
  const sum: Sum = { versions: new Map(), keys: new Map() };
  for (const line of parseBackup(await exportKeys(own)).versions) addVersion(sum, line, here, true);
  for (const [target, db] of mirrors) await addMirror(sum, target, db);
  const now = new Date().toISOString();
  const families = [...sum.versions].map(([family, versions]) => ({ family, versions: settle(versions, now) }));
  const backup: KeyBackup = {
    families: families.map(({ family, versions }) => ({
      family,
      nextRotationAt: scheduleOf(policy, family, versions),
    })),
    versions: families.flatMap(({ versions }) => versions),
    dataKeys: [...sum.keys.values()].map(({ line }) => line),
  };
  const imported = await importKeys(own, backup, 'mirrors', tell);
  await clearUnknown(own);
  const closed = families.filter(
    ({ versions }) => versions.length > 0 && !versions.some((each) => each.state === 'active'),
  );
  return { ...imported, closed: closed.map(({ family }) => family) };
}
