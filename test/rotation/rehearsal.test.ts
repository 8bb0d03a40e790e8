/** A dry run: it changes nothing, tries a sample, and what it predicts is near to what comes. */
import assert from 'node:assert/strict';
import { DataKey } from '../../src/crypto/data-key.ts';
import { rehearse } from '../../src/rotation/rehearsal.ts';
import { viewRun } from '../../src/rotation/progress.ts';
import { createServer } from '../support/database.ts';
import { changePolicy, adopt, fill, openBench, rotate, sealFor, type Bench } from './support.ts';

describe('rotation/rehearsal', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench({ database: await createServer() });
    await fill(bench.owner, 8_000, (id) => (id % 10 === 0 ? null : `536-22-${id}`));
  });
  after(() => bench.close());

  const contents = async () => {
    const { rows } = await bench.owner.query<{ digest: string }>(
      `select md5(string_agg(e::text || e.xmin::text || e.ctid::text, '' order by id)) as digest from demo.employees e`,
    );
    return rows[0]!.digest;
  };

  it('writes nothing to the table, and opens the sample', async () => {
    await adopt(bench.service);
    await bench.owner.query('analyze demo.employees');
    const before = await contents();
    const { columns, sample, predicted, basis, warnings } = await rehearse(bench.service, 'ssn');
    assert.equal(await contents(), before);
    assert.deepEqual(columns, [{ table: 'demo.employees', column: 'ssn', total: 7_200 }]);
    assert.deepEqual(sample, { values: 500, failed: 0 });
    assert.deepEqual([predicted.values, basis, warnings], [7_200, 'assumed', []]);
    assert.equal(bench.service.keyring.state.families.get('ssn')!.active, 1);
  });

  it('is kept and held against what became of it', async () => {
    const { predicted } = await rehearse(bench.service, 'ssn');
    const run = await rotate(bench);
    const view = await viewRun(bench.service.pool, run);
    assert.deepEqual(view.predicted, predicted);
    assert.equal(view.actual!.values, 7_200);
    const share = view.actual!.walBytes! / predicted.walBytes;
    assert.ok(share > 1 / 3 && share < 3, `log: ${view.actual!.walBytes} bytes, predicted ${predicted.walBytes}`);
    const again = await rehearse(bench.service, 'ssn');
    assert.equal(again.basis, 'measured');
    const nearer = again.predicted.walBytes / view.actual!.walBytes!;
    assert.ok(nearer > 0.9 && nearer < 1.1, 'what was measured is predicted');
  });

  it('guesses, and says so, where nothing was measured yet', async () => {
    const key = await bench.service.keyring.getOrMake('acme', 'bank', 1);
    await bench.owner.query('update demo.employees set bank = $1 where id = 1', [sealFor(key, 1, 'bank', '1', 'x')]);
    assert.equal((await rehearse(bench.service, 'bank')).basis, 'assumed');
  });

  it('says beforehand that values do not open', async () => {
    const stranger = DataKey.from(Buffer.alloc(64, 7));
    await bench.owner.query('update demo.employees set ssn = $1 where id = 1', [sealFor(stranger, 2, 'ssn', '1', 'x')]);
    const { sample, warnings } = await rehearse(bench.service, 'ssn');
    assert.equal(sample.failed, 1);
    assert.match(warnings[0]!, /1 of 500 values that were tried do not open/);
  });

  it('goes by the rate of the policy', async () => {
    bench.service.policy = changePolicy({ classes: { ssn: { rotation: { rowsPerSecondMax: 100 } } } });
    const { predicted } = await rehearse(bench.service, 'ssn');
    assert.ok(predicted.seconds >= 72 && predicted.seconds < 120, `${predicted.seconds} s`);
    assert.equal(predicted.valuesPerSecond, 100);
  });
});
