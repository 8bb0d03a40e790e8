/**
 * Mirrors: the copy of wrapped data keys in every target whose rows need them (the table fieldkeep.wrapped_keys there).
 *
 *     own database     decides which key a name has, once
 *     mirror           holds that key, committed, before the first value is sealed under it for a column there
 *     data_keys        names the targets whose mirror holds a key: whoever reads that may seal
 *
 * A crash between two of these leaves a key that is mirrored and not noted: it is noted at the next try. Another key under
 * the same name stops sealing for that target. Tables in Fieldkeep's own database have no mirror: they are lost with it.
 */
import { findRefusal, isUnavailable, sqlState, toUnavailable, withClientFor, type Client, type Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Policy } from '../policy/policy.ts';
import {
  countUnmirrored,
  deleteVersions,
  findLine,
  findUnknown,
  insertLines,
  listDifferent,
  listLines,
  listMirror,
  listMirrors,
  setMirrored,
  type KeyFilter,
  type MirrorLine,
  type MirrorStatus,
} from './mirror-store.ts';
import type { KeyName } from './store.ts';

/** The database of a target; undefined when this process is not connected to it. */
export type FindTarget = (name: string) => Pool | undefined;

/** A server that takes a statement and does not answer must not keep a worker for ever. */
const answerMaxMs = 5_000;
const linesAtOnce = 500;
const importCommand = 'npm run keys -- import --mirrors';

/** The targets that the policy names, each with the families that have columns there. */
export function listTargets({ columns }: Pick<Policy, 'columns'>): Map<string, string[]> {
  const targets = new Map<string, string[]>();
  for (const { database, class: family } of columns) {
    if (database === undefined) continue;
    const families = targets.get(database) ?? [];
    if (!families.includes(family)) families.push(family);
    targets.set(database, families);
  }
  return targets;
}

/** Runs `work` on a connection to a target, which is given up when it takes too long. */
export async function askTarget<T>(db: Pool, work: (client: Client) => Promise<T>, maxMs = answerMaxMs): Promise<T> {
  return await withClientFor(db, maxMs, work);
}

/** Undefined table, undefined schema. */
const lacksTable: ReadonlySet<string | undefined> = new Set(['42P01', '3F000']);

/** What keeps us from a mirror, in a sentence. */
export function describeTrouble(target: string, error: unknown): string {
  const refused = findRefusal(error);
  if (refused !== undefined) return `Target ${target} answers in ${refused.phrase}`;
  if (error instanceof FieldkeepError) return error.message;
  if (isUnavailable(error)) return `Target ${target} cannot be reached.`;
  const state = sqlState(error);
  if (lacksTable.has(state)) {
    return `Target ${target} has no mirror for wrapped keys: its owner runs npm run target:setup -- ${target}.`;
  }
  if (state === '42501') {
    return `The role of the worker may not use the mirror of ${target}: its owner runs npm run target:setup -- ${target}.`;
  }
  return `The mirror of ${target} cannot be used${state === undefined ? '' : ` (SQLSTATE ${state})`}.`;
}

function notMirrored(target: string, { family }: KeyName, error: unknown): FieldkeepError {
  const detail = `A data key of family ${family} has not been stored in the mirror of ${target}, so nothing is sealed under it there. ${describeTrouble(target, error)}`;
  return new FieldkeepError('keys_not_ready', detail, { retryAfterSeconds: 2 });
}

function otherKey(target: string, { family, version }: KeyName): FieldkeepError {
  return new FieldkeepError(
    'internal',
    `The mirror of ${target} holds another key of family ${family}, version ${version} for a tenant than our own database. Nothing is sealed under either there until a person has found out which one its rows need.`,
  );
}

/** Copies keys and notes those that the mirror then holds. Answers the names under which it holds others. */
async function copy(own: Pool, target: string, db: Pool, lines: readonly MirrorLine[]): Promise<KeyName[]> {
  const different = await askTarget(db, async (client) => {
    await insertLines(client, lines);
    return await listDifferent(client, lines);
  });
  const idOf = ({ tenant, family, version }: KeyName) => `${tenant}\n${family}\n${version}`;
  const others = new Set(different.map(idOf));
  await setMirrored(
    own,
    target,
    lines.filter((line) => !others.has(idOf(line))),
    true,
  );
  await setMirrored(own, target, different, false);
  return different;
}

/**
 * Has the mirror of `target` hold the key of a name. Errors: `keys_not_ready` when it cannot be written, `internal` when it
 * holds another key, `database_unavailable` (our own).
 */
export async function mirrorKey(own: Pool, target: string, db: Pool, name: KeyName): Promise<void> {
  let line: MirrorLine | undefined;
  try {
    line = await findLine(own, name);
  } catch (error) {
    throw toUnavailable(error);
  }
  if (line === undefined || line.state === 'destroyed') throw notMirrored(target, name, undefined);
  let others: KeyName[];
  try {
    others = await copy(own, target, db, [line]);
  } catch (error) {
    throw notMirrored(target, name, error);
  }
  if (others.length > 0) throw otherKey(target, name);
}

/**
 * Copies keys that the mirror is not known to hold; with `all` it is asked for every key again, and those that were lost
 * there are put back. Answers a name under which it holds another key, if there is one. Errors: those of both databases.
 */
export async function catchUp(
  own: Pool,
  target: string,
  db: Pool,
  filter: KeyFilter & { readonly all?: boolean },
): Promise<KeyName | undefined> {
  let other: KeyName | undefined;
  let after: KeyName | undefined;
  for (;;) {
    const lines = await listLines(own, target, filter, after, linesAtOnce);
    after = lines.at(-1);
    if (after === undefined) return other;
    const kept = lines.filter((line) => line.state !== 'destroyed');
    const [different] = await copy(own, target, db, kept);
    other ??= different;
  }
}

/**
 * Has the mirrors hold all keys of a version, before it is activated. Errors: `keys_not_ready` when one does not;
 * `internal` when it holds another key; `database_unavailable`.
 */
export async function mirrorVersion(
  own: Pool,
  find: FindTarget,
  policy: Pick<Policy, 'columns'>,
  { family, version }: { readonly family: string; readonly version: number },
): Promise<void> {
  for (const [target, families] of listTargets(policy)) {
    if (!families.includes(family)) continue;
    const filter = { families: [family], version };
    if ((await countUnmirrored(own, target, filter)) === 0) continue; // another worker did it, or there are none
    const db = find(target);
    const name = { tenant: '', family, version };
    const away = new FieldkeepError('conflict', `Target ${target} is not connected to this process.`);
    if (db === undefined) throw notMirrored(target, name, away);
    let other: KeyName | undefined;
    try {
      other = await catchUp(own, target, db, filter);
    } catch (error) {
      throw notMirrored(target, name, error);
    }
    if (other !== undefined) throw otherKey(target, other);
  }
}

export interface Removed {
  /** Targets whose mirror holds no key of the version any more. */
  readonly removed: readonly string[];
  /** Targets that could not be asked, with the reason in a sentence; their workers delete the keys later. */
  readonly left: ReadonlyMap<string, string>;
}

/**
 * Deletes the keys of a version from the mirrors of `targets`, once it is destroyed. Does not throw: what could not be
 * reached is answered, and the workers go on trying, because the version is recorded as destroyed.
 */
export async function removeMirrored(
  find: FindTarget,
  targets: Iterable<string>,
  version: { readonly family: string; readonly version: number },
): Promise<Removed> {
  const removed: string[] = [];
  const left = new Map<string, string>();
  for (const target of targets) {
    const db = find(target);
    if (db === undefined) {
      left.set(target, `Target ${target} is not connected to this process.`);
      continue;
    }
    try {
      await askTarget(db, (client) => deleteVersions(client, [version]));
      removed.push(target);
    } catch (error) {
      if (lacksTable.has(sqlState(error))) removed.push(target);
      else left.set(target, describeTrouble(target, error));
    }
  }
  return { removed, left };
}

/** Everything in a mirror, a page at a time; nothing where there is no mirror. Errors: those of the target. */
export async function readMirror(db: Pool, use: (lines: readonly MirrorLine[]) => Promise<void> | void): Promise<void> {
  let after: KeyName | undefined;
  for (;;) {
    const from = after;
    const lines = await askTarget(db, (client) => listMirror(client, from, linesAtOnce)).catch((error: unknown) => {
      if (lacksTable.has(sqlState(error))) return [];
      throw error;
    });
    after = lines.at(-1);
    if (after === undefined) return;
    await use(lines);
  }
}

function olderThanMirror(target: string, what: string): string {
  return `The mirror of ${target} knows keys of ${what} that this database does not: it is an older one, or a new one. Run ${importCommand} first; until then no keys are made.`;
}

/** Refuses to make keys of a family of which a mirror knows more than we do: they would be others under the same names. */
export async function mustBeKnown(own: Pool, family: string): Promise<void> {
  const target = await findUnknown(own, family);
  if (target === undefined) return;
  throw new FieldkeepError('keys_not_ready', olderThanMirror(target, `family ${family}`), { retryAfterSeconds: 60 });
}

/**
 * A database without any family may be one that was lost: no family is made in it before every target has said that it
 * holds no keys. Errors: `keys_not_ready` naming the target, and what to do.
 */
export async function mustBeNew(find: FindTarget, policy: Pick<Policy, 'columns'>): Promise<void> {
  for (const target of listTargets(policy).keys()) {
    const db = find(target);
    let lines: readonly MirrorLine[];
    try {
      if (db === undefined) throw new FieldkeepError('conflict', `Target ${target} is not connected to this process.`);
      lines = await askTarget(db, (client) => listMirror(client, undefined, 1));
    } catch (error) {
      if (lacksTable.has(sqlState(error))) continue;
      const detail = `${describeTrouble(target, error)} Our own database is empty: before keys are made, ${target} must say that its mirror holds none.`;
      throw new FieldkeepError('keys_not_ready', detail, { retryAfterSeconds: 2 });
    }
    if (lines.length === 0) continue;
    throw new FieldkeepError('keys_not_ready', olderThanMirror(target, 'key families'), { retryAfterSeconds: 60 });
  }
}

/** What is wrong with a mirror, in sentences. */
function describeStatus({ target, behind, unknown, problem }: MirrorStatus): string[] {
  const told = behind === 0 ? [] : [`The mirror of ${target} is behind by ${behind} keys.`];
  if (problem !== null) told.push(problem);
  if (unknown.length > 0) told.push(olderThanMirror(target, unknown.join(', ')));
  return told;
}

/** What is wrong with the mirrors that hold keys of these columns' families, as the workers last found them. */
export async function listMirrorWarnings(own: Pool, columns: Policy['columns']): Promise<string[]> {
  const targets = [...listTargets({ columns }).keys()];
  if (targets.length === 0) return [];
  return (await listMirrors(own, targets)).flatMap(describeStatus);
}
