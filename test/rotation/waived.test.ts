/** Rows that fail: tried once more at the end of a pass, then a person's word; a run is done with given-up rows only. */
import assert from 'node:assert/strict';
import { DataKey } from '../../src/crypto/data-key.ts';
import { transaction } from '../../src/db.ts';
import { waiveFailures } from '../../src/rotation/failure-store.ts';
import { viewRun } from '../../src/rotation/progress.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { findRun } from '../../src/rotation/store.ts';
import { activate, adopt, drive, fill, isSettled, openBench, rotate, sealFor, type Bench } from './support.ts';

describe('rows that fail', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
    await fill(bench.owner, 40, (id) => `536-22-${id}`);
    await adopt(bench.service);
  });
  afterEach(() => bench.close());

  const stranger = DataKey.from(Buffer.alloc(64, 7));
  const spoil = (id: number) =>
    bench.owner.query('update demo.employees set ssn = $2 where id = $1', [
      id,
      sealFor(stranger, 1, 'ssn', `${id}`, 'x'),
    ]);
  const waive = (run: string) => transaction(bench.service.pool, (tx) => waiveFailures(tx, run, 'an approval'));
  const lookAgain = (id: string) =>
    bench.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch' where id = $1`, [id]);

  it('are tried once more at the end of the pass, and most often that is enough', async () => {
    const { rows } = await bench.owner.query<{ ssn: string }>('select ssn from demo.employees where id = 7');
    await spoil(7);
    const id = await activate(bench);
    await advance(bench.service, id);
    for (const range of await listFreeRanges(bench.service.pool)) await workRange(bench.service, range, () => false);
    assert.equal((await findRun(bench.service.pool, id))!.failed, 1);
    await bench.owner.query('update demo.employees set ssn = $1 where id = 7', [rows[0]!.ssn]); // somebody mended it
    const run = await drive(bench.service, id, isSettled);
    assert.deepEqual([run.phase, run.pass, run.failed], ['done', 1, 0]);
    const told = await bench.owner.query<{ lines: string }>(
      `select lines from fieldkeep.audit_intake where lines like '%rows that failed once more%'`,
    );
    assert.equal(told.rows.length, 1);
  });

  it('keep a run from being done until they are given up, and no others are given up with them', async () => {
    await spoil(7);
    const id = await activate(bench);
    const run = await drive(bench.service, id, isSettled);
    assert.equal(run.phase, 'blocked');
    assert.match(run.blocked!, /^One value does not open/);
    for (const word of ['failures names them', 'resume', 'waive']) assert.ok(run.blocked!.includes(word), word);
    await waive(id);
    await spoil(8); // fails later, and was not agreed to
    await lookAgain(id);
    const again = await drive(bench.service, id, isSettled);
    assert.deepEqual([again.phase, again.failed, again.waived], ['blocked', 2, 1]);
    await bench.owner.query('update demo.employees set ssn = null where id = 8');
    await lookAgain(id);
    const done = await drive(bench.service, id, (each) => each.phase === 'done');
    assert.deepEqual([done.failed, done.waived], [1, 1]);
    const view = await viewRun(bench.service.pool, done);
    assert.deepEqual([view.waived, view.columns[0]!.failed], [1, 1]);
    const { rows } = await bench.owner.query('select id from demo.employees where fieldkeep.fe_version(ssn) = 1');
    assert.deepEqual(rows, [{ id: '7' }], 'what was given up is left as it is');
  });

  it('were given up for one rotation: the next one asks again', async () => {
    await spoil(7);
    const id = await activate(bench);
    await drive(bench.service, id, isSettled);
    await waive(id);
    await lookAgain(id);
    await drive(bench.service, id, (each) => each.phase === 'done');
    assert.equal((await rotate(bench)).phase, 'blocked');
  });

  it('that were given up and mended since do not hide others that are old', async () => {
    await spoil(7);
    const id = await activate(bench);
    await drive(bench.service, id, isSettled);
    await waive(id);
    await bench.owner.query('update demo.employees set ssn = null where id = 7');
    const key = await bench.service.keyring.getOrMake('acme', 'ssn', 1);
    await bench.owner.query('update demo.employees set ssn = $1 where id = 9', [sealFor(key, 1, 'ssn', '9', 'late')]);
    await lookAgain(id);
    await drive(bench.service, id, (each) => each.phase === 'done');
    const { rows } = await bench.owner.query(
      'select distinct fieldkeep.fe_version(ssn) as v from demo.employees where ssn is not null',
    );
    assert.deepEqual(rows, [{ v: 2 }]);
  });
});
