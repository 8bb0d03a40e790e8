/** Guards, versions on their way out and mirrors as figures for metrics. Labels are names of the policy: closed lists. */
import { listTargets } from '../keys/mirror.ts';
import { listMirrors } from '../keys/mirror-store.ts';
import { listDestructions, type Destruction } from './destroy-store.ts';
import { readFacts, type FactShop } from './facts.ts';
import { listKnownGuards } from './guard-store.ts';
import { listMissing } from './retire.ts';
import { findUndeclaredSearch } from './retire-store.ts';

const target = ['target'] as const;

export const retirementFigures = {
  guard_version: {
    text: 'Oldest version that the validated guard of a column lets in; 0: no guard stands.',
    labels: ['class', 'table', 'column'],
  },
  retiring_versions: {
    text: 'Versions that were followed: waiting (for clocks and guards), destroyable, destroying, held (it was agreed to, and something is in the way).',
    labels: ['class', 'state'],
  },
  undeclared_columns: {
    text: 'Columns that nobody registered in which the last search found envelopes of retired versions.',
    labels: ['class'],
  },
  mirror_missing_keys: { text: 'Wrapped keys that the mirror of a target does not hold yet.', labels: target },
  mirror_unknown_families: { text: 'Families of which the mirror knows more than our own database.', labels: target },
  mirror_failing: {
    text: '1 while the mirror of a target cannot be brought up to date: status says why.',
    labels: target,
  },
} as const;

export interface RetirementFigure {
  readonly name: keyof typeof retirementFigures;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

const states = ['waiting', 'destroyable', 'destroying', 'held'] as const;

function isOpen({ finishedAt, refusedAt }: Destruction): boolean {
  return finishedAt === undefined && refusedAt === undefined;
}

async function countVersions(shop: FactShop, name: string): Promise<RetirementFigure[]> {
  const counts = { waiting: 0, destroyable: 0, destroying: 0, held: 0 };
  const open = (await listDestructions(shop.pool, name)).filter(isOpen);
  for (const { problem } of open) counts[problem === undefined ? 'destroying' : 'held'] += 1;
  for (const [version, facts] of await readFacts(shop, name)) {
    if (open.some((each) => each.version === version)) continue;
    counts[listMissing(facts).length === 0 ? 'destroyable' : 'waiting'] += 1;
  }
  return states.map((state) => ({ name: 'retiring_versions', labels: { class: name, state }, value: counts[state] }));
}

async function describeClass(shop: FactShop, name: string): Promise<RetirementFigure[]> {
  const guards = (await listKnownGuards(shop.pool, name)).filter(({ validatedAt }) => validatedAt !== undefined);
  const registered = shop.policy.columns.filter((each) => each.class === name);
  const found = (await findUndeclaredSearch(shop.pool, name))?.found.length;
  return [
    ...registered.map(({ address: table, column }): RetirementFigure => {
      const standing = guards.filter((each) => each.table === table && each.column === column);
      const value = Math.max(0, ...standing.map(({ version }) => version));
      return { name: 'guard_version', labels: { class: name, table, column }, value };
    }),
    ...(await countVersions(shop, name)),
    ...(found === undefined ? [] : [{ name: 'undeclared_columns', labels: { class: name }, value: found } as const]),
  ];
}

/** As the workers last found it; no database but our own is asked. Errors: those of the database. */
export async function readRetirementFigures(shop: FactShop): Promise<RetirementFigure[]> {
  const figures: RetirementFigure[] = [];
  for (const name of shop.policy.classes.keys()) figures.push(...(await describeClass(shop, name)));
  for (const mirror of await listMirrors(shop.pool, [...listTargets(shop.policy).keys()])) {
    const labels = { target: mirror.target };
    figures.push(
      { name: 'mirror_missing_keys', labels, value: mirror.behind },
      { name: 'mirror_unknown_families', labels, value: mirror.unknown.length },
      { name: 'mirror_failing', labels, value: mirror.problem === null ? 0 : 1 },
    );
  }
  return figures;
}
