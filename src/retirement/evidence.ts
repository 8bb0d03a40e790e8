/**
 * Whether a version may be destroyed, and what says so. Looked at when it is asked for, when the approved call comes, and
 * once more by whoever carries it out, right before the end:
 *
 *     turn       oldest first, followed by an active version, no rotation under way
 *     rules      guards, backups, reads (retire.ts); the customer's databases are asked about their guards
 *     counted    writers waited out, then every registered column: one value of it, or one that cannot be counted, and no;
 *                by version only at the end, for on a large table that takes longer than a call may
 *     searched   columns that nobody registered
 *
 * A waiver takes the place of guards and of the search where they cannot be had; of nothing else.
 */
import { askWithin, type Pool } from '../db.ts';
import { unfoldAcknowledged } from '../audit/store.ts';
import { FieldkeepError } from '../errors.ts';
import type { KeyFamily, KeyVersion } from '../keys/version.ts';
import { loadCatalog, type TableShape } from '../targets/catalog.ts';
import { countsRightly, countVersions, hasStale, waitOutWriters } from '../rotation/census.ts';
import { readFacts } from './facts.ts';
import { readGuards } from './guard.ts';
import { describeMissing, isWaivable, listMissing, type Missing, type RetireFacts } from './retire.ts';
import { findUndeclaredSearch, setUndeclared } from './retire-store.ts';
import { describeDropped } from '../rotation/dropped.ts';
import { mustGoByIt } from '../rotation/in-force.ts';
import type { Workshop } from '../rotation/scan.ts';
import { rowsOf } from '../targets/targets.ts';
import { findUndeclared, isFresh, nameOfColumn, type UndeclaredSearch } from './undeclared.ts';

export interface Question {
  readonly family: string;
  readonly version: number;
  readonly withoutGuards: boolean;
}

/** JSON as it is: it is stored, shown and signed. */
export interface Evidence {
  readonly census: readonly {
    readonly table: string;
    readonly column: string;
    readonly versions: Readonly<Record<string, number>>;
  }[];
  readonly countedAt: string;
  readonly guards: readonly {
    readonly table: string;
    readonly column: string;
    readonly version: number;
    readonly definition: string;
    readonly validatedAt: string;
  }[];
  readonly horizons: {
    readonly handoffMax: string;
    readonly unreadFor: string;
    readonly backupHorizon: string;
    readonly vaultBackupHorizon: string;
  };
  readonly lastUsedAt?: string;
  readonly undeclared: UndeclaredSearch;
  /** Whether the policy lets values be sealed for columns that it does not register. */
  readonly unregistered: 'deny' | 'allow';
  /** What was missing and is waived, in words. */
  readonly waived: readonly string[];
}

/** What those who decide are shown: of the counts those that have to be zero, for the others change with every write. */
export function toDetails({ census, countedAt: _, ...rest }: Evidence, { version }: Question): object {
  return {
    ...rest,
    census: census.map(({ table, column, versions }) => ({ table, column, values: versions[version] ?? 0 })),
  };
}

/** In the way now, and gone by itself: whoever was given leave to destroy tries again. */
export class NotNow extends FieldkeepError {
  constructor(detail: string, rotationId?: string) {
    if (rotationId === undefined) super('conflict', detail);
    else super('rotation_in_progress', detail, { rotationId });
    this.name = 'NotNow';
  }
}

function conflict(detail: string): FieldkeepError {
  return new FieldkeepError('conflict', detail);
}

/** The version, if its turn has come. Errors: `class_unknown`, `version_unknown`, `conflict`. */
export function checkTurn(found: KeyFamily | undefined, family: string, version: number): KeyVersion {
  if (found === undefined) throw new FieldkeepError('class_unknown', `There is no key family ${family}.`);
  const asked = found.versions.get(version);
  if (asked === undefined) throw new FieldkeepError('version_unknown', `Family ${family} has no version ${version}.`);
  if (asked.state === 'active' || asked.state === 'pending') {
    throw conflict(`Version ${version} of family ${family} is ${asked.state}: rotate first.`);
  }
  if (asked.state === 'destroyed') return asked;
  // A compromised version may be the last one: nothing that follows says how far its root key may go.
  if (found.active === undefined) throw conflict(`Family ${family} has no active version: rotate first.`);
  const older = [...found.versions.values()].find((each) => each.version < version && each.state !== 'destroyed');
  if (older === undefined) return asked;
  throw conflict(`Versions are destroyed oldest first: version ${older.version} of family ${family} still stands.`);
}

/** Everything below the oldest root key version that a remaining version is wrapped under can go. */
export function findFloor(family: KeyFamily, version: KeyVersion): number {
  const remaining = [...family.versions.values()].filter((each) => each.version > version.version);
  const floor = Math.min(...remaining.map((each) => each.transitVersion));
  if (floor > version.transitVersion) return floor;
  throw conflict(`A later version of family ${family.family} is wrapped under an older root key version.`);
}

const namedMax = 4;
const lookMaxMs = 1_000;

function refuseMissing({ family, version }: Question, missing: readonly Missing[], withoutGuards: boolean): void {
  if (missing.length === 0) return;
  const named = missing.slice(0, namedMax).map(describeMissing).join('; ');
  const more = missing.length > namedMax ? `; and ${missing.length - namedMax} more` : '';
  const way =
    !withoutGuards && missing.some(isWaivable) ? ' "withoutGuards": true asks for it without guards and search.' : '';
  throw conflict(`Version ${version} of family ${family} cannot be destroyed yet. It lacks ${named}${more}.${way}`);
}

type Tables = ReadonlyMap<string, TableShape>;

/** What of the version, and of malformed envelopes, is looked for before the end, within the time of a call. */
async function countHeld(db: Pool, table: TableShape, column: string, version: number): Promise<Map<number, number>> {
  const held = (value: number) =>
    askWithin(db, lookMaxMs, async (tx) => Number(await hasStale(tx, table, [{ column, value: [value] }])));
  const [found, malformed] = [await held(version), await held(-1)];
  if (found !== undefined && malformed !== undefined)
    return new Map([
      [version, found],
      [-1, malformed],
    ]);
  const way = table.indexed.has(column) ? 'try again' : 'it lacks the version index that `npm run target:setup` makes';
  throw new NotNow(`Column ${column} of ${table.address} takes longer to look through than a call may: ${way}.`);
}

/** Errors: `conflict` for the first column that holds the version, or cannot be counted. */
async function countColumns(
  shop: Workshop,
  { family, version }: Question,
  tables: Tables,
  waitOutMaxMs: number,
  isFinal: boolean,
) {
  const census: { table: string; column: string; versions: Record<string, number> }[] = [];
  for (const { address, column } of shop.policy.columns.filter((each) => each.class === family)) {
    const table = tables.get(address)!;
    const db = rowsOf(shop, table);
    if (!(await waitOutWriters(db, table, waitOutMaxMs))) {
      throw new NotNow(`A transaction that writes to ${address} is open: it may hold a value of version ${version}.`);
    }
    const counts = isFinal ? await countVersions(db, table, column) : await countHeld(db, table, column, version);
    const [held, malformed] = [counts.get(version) ?? 0, counts.get(-1) ?? 0];
    const say = (n: number) => (isFinal ? `${n} ` : '');
    if (held > 0) throw conflict(`Column ${column} of ${address} holds ${say(held)}values of version ${version}.`);
    if (malformed > 0) {
      const what = `${say(malformed)}malformed envelopes`;
      throw conflict(`Column ${column} of ${address} holds ${what}, whose version nobody knows.`);
    }
    census.push({ table: address, column, versions: Object.fromEntries(counts) });
  }
  return census;
}

/** Errors: `conflict` where a column cannot be looked at. What is remembered of guards is then what their databases say. */
async function lookAtColumns(shop: Workshop, family: string): Promise<Tables> {
  const columns = shop.policy.columns.filter((column) => column.class === family);
  const { tables, problems } = await loadCatalog(shop.targets, columns);
  for (const registered of columns) {
    const { address } = registered;
    const table = tables.get(address);
    if (table === undefined) throw new NotNow(problems.get(address) ?? `Table ${address} cannot be counted.`);
    if (!(await countsRightly(rowsOf(shop, table)))) {
      const owner = 'its owner installs ours again (npm run target:setup)';
      throw new NotNow(`fieldkeep.fe_version is another function in the database of ${address}: ${owner}.`);
    }
    await readGuards(shop, { registered, table });
  }
  return tables;
}

/** The worker's last search, unless it is older than a day or looked for less. */
async function findRecent({ pool }: Workshop, family: string, version: number): Promise<UndeclaredSearch | undefined> {
  const stored = await findUndeclaredSearch(pool, family);
  if (stored === undefined || stored.upToVersion < version || !isFresh(stored)) return undefined;
  const { searched, found, unsearched } = stored;
  return { searched, found, unsearched };
}

/**
 * It reads whole databases, so until the end a clean search of the last day will do, and a process that has no readers goes
 * by what a worker has found. At the end it is made anew.
 */
async function search(shop: Workshop, { family, version }: Question, isFinal: boolean): Promise<UndeclaredSearch> {
  const recent = isFinal ? undefined : await findRecent(shop, family, version);
  if (recent?.found.length === 0 && recent.unsearched.length === 0) return recent;
  const made = await findUndeclared(shop, family, version);
  const undeclared = made.searched || recent === undefined ? made : recent;
  if (undeclared === made) await setUndeclared(shop.pool, family, version, made);
  const [first] = undeclared.found;
  if (first === undefined) return undeclared;
  throw conflict(
    `${nameOfColumn(first)} holds envelopes of family ${family} and is not registered: register it, or clear it.`,
  );
}

function describeGuards({ columns, version }: RetireFacts): Evidence['guards'] {
  return columns.flatMap(({ table, column, guard }) =>
    guard === undefined || guard.version <= version
      ? []
      : [
          {
            ...{ table, column, version: guard.version, definition: guard.definition ?? '' },
            validatedAt: guard.validatedAt.toISOString(),
          },
        ],
  );
}

/**
 * What says that the version may be destroyed; `isFinal` right before it is. Errors: `conflict` naming what is missing and when it will be there, or the
 * column in the way; those of `checkTurn`.
 */
export async function examineVersion(
  shop: Workshop,
  asked: Question,
  waitOutMaxMs: number,
  isFinal = false,
): Promise<Evidence> {
  const { family, version, withoutGuards } = asked;
  await mustGoByIt(shop);
  await shop.keyring.refresh();
  const known = shop.keyring.state.families.get(family);
  findFloor(known!, checkTurn(known, family, version));
  const tables = await lookAtColumns(shop, family);
  await unfoldAcknowledged(shop.pool); // when the version was last used is known from the entries that are in order
  const facts = (await readFacts(shop, family)).get(version);
  if (facts === undefined) throw conflict(`The policy has no class ${family}: nobody can say what holds its values.`);
  if (facts.rotation !== undefined) throw new NotNow(`Family ${family} is rotating.`, facts.rotation);
  const missing = listMissing(facts, withoutGuards);
  refuseMissing(
    asked,
    missing.filter((each) => !withoutGuards || !isWaivable(each)),
    withoutGuards,
  );
  const dropped = await describeDropped(shop, family, [version]);
  if (dropped !== undefined) throw conflict(dropped);
  const census = await countColumns(shop, asked, tables, waitOutMaxMs, isFinal);
  const undeclared = await search(shop, asked, isFinal);
  if (undeclared.unsearched.length > 0) {
    const places = undeclared.unsearched.join(', ');
    missing.push({ kind: 'undeclared', what: `a search of what is not registered (${places})` });
    if (!withoutGuards) refuseMissing(asked, missing, false);
  }
  return {
    ...{ census, countedAt: facts.now.toISOString(), guards: describeGuards(facts), horizons: { ...facts.rule } },
    ...(facts.lastUsedAt !== undefined && { lastUsedAt: facts.lastUsedAt.toISOString() }),
    ...{ undeclared, unregistered: shop.policy.unregistered },
    waived: missing.map(({ what }) => what),
  };
}
