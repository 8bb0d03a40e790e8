import assert from 'node:assert/strict';
import { randomInt, randomUUID } from 'node:crypto';
import { DataKey } from '../../src/crypto/data-key.ts';
import { connect } from '../../src/db.ts';
import { viewRun } from '../../src/rotation/progress.ts';
import { advance } from '../../src/rotation/run.ts';
import { startDue } from '../../src/rotation/start.ts';
import {
  insertCheckpoint,
  claimRange,
  LeaseLost,
  listFreeRanges,
  listProgress,
} from '../../src/rotation/range-store.ts';
import { findRun, listUnfinished } from '../../src/rotation/store.ts';
import { transaction } from '../../src/db.ts';
import {
  adopt,
  beginRotation,
  beReady,
  drive,
  fill,
  isSettled,
  openBench,
  openFor,
  rotate,
  sealFor,
  skipTokens,
  skipWaits,
  type Bench,
} from './support.ts';

const makeSsn = (id: number) => (id % 50 === 0 ? null : id % 51 === 0 ? '' : `536-22-${String(id).padStart(4, '0')}`);

async function checkAll(bench: Bench, expected: ReadonlyMap<number, string | null>, version: number): Promise<void> {
  const { rows } = await bench.owner.query<{ id: string; ssn: string | null; ssn_eq: string | null }>(
    'select id, ssn, ssn_eq from demo.employees order by id',
  );
  assert.equal(rows.length, expected.size);
  for (const { id, ssn, ssn_eq } of rows) {
    const want = expected.get(Number(id));
    if (want === null || want === undefined || ssn === null) {
      assert.equal(ssn, want ?? null);
      continue;
    }
    assert.ok(ssn.startsWith(`fe1.ssn.${version}.`), `row ${id} is of version ${version}`);
    assert.equal(await openFor(bench.service, 'ssn', id, ssn), want, `row ${id}`);
    assert.equal(ssn_eq?.split('.')[0], want === '' ? undefined : `b${version}`, `index of row ${id}`);
  }
}

describe('a run', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
  });
  afterEach(() => bench.close());

  it('adopts plaintext in place, then rotates it, and leaves nothing behind', async () => {
    await fill(bench.owner, 3000, makeSsn);
    const expected = new Map(Array.from({ length: 3000 }, (_, i) => [i + 1, makeSsn(i + 1)]));
    assert.equal((await adopt(bench.service)).phase, 'done');
    await checkAll(bench, expected, 1);
    const run = await rotate(bench);
    assert.equal(run.phase, 'done');
    await checkAll(bench, expected, 2);
    const state = bench.service.keyring.state.families.get('ssn')!;
    assert.equal(state.active, 2);
    assert.equal(state.versions.get(1)!.state, 'decrypt-only');
    assert.ok(state.nextRotationAt! > new Date(Date.now() + 80 * 86_400_000), 'the next quarter is planned');
    const progress = await listProgress(bench.service.pool, run.id);
    assert.deepEqual(
      progress.map(({ column, done, failed }) => [column, done, failed]),
      [['ssn', 2940, 0]],
    );
  });

  it('loses nothing that an application writes meanwhile', async () => {
    await fill(bench.owner, 3000, (id) => `536-22-${id}`);
    const expected = new Map<number, string | null>(Array.from({ length: 3000 }, (_, i) => [i + 1, `536-22-${i + 1}`]));
    await adopt(bench.service);
    let writing = true;
    let written = 0;
    const application = (async () => {
      const client = await connect(bench.database.ownerUrl, { name: 'application' });
      while (writing) {
        const id = randomInt(3000) + 1;
        const value = `9${String(randomInt(1e8)).padStart(8, '0')}`;
        const active = bench.service.keyring.state.families.get('ssn')!.active!;
        const key = await bench.service.keyring.getOrMake('acme', 'ssn', active);
        await client.query('update demo.employees set ssn = $2, ssn_eq = $3 where id = $1', [
          id,
          sealFor(key, active, 'ssn', String(id), value),
          `b${active}.x`,
        ]);
        expected.set(id, value);
        written += 1;
      }
      await client.end();
    })();
    const run = await rotate(bench);
    writing = false;
    await application;
    assert.equal(run.phase, 'done');
    assert.ok(written > 50, `the application wrote ${written} rows`);
    await checkAll(bench, expected, 2);
  });

  it('waits for instances that are not ready, and for search tokens to expire', async () => {
    await fill(bench.owner, 10, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const other = randomUUID();
    await bench.owner.query('insert into fieldkeep.instances (id) values ($1)', [other]);
    const id = await beginRotation(bench.service);
    const keepAlive = setInterval(
      () => void bench.owner.query('update fieldkeep.instances set heartbeat_at = now() where id = $1', [other]),
      500,
    );
    try {
      await assert.rejects(
        drive(bench.service, id, (run) => run.activatedAt !== undefined, 3000),
        /still pending/,
      );
    } finally {
      clearInterval(keepAlive);
    }
    await bench.owner.query('delete from fieldkeep.instances where id = $1', [other]);
    await bench.owner.query('update fieldkeep.rotations set pending_at = now() where id = $1', [id]);
    await beReady(bench.owner);
    for (let n = 0; n < 10; n += 1) await advance(bench.service, id);
    const run = (await findRun(bench.service.pool, id))!;
    assert.equal(run.phase, 'pending', 'an application must not store what searches do not look for yet');
    const view = await viewRun(bench.service.pool, run);
    assert.match(view.waitingFor!, /^search tokens without the new version to expire, \d+ s$/);
    await skipTokens(bench.owner, id);
    await advance(bench.service, id);
    assert.notEqual((await findRun(bench.service.pool, id))!.activatedAt, undefined);
  });

  it('records rows that do not open, steps over them, blocks, and goes on when they are mended', async () => {
    await fill(bench.owner, 500, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const stranger = DataKey.from(Buffer.alloc(64, 7));
    const { rows } = await bench.owner.query<{ ssn: string }>('select ssn from demo.employees where id = 9');
    await bench.owner.query('update demo.employees set ssn = $1 where id = 7', [sealFor(stranger, 1, 'ssn', '7', 'x')]);
    await bench.owner.query('update demo.employees set ssn = $1 where id = 8', [rows[0]!.ssn]); // another row's envelope
    const run = await rotate(bench);
    assert.equal(run.phase, 'blocked');
    assert.match(run.blocked!, /2 values do not open/);
    const failures = await bench.owner.query('select row, code from fieldkeep.rotation_failures order by row');
    assert.deepEqual(failures.rows, [
      { row: '7', code: 'decryption_failed' },
      { row: '8', code: 'decryption_failed' },
    ]);
    const left = await bench.owner.query<{ id: string }>(
      'select id from demo.employees where fieldkeep.fe_version(ssn) = 1 order by id',
    );
    assert.deepEqual(
      left.rows.map((row) => row.id),
      ['7', '8'],
      'everything else went on',
    );
    await bench.owner.query('update demo.employees set ssn = null where id in (7, 8)');
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = now() - interval '1 min'`);
    assert.equal((await drive(bench.service, run.id, (r) => r.phase === 'done')).phase, 'done');
  });

  it('is blocked by text that only begins like an envelope', async () => {
    await fill(bench.owner, 5, (id) => (id === 3 ? 'fe1.ssn.x.AAAA' : `536-22-${id}`));
    assert.equal((await adopt(bench.service)).phase, 'blocked');
  });

  it('finds an old envelope that a transaction held open across the census', async () => {
    await fill(bench.owner, 5, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const application = await connect(bench.database.ownerUrl, { name: 'application' });
    const key = await bench.service.keyring.getOrMake('acme', 'ssn', 1);
    await application.query('begin');
    await application.query(`insert into demo.employees (id, tenant, name, ssn) values (100, 'acme', 'late', $1)`, [
      sealFor(key, 1, 'ssn', '100', 'late'),
    ]);
    const id = await beginRotation(bench.service);
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, id);
    await assert.rejects(drive(bench.service, id, isSettled, 1500), /still verifying/);
    await application.query('commit');
    await application.end();
    assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
    const { rows } = await bench.owner.query<{ ssn: string }>('select ssn from demo.employees where id = 100');
    assert.equal(await openFor(bench.service, 'ssn', '100', rows[0]!.ssn), 'late');
    assert.match(rows[0]!.ssn, /^fe1\.ssn\.2\./);
  });

  it('refuses the checkpoint of a worker whose lease was taken over', async () => {
    await fill(bench.owner, 100, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const id = await beginRotation(bench.service);
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, id);
    await advance(bench.service, id);
    const [rangeId] = await listFreeRanges(bench.service.pool);
    const { pool, instanceId } = bench.service;
    const [asleep, awake] = [randomUUID(), randomUUID()];
    const range = (await claimRange(pool, rangeId!, asleep, randomUUID()))!; // its holder is no living instance
    assert.ok(await claimRange(pool, rangeId!, awake, instanceId));
    assert.equal(await claimRange(pool, rangeId!, randomUUID(), instanceId), undefined, 'a living holder keeps it');
    const point = { step: 'ssn/1', cursor: ['50'], done: new Map([['ssn', 50]]), failures: [] };
    await assert.rejects(
      transaction(pool, (tx) => insertCheckpoint(tx, range, asleep, point)),
      LeaseLost,
    );
    await transaction(pool, (tx) => insertCheckpoint(tx, range, awake, point));
  });

  it('starts a due rotation once, however many look', async () => {
    await bench.owner.query(`update fieldkeep.key_families set next_rotation_at = now() where family = 'bank'`);
    const started = await Promise.all(Array.from({ length: 8 }, () => startDue(bench.service)));
    assert.equal(started.flat().length, 1);
    assert.deepEqual(
      (await listUnfinished(bench.service.pool)).map((run) => run.family),
      ['bank'],
    );
    const entries = await bench.owner.query<{ lines: string }>(
      `select lines from fieldkeep.audit_intake where lines like '%scheduled start%'`,
    );
    assert.equal(
      entries.rows.flatMap((row) => row.lines.split('\n')).filter((line) => line.includes('scheduled start')).length,
      1,
    );
  });
});
