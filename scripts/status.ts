/** npm run status [-- --json]: the state of every key family, what is rotating, and what comes next. */
import { describeAdoption, type Adoption } from './adopt/life.ts';
import { describeOutcome, describeRun, type RunProgress } from './progress.ts';
import { flag, formatCount, mustBeOk, operator, readWords, run, withApi } from './support.ts';

interface Version {
  readonly version: number;
  readonly state: string;
  readonly lastUsedAt?: string;
  readonly retirement?: {
    readonly missing: readonly { what: string; until?: string }[];
    readonly destroyable: boolean;
    readonly approvals?: number;
  };
  readonly destruction?: { readonly status: string; readonly problem?: string; readonly refused?: string };
}

/** Columns that are filled from another one, or were, and what is left to do. */
function describeAdoptions(adoptions: readonly Adoption[]): string[] {
  const told = adoptions.filter(({ from, state }) => from !== undefined || state === 'undoing' || state === 'undone');
  return told.length === 0 ? [] : ['', ...told.map((each) => describeAdoption(each).trimEnd())];
}

interface Census {
  readonly table: string;
  readonly column: string;
  /** Absent until they could be counted. */
  readonly versions?: Readonly<Record<string, number>>;
  readonly countedAt?: string;
}

interface Family {
  readonly family: string;
  readonly active?: number;
  readonly versions: readonly Version[];
  readonly census: readonly Census[];
  readonly nextRotationAt?: string;
  readonly warnings?: readonly string[];
}

const oldMs = 60_000;

function nameVersion(version: string): string {
  if (version === '0') return 'plaintext';
  return version === '-1' ? 'malformed' : `v${version}`;
}

const minute = (time: string) => `${time.slice(0, 16).replace('T', ' ')} UTC`;

/** What a version that was followed still lacks, or what became of it. */
function describeVersion(family: string, { version, retirement, destruction }: Version): string[] {
  const lines: string[] = [];
  const { status, problem, refused } = destruction ?? {};
  const isOpen = status === 'destroying' || status === 'calling-off';
  const what = status === 'destroying' ? 'is being destroyed' : 'was to be destroyed, which is being called off';
  if (isOpen) lines.push(`v${version} ${what}${problem === undefined ? '' : `: ${problem}`}`);
  if (status === 'destroyed' && problem !== undefined) lines.push(`v${version} is destroyed; ${problem}`);
  if (refused !== undefined) lines.push(`v${version} was not destroyed: ${refused}`);
  if (retirement === undefined || isOpen) return lines;
  const { missing, destroyable, approvals } = retirement;
  const needs = approvals === undefined ? 'the policy names nobody who may agree' : `${approvals} people have to agree`;
  if (destroyable) {
    const command = `npm run keys -- destroy ${family} ${version} --reason "…"`;
    return [...lines, `v${version} may be destroyed (${needs}): ${command}`];
  }
  const lacks = missing.map(({ what, until }) => (until === undefined ? what : `${what} by ${minute(until)}`));
  return [...lines, `v${version} cannot be destroyed yet. It lacks ${lacks.join('; ')}. Then ${needs}`];
}

/** Counts of a large table are those of a while ago. */
function describeCensus({ versions, countedAt }: Census): string {
  if (versions === undefined) return 'large, being counted: ask again in a moment';
  const text = Object.entries(versions).map(([version, n]) => `${nameVersion(version)}: ${formatCount(n)}`);
  const old = Date.now() - Date.parse(countedAt!) > oldMs ? `  (counted ${minute(countedAt!)})` : '';
  return `${text.length === 0 ? 'empty' : text.join('  ')}${old}`;
}

function describeFamily(family: Family): string[] {
  const versions = family.versions.map(({ version, state }) => `v${version} ${state}`).join(', ');
  const values = family.census.flatMap(({ versions: counts = {} }) => Object.entries(counts));
  const due = values.reduce((n, [version, count]) => (Number(version) >= 0 ? n + count : n), 0);
  const about = family.census.some(({ versions: counts }) => counts === undefined) ? 'more than ' : '';
  const newest = Math.max(0, ...family.versions.map(({ version }) => version));
  const next =
    family.nextRotationAt === undefined
      ? 'no schedule'
      : `next rotation ${family.nextRotationAt.slice(0, 10)}: would make v${newest + 1} and re-encrypt ${about}${formatCount(due)} values`;
  const lines = [`${family.family.padEnd(10)} ${versions} · ${next}`];
  for (const census of family.census) {
    lines.push(`${' '.repeat(11)}${census.table}.${census.column}  ${describeCensus(census)}`);
  }
  const told = family.versions.flatMap((each) => describeVersion(family.family, each));
  lines.push(...told.map((line) => `${' '.repeat(11)}${line}`));
  for (const warning of family.warnings ?? []) lines.push(`${' '.repeat(11)}Mind: ${warning}`);
  return lines;
}

/** A rotation by what it makes, any other run by what it is about. */
function nameRun({ kind, family, version, columns }: RunProgress): string {
  if (kind === 'rotation') return `${family} to v${version}`;
  const [first] = columns;
  return kind === 'adoption' || first === undefined ? String(kind) : `${kind} of ${first.table}.${first.column}`;
}

function describeRuns(runs: readonly RunProgress[]): string[] {
  const unfinished = runs.filter(({ phase }) => phase !== 'done' && phase !== 'cancelled');
  if (unfinished.length === 0) {
    const last = runs[0];
    return [
      last === undefined
        ? 'Nothing was rotated yet.'
        : `Nothing is rotating. The last ${last.kind} ended ${last.doneAt}. ${describeOutcome(last) ?? ''}`.trim(),
    ];
  }
  return unfinished.flatMap((each) => {
    const name = nameRun(each);
    return [`${name}: ${describeRun(each)}`, ...(each.blocked === undefined ? [] : [`  Blocked: ${each.blocked}`])];
  });
}

await run(async () => {
  const { values } = readWords('Usage: npm run status [-- --json]', { options: { json: flag } });
  await withApi(async (api, { url }) => {
    const { items, warnings = [] } = mustBeOk(await api.call(operator, 'GET', '/v1/keys'));
    const [keys, skew] = [items as Family[], warnings as string[]];
    const rotations = mustBeOk(await api.call(operator, 'GET', '/v1/rotations?limit=20')).items as RunProgress[];
    const adoptions = mustBeOk(await api.call(operator, 'GET', '/v1/adoptions')).items as Adoption[];
    const told = skew.length === 0 ? [] : ['', ...skew.map((warning) => `Mind: ${warning}`)];
    const lines = [url, ...told, '', ...keys.flatMap(describeFamily), '', ...describeRuns(rotations)];
    lines.push(...describeAdoptions(adoptions));
    process.stdout.write(
      `${values.json ? JSON.stringify({ url, keys, rotations, adoptions, warnings: skew }) : lines.join('\n')}\n`,
    );
  });
});
