import assert from 'node:assert/strict';
import { connect } from '../../src/db.ts';
import { waitOutWriters } from '../../src/rotation/census.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { workRange } from '../../src/rotation/range.ts';
import { advance } from '../../src/rotation/run.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { findRun } from '../../src/rotation/store.ts';
import {
  adopt,
  beginRotation,
  drive,
  fill,
  isSettled,
  openBench,
  rotate,
  skipTokens,
  skipWaits,
  type Bench,
} from './support.ts';

const versionsSql =
  'select fieldkeep.fe_version(ssn) as version, count(*)::int as n from demo.employees group by 1 order by 1';

describe('what a census must not overlook', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
  });
  afterEach(() => bench.close());

  it('a table that went missing after its ranges were done', async () => {
    await fill(bench.owner, 20, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const id = await beginRotation(bench.service);
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await bench.owner.query(`update fieldkeep.rotations set pending_at = pending_at - interval '1 min'`);
    await drive(bench.service, id, (run) => run.phase === 'verifying');
    await bench.owner.query('alter table demo.employees rename to elsewhere');
    bench.service.catalog = await loadCatalog(bench.service.targets, bench.service.policy.columns); // as a start does
    await skipWaits(bench.owner, id);
    const run = await drive(bench.service, id, isSettled);
    assert.equal(run.phase, 'blocked');
    assert.match(run.blocked!, /demo\.employees/);
    await bench.owner.query('alter table demo.elsewhere rename to employees');
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = now() - interval '1 min'`);
    assert.equal((await drive(bench.service, id, (r) => r.phase === 'done')).phase, 'done');
  });

  it('a writer that has not ended: in the table itself, in an heir, or prepared and without a process', async () => {
    const { owner, service } = bench;
    await owner.query('create table demo.heir () inherits (demo.employees)');
    const table = service.catalog.tables.get('demo.employees')!;
    const isWaitedFor = async () => !(await waitOutWriters(service.targets.findRows(undefined)!, table, 50));
    assert.equal(await isWaitedFor(), false);
    const writer = await owner.connect();
    try {
      for (const name of ['demo.employees', 'demo.heir']) {
        await writer.query('begin');
        await writer.query(`insert into ${name} (id, tenant, name) values (99, 'acme', 'n')`);
        assert.equal(await isWaitedFor(), true, name);
        await writer.query(`prepare transaction 'held'`);
        assert.equal(await isWaitedFor(), true, `${name}, prepared`);
        await writer.query(`rollback prepared 'held'`);
        assert.equal(await isWaitedFor(), false, name);
      }
    } finally {
      writer.release();
    }
  });

  it('envelopes of a version that does not exist', async () => {
    await fill(bench.owner, 20, (id) => (id === 3 ? `fe1.ssn.7.${'A'.repeat(110)}` : `536-22-${id}`));
    const run = await adopt(bench.service);
    assert.equal(run.phase, 'blocked');
    assert.match(run.blocked!, /demo\.employees\.ssn/);
  });

  it('a text that the database and a JavaScript string cut differently', async () => {
    await fill(bench.owner, 20, (id) => (id === 3 ? `fe1.${'\u{1d4b3}'.repeat(18)}.1.AAAA` : `536-22-${id}`));
    assert.equal((await adopt(bench.service)).phase, 'done');
    const run = await rotate(bench);
    assert.equal(run.phase, 'blocked');
    const { rows } = await bench.owner.query('select row, code from fieldkeep.rotation_failures');
    assert.deepEqual(rows, [{ row: '3', code: 'envelope_malformed' }]);
  });

  it('an activation whose process died before those commits had ended', async () => {
    await fill(bench.owner, 5, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const id = await beginRotation(bench.service);
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await bench.owner.query('update fieldkeep.rotations set activated_at = null where id = $1', [id]);
    // An instance that started since has never had the version pending.
    await bench.owner.query('insert into fieldkeep.instances (id) values (gen_random_uuid())');
    await advance(bench.service, id);
    assert.notEqual((await findRun(bench.service.pool, id))!.activatedAt, undefined);
  });

  it('answers whose commit is under way while the version is activated', async () => {
    await fill(bench.owner, 5, (id) => `536-22-${id}`);
    await adopt(bench.service);
    // Somebody who is not ready holds the activation up until the commit is under way.
    const { rows } = await bench.owner.query<{ id: string }>(
      `insert into fieldkeep.instances (id, heartbeat_at) values (gen_random_uuid(), now() + interval '1 hour') returning id`,
    );
    const id = await beginRotation(bench.service);
    const answering = await connect(bench.database.ownerUrl, { name: 'answering' });
    try {
      await drive(bench.service, id, (run) => run.pendingAt !== undefined);
      await answering.query('begin');
      await answering.query(
        `insert into fieldkeep.audit_intake (stream, seq, lines, entries, prev_hash, hash)
         values (999, 1, '{}', 1, decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex'))`,
      );
      await bench.owner.query('delete from fieldkeep.instances where id = $1', [rows[0]!.id]);
      const activating = drive(bench.service, id, (run) => run.activatedAt !== undefined);
      for (let active = 1; active !== 2; await new Promise((resolve) => setTimeout(resolve, 20))) {
        await bench.service.keyring.refresh();
        active = bench.service.keyring.state.families.get('ssn')!.active!;
      }
      await new Promise((resolve) => setTimeout(resolve, 500));
      assert.equal((await findRun(bench.service.pool, id))!.phase, 'pending', 'the wait is not over');
      await answering.query('rollback');
      assert.equal((await activating).phase, 'active');
    } finally {
      await answering.end();
    }
  }).timeout(60_000);

  it('a worker that began under the version before', async () => {
    const count = 1500; // one range
    await fill(bench.owner, count, (id) => `536-22-${id}`);
    await startAdoption(bench.service, true);
    const { rows: runs } = await bench.owner.query<{ id: string }>('select id from fieldkeep.rotations');
    await advance(bench.service, runs[0]!.id);
    const rotation = await beginRotation(bench.service);
    const [range] = await listFreeRanges(bench.service.pool);
    const { audit } = bench.service;
    let appends = 0;
    const counts = async () => (await bench.owner.query<{ version: number; n: number }>(versionsSql)).rows;
    let before: { version: number; n: number }[] = [];
    // With its third intent on the way, sealed under version 1, version 2 is activated.
    const append: typeof audit.append = async (...args) => {
      appends += 1;
      while (appends === 3 && (await findRun(bench.service.pool, rotation))?.activatedAt === undefined) {
        await advance(bench.service, rotation);
        await skipTokens(bench.service.pool, rotation);
        before = await counts();
      }
      return await audit.append(...args);
    };
    const delayed = Object.assign(Object.create(audit) as typeof audit, { append });
    await workRange({ ...bench.service, audit: delayed }, range!, () => false);
    const written = before.find(({ version }) => version === 1)!.n;
    assert.ok(written > 0 && written < count, `${written} were written under version 1`);
    assert.deepEqual(
      await counts(),
      [
        { version: 1, n: written },
        { version: 2, n: count - written },
      ],
      'what was sealed under the version before is not stored once another is active',
    );
  }).timeout(60_000);
});
