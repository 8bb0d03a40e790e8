/**
 * Re-encryption beside the same UPDATEs without crypto: same table, same indexes, same statement, values of the same length,
 * in turn. The engine also reads, opens, seals, makes index tokens and writes its audit entries and checkpoints.
 */
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, chmodSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import { migrate, openPool, roleOf, type Pool } from '../../src/db.ts';
import { startPostgres } from '../../src/embedded/postgres.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { readBatch, writeBatch, type Key } from '../../src/rotation/batch.ts';
import { workRange } from '../../src/rotation/range.ts';
import { advance, nextVersion, startAdoption } from '../../src/rotation/run.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { findRun, insertRun, listUnfinished } from '../../src/rotation/store.ts';
import { openService, type Service } from '../../src/service.ts';
import { makePerson } from '../demo/data.ts';
import { median, type BenchOptions, type Section } from './table.ts';

const batchRows = 1000;

async function load(owner: Pool, rows: number): Promise<void> {
  for (let from = 0; from < rows; from += 5000) {
    const chunk = Array.from({ length: Math.min(5000, rows - from) }, (_, i) => makePerson(from + i + 1));
    await owner.query(
      `insert into demo.employees (id, tenant, name, ssn) select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[])`,
      [chunk.map((p) => p.id), chunk.map((p) => p.tenant), chunk.map((p) => p.name), chunk.map((p) => p.ssn ?? '')],
    );
  }
}

interface Timed {
  readonly rowsPerSecond: number;
  readonly rssMb: number;
}

/** The same batches without crypto: what is read is written back with its last characters changed. */
async function rawPass(service: Service, version: number): Promise<Timed> {
  const table = service.catalog.tables.get('demo.employees')!;
  const started = performance.now();
  let rows = 0;
  let updating = 0;
  for (let after: Key | undefined; ;) {
    const request = {
      columns: ['ssn', 'ssn_eq'],
      stale: [{ column: 'ssn', versions: [version] }],
      rowsMax: batchRows,
      ...(after !== undefined && { after }),
    };
    const batch = await readBatch(service.targets.find(undefined)!, table, request);
    if (batch.length === 0) break;
    after = batch.at(-1)!.key;
    const changes = batch.map((row) => ({ ...row, next: [`${row.values[0]!.slice(0, -2)}AA`, row.values[1]!] }));
    const sent = performance.now();
    rows += (await writeBatch(service.targets.find(undefined)!, table, ['ssn', 'ssn_eq'], changes, true)).length;
    updating += performance.now() - sent;
  }
  void started;
  return { rowsPerSecond: rows / (updating / 1000), rssMb: process.memoryUsage().rss / 1e6 };
}

async function settle(service: Service, id: string): Promise<{ seconds: number; rows: number }> {
  let seconds = 0;
  for (;;) {
    await advance(service, id);
    const started = performance.now();
    for (const range of await listFreeRanges(service.pool)) await workRange(service, range, () => false);
    const run = await findRun(service.pool, id);
    if (run?.phase !== 'active' && run?.phase !== 'pending') seconds += (performance.now() - started) / 1000;
    if (run?.doneAt !== undefined || run?.phase === 'blocked') break;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const { rows } = await service.pool.query<{ n: string }>(
    'select coalesce(sum(done), 0) as n from fieldkeep.rotation_columns where rotation = $1',
    [id],
  );
  return { seconds, rows: Number(rows[0]!.n) };
}

async function rotateOnce(service: Service): Promise<Timed> {
  const id = randomUUID();
  await service.keyring.refresh();
  await insertRun(service.pool, {
    id,
    kind: 'rotation',
    family: 'ssn',
    version: nextVersion(service, 'ssn'),
    requestedBy: 'bench',
  });
  const { seconds, rows } = await settle(service, id);
  return { rowsPerSecond: rows / seconds, rssMb: process.memoryUsage().rss / 1e6 };
}

async function adoptAll(service: Service): Promise<void> {
  await startAdoption(service, true);
  for (const run of await listUnfinished(service.pool)) await settle(service, run.id);
}

async function measure(service: Service, owner: Pool, { rounds, rows }: BenchOptions): Promise<Section[]> {
  await load(owner, rows);
  await adoptAll(service);
  const engine: Timed[] = [];
  const raw: Timed[] = [];
  for (let round = 0; round < rounds; round += 1) {
    await owner.query('vacuum analyze demo.employees');
    engine.push(await rotateOnce(service));
    // The raw pass spoils the envelopes; a copy puts them back.
    await owner.query('drop table if exists demo.spare');
    await owner.query('create table demo.spare as select id, ssn from demo.employees');
    await owner.query('vacuum analyze demo.employees');
    raw.push(await rawPass(service, service.keyring.state.families.get('ssn')!.active!));
    await owner.query('update demo.employees e set ssn = s.ssn from demo.spare s where s.id = e.id');
  }
  const ratios = engine.map((each, i) => each.rowsPerSecond / raw[i]!.rowsPerSecond);
  const row = (name: string, all: readonly Timed[], ratio: number) => ({
    name,
    figures: {
      'rows/s': median(all.map((each) => each.rowsPerSecond)),
      'of raw': ratio,
      'RSS MB': Math.max(...all.map((each) => each.rssMb)),
    },
  });
  return [
    {
      title: `re-encryption, ${rows.toLocaleString('en-US')} rows`,
      rows: [
        row('raw UPDATE, no crypto, no reading', raw, 1),
        row('rotation of ssn with its index', engine, median(ratios)),
      ],
      note: 'One range at a time; raw counts the UPDATE statements alone.',
    },
  ];
}

export async function benchRotation(options: BenchOptions): Promise<Section[]> {
  const home = mkdtempSync(join(tmpdir(), 'fieldkeep-bench-'));
  chmodSync(home, 0o711); // as root, Postgres runs as another user below it
  const postgres = await startPostgres({ home });
  try {
    await migrate(postgres.ownerUrl, roleOf(postgres.serviceUrl), () => undefined);
    const policy = parsePolicy(
      await readFile(fileURLToPath(new URL('../../keys-policy.json', import.meta.url)), 'utf8'),
    );
    const rootKeys = await openEmbeddedRootKeys(join(home, 'root-keys.json'));
    const log = pino({ level: 'warn', base: null });
    const service = await openService({ databaseUrl: postgres.serviceUrl, rootKeys, policy, log });
    const owner = openPool(postgres.ownerUrl, { max: 2, name: 'bench', statementTimeoutMs: 600_000 });
    try {
      return await measure(service, owner, options);
    } finally {
      await owner.end();
      await service.close();
    }
  } finally {
    await postgres.stop();
    rmSync(home, { recursive: true, force: true });
  }
}
