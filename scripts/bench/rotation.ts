/**
 * Re-encryption beside its limit and its peers, in turn: the same UPDATEs without crypto on the same table, and what else
 * brings rows under a new key. The engine also opens, seals, makes index tokens and writes audit entries and checkpoints.
 */
import type { Pool } from '../../src/db.ts';
import { openDatabase } from './database.ts';
import {
  activeVersion,
  adoptAll,
  describePeople,
  openEngine,
  rotate,
  type Service,
  type TableShape,
} from './engine.ts';
import { rate, type Pace, type Peer } from './pace.ts';
import { openPgcryptoPeer } from './peers/pgcrypto.ts';
import { openRowByRowPeer } from './peers/row-by-row.ts';
import { openTransitPeer } from './peers/transit.ts';
import { fill } from './people.ts';
import { rawPass } from './raw.ts';
import { median, type BenchOptions, type Section } from './table.ts';
import { openBenchVault, type BenchVault } from './vault-server.ts';

/** What the limit may choose from; a rotation has to bear the better of both. */
const rawBatchRows = [1_000, 2_000] as const;
/** The slower peers; fewer rows tell their rate. */
const peerRowsMax = 5_000;

interface Family {
  readonly family: string;
  readonly columns: readonly string[];
  readonly title: string;
}

const families: readonly Family[] = [
  { family: 'ssn', columns: ['ssn', 'ssn_eq'], title: 'rotation of ssn with its blind index' },
  { family: 'salary', columns: ['salary'], title: 'rotation of salary' },
];

/** Paces of all rounds, by name. */
class Paces {
  readonly #all = new Map<string, Pace[]>();

  add(name: string, pace: Pace): void {
    this.#all.set(name, [...(this.#all.get(name) ?? []), pace]);
  }

  rateOf(name: string): number {
    return median(this.#all.get(name)!.map(rate));
  }

  row(name: string, base: string): Section['rows'][number] {
    const bases = this.#all.get(base)!;
    const ratios = this.#all.get(name)!.map((pace, i) => rate(pace) / rate(bases[i]!));
    const perSecond = this.rateOf(name);
    return { name, figures: { 'rows/s': perSecond, 'µs a row': 1e6 / perSecond, 'of raw': median(ratios) } };
  }
}

interface Bench {
  readonly service: Service;
  readonly owner: Pool;
  readonly table: TableShape;
  readonly peers: readonly Peer[];
  readonly paces: Paces;
}

const rawName = (family: string, batch: number) => `raw UPDATE of ${family}, ${batch} a batch`;

/** There with one size of batches and back with the other; which of them goes first changes from round to round. */
async function goRaw(bench: Bench, { family, columns }: Family, round: number, options: BenchOptions): Promise<void> {
  const { service, owner, table, paces } = bench;
  const version = activeVersion(service, family);
  const shared = { table, columns, ids: options.rows, lanes: options.concurrency };
  const [first, second] = round % 2 === 0 ? rawBatchRows : rawBatchRows.toReversed();
  for (const [rowsMax, from, to] of [
    [first, version, version + 1],
    [second, version + 1, version],
  ] as const) {
    await owner.query('vacuum analyze demo.employees');
    paces.add(rawName(family, rowsMax), await rawPass(owner, { ...shared, rowsMax, from, to }));
  }
}

async function goRound(bench: Bench, round: number, options: BenchOptions): Promise<void> {
  const { service, owner, peers, paces } = bench;
  for (const each of families) {
    await owner.query('vacuum analyze demo.employees');
    paces.add(each.title, await rotate(service, each.family, options.concurrency));
    await goRaw(bench, each, round, options);
  }
  for (const peer of peers) paces.add(peer.name, await peer.rotate());
}

function report({ paces, peers }: Bench, { rows, concurrency }: BenchOptions, note: string): Section[] {
  return families.map(({ family, title }, i) => {
    const names = rawBatchRows.map((batch) => rawName(family, batch));
    const base = names.reduce((best, name) => (paces.rateOf(name) > paces.rateOf(best) ? name : best));
    const others = i === families.length - 1 ? peers.map((peer) => peer.name) : [];
    return {
      title: `re-encryption, ${rows.toLocaleString('en-US')} rows, ${concurrency} at a time`,
      rows: [base, title, ...others].map((name) => paces.row(name, base)),
      ...(others.length > 0 && { note }),
    };
  });
}

export async function benchRotation(options: BenchOptions): Promise<Section[]> {
  const { rows, rounds, concurrency } = options;
  const database = await openDatabase();
  let vault: BenchVault | undefined;
  try {
    vault = await openBenchVault();
    const { asWorker: owner } = database;
    const service = await openEngine(database, concurrency);
    try {
      await fill(owner, rows);
      await adoptAll(service, concurrency);
      const table = await describePeople(owner);
      const few = { rows: Math.min(rows, peerRowsMax), lanes: concurrency };
      const peers = [
        ...(vault === undefined ? [] : [await openTransitPeer(owner, table, vault, { rows, lanes: concurrency })]),
        await openRowByRowPeer(owner, few),
        await openPgcryptoPeer(owner, few),
      ];
      const bench = { service, owner, table, peers, paces: new Paces() };
      for (let round = 0; round < rounds; round += 1) await goRound(bench, round, options);
      const without = 'transit left out: no VAULT_ADDR with VAULT_TOKEN, no bao or vault on PATH. ';
      const inMemory = process.env.VAULT_ADDR ? '' : 'transit: a development server, in memory and without audit. ';
      const note = `${vault === undefined ? without : inMemory}Peers have tables of their own; the last two of ${few.rows.toLocaleString('en-US')} rows.`;
      return report(bench, options, note);
    } finally {
      await service.close();
    }
  } finally {
    await vault?.close();
    await database.close();
  }
}
