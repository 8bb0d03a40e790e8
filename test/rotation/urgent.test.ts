/** In an emergency the rows that somebody opened lately are done before all others. */
import assert from 'node:assert/strict';
import { newRequestId } from '../../src/http/request-id.ts';
import { bindOperations } from '../../src/operations/all.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { findUnfinished } from '../../src/rotation/store.ts';
import { adopt, drive, fill, isSettled, openBench, skipWaits, type Bench } from './support.ts';

describe('an emergency', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench();
    await fill(bench.owner, 3_000, (id) => `536-22-${id}`);
    await adopt(bench.service);
  });
  after(() => bench.close());

  const ask = (name: string, operation: 'decrypt' | 'rotate', body: object, params = {}) => {
    const principal =
      operation === 'rotate' ? { person: name, system: true } : { agent: name, tenant: 'acme', system: false };
    const deadline = performance.now() + 10_000;
    const call = { requestId: newRequestId(), principal, body, params, query: {}, deadline };
    return bindOperations(bench.service)[operation](call);
  };

  const versionsOf = async () => {
    const { rows } = await bench.owner.query<{ id: number; version: number }>(
      'select id::int, fieldkeep.fe_version(ssn) as version from demo.employees order by id',
    );
    return new Map(rows.map((row) => [row.id, row.version]));
  };

  it('brings them up to date first, and then the rest', async () => {
    const opened = [3, 2_999, 1_500];
    for (const id of opened) {
      const { rows } = await bench.owner.query<{ ssn: string }>('select ssn from demo.employees where id = $1', [id]);
      const context = { table: 'demo.employees', column: 'ssn', row: String(id) };
      await ask('cx-agent', 'decrypt', { envelope: rows[0]!.ssn, context });
    }
    await ask('operator', 'rotate', { compromised: true }, { family: 'ssn' });
    const run = (await findUnfinished(bench.service.pool, 'ssn'))!;
    await drive(bench.service, run.id, (each) => each.activatedAt !== undefined);
    await skipWaits(bench.owner, run.id);
    await advance(bench.service, run.id);
    const { pool } = bench.service;
    const urgent = await listFreeRanges(pool);
    assert.equal(urgent.length, 1, 'nothing else is handed out yet');
    await workRange(bench.service, urgent[0]!, () => false);
    for (const [id, version] of await versionsOf()) assert.equal(version, opened.includes(id) ? 2 : 1, `row ${id}`);
    assert.ok((await listFreeRanges(pool)).length >= 1, 'now the rest is');
    assert.equal((await drive(bench.service, run.id, isSettled)).phase, 'done');
    for (const [id, version] of await versionsOf()) assert.equal(version, 2, `row ${id}`);
  }).timeout(60_000);
});
