/** What the suites of the audit log share: a log on a database of its own, lines that can be counted, what became of them. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { connect, openPool, type Pool } from '../../src/db.ts';
import { formatEntry, type Entry } from '../../src/audit/entry.ts';
import { AuditLog } from '../../src/audit/log.ts';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { chainHash } from '../../src/audit/chain.ts';
import type { Epoch } from '../../src/keys/epoch.ts';
import { readEpoch } from '../../src/keys/epoch-store.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';

export interface Bench extends TestDatabase {
  /** As the service. */
  readonly pool: Pool;
  readonly owner: Pool;
  close(): Promise<void>;
}

export async function openBench(): Promise<Bench> {
  const database = await createDatabase();
  const pool = openPool(database.workerUrl, { max: 8, name: 'test' });
  const owner = openPool(database.ownerUrl, { max: 4, name: 'test owner' });
  return {
    ...database,
    pool,
    owner,
    async close() {
      await pool.end();
      await owner.end();
      await database.drop();
    },
  };
}

export function openLog(bench: Bench, url = bench.workerUrl, onError?: (error: unknown) => void): Promise<AuditLog> {
  return AuditLog.open(url, bench.pool, { instanceId: randomUUID(), ...(onError !== undefined && { onError }) });
}

export function makeEntry(requestId: string, more: Partial<Entry> = {}): Entry {
  return {
    v: 1,
    time: '2026-03-01T12:00:00.000Z',
    requestId,
    tenant: 'acme',
    action: 'decrypt',
    agent: 'payroll-agent',
    class: 'bank',
    view: 'full',
    purpose: 'payroll run',
    table: 'demo.employees',
    column: 'bank',
    rowDigest: '1.AAAAAAAAAAAAAAAAAAAAAA',
    input: 'envelope:AAAAAAAAAAAAAAAAAAAAAA',
    output: 'value:AAAAAAAAAAAAAAAAAAAAAA',
    decision: 'allow',
    ruleId: 'payroll-agent:2',
    policyVersion: '0123456789abcdef',
    outcome: 'ok',
    keyVersion: 3,
    ...more,
  };
}

export function makeLine(requestId: string, more: Partial<Entry> = {}): { line: string } {
  return { line: formatEntry(makeEntry(requestId, more)) };
}

export function getEpoch(bench: Bench): Promise<Epoch> {
  return readEpoch(bench.owner);
}

/** Raises the epoch; answers the new one. */
export async function raise(bench: Bench): Promise<Epoch> {
  await bench.owner.query('select fieldkeep.raise_epoch()');
  return await getEpoch(bench);
}

/** Every entry's line in the order of the tree, after asserting that indexes are dense from 0. */
export async function readLines(bench: Bench): Promise<string[]> {
  await unfoldAcknowledged(bench.pool);
  const { rows } = await bench.owner.query<{ index: string; line: string }>(
    'select index, line from fieldkeep.audit_entries order by index',
  );
  rows.forEach(({ index }, i) => assert.equal(Number(index), i, 'indexes are dense from 0'));
  return rows.map(({ line }) => line);
}

/** Asserts that every acknowledged request id stands in the log once and none stands there twice. Answers all of them. */
export async function checkOnce(bench: Bench, acknowledged: readonly string[]): Promise<string[]> {
  const ids = (await readLines(bench)).map((line) => (JSON.parse(line) as Entry).requestId);
  const logged = new Set(ids);
  assert.equal(logged.size, ids.length, 'no line twice');
  assert.deepEqual(
    acknowledged.filter((id) => !logged.has(id)),
    [],
    'no acknowledged line is missing',
  );
  return ids;
}

/** Asserts that every stream's groups are numbered from 1 without gaps and that each hashes its predecessor. */
export async function checkChains(bench: Bench): Promise<void> {
  const { rows } = await bench.owner.query<{
    stream: string;
    seq: string;
    lines: string;
    items: string | null;
    prev_hash: Buffer;
    hash: Buffer;
  }>('select stream, seq, lines, items, prev_hash, hash from fieldkeep.audit_intake order by stream, seq');
  const heads = new Map<string, { seq: number; hash: Buffer }>();
  for (const row of rows) {
    const head = heads.get(row.stream) ?? { seq: 0, hash: Buffer.alloc(32) };
    assert.equal(Number(row.seq), head.seq + 1);
    assert.deepEqual(row.prev_hash, head.hash);
    const hash = chainHash(head.hash, row.stream, head.seq + 1, row.lines, row.items ?? undefined);
    assert.deepEqual(row.hash, hash);
    heads.set(row.stream, { seq: head.seq + 1, hash });
  }
}

/** Ends the server processes of the connections with this application name. Answers how many there were. */
export async function killBackends(bench: Bench, name: string): Promise<number> {
  const { rowCount } = await bench.owner.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = $1`,
    [name],
  );
  return rowCount ?? 0;
}

/** A session of the service's role that a test drives by hand. */
export function openSession(bench: Bench): ReturnType<typeof connect> {
  return connect(bench.workerUrl, { name: 'by hand' });
}
