import assert from 'node:assert/strict';
import { performance } from 'node:perf_hooks';
import { type AuditLog, isFresh, StaleEpoch } from '../../src/audit/log.ts';
import { FieldkeepError } from '../../src/errors.ts';
import { checkChains, checkOnce, getEpoch, makeLine, openBench, openLog, readLines, type Bench } from './support.ts';

const raise = 'select fieldkeep.raise_epoch()';

describe('audit log', () => {
  let bench: Bench;
  let log: AuditLog;

  before(async () => {
    bench = await openBench();
    log = await openLog(bench);
  });

  after(async () => {
    await log.close();
    await bench.close();
  });

  it('shares commits among concurrent appends, and every line is there once', async () => {
    const epoch = await getEpoch(bench);
    const ids = Array.from({ length: 500 }, (_, i) => `shared-${i}`);
    const before = performance.now();
    const receipts = await Promise.all(ids.map((id) => log.append([makeLine(id)], epoch)));
    for (const receipt of receipts) {
      assert.ok(receipt.sentAt >= before && receipt.sentAt <= performance.now());
      assert.ok(isFresh(receipt));
    }
    assert.ok(log.counters.groups <= 5, `${log.counters.groups} commits`);
    assert.equal((await checkOnce(bench, ids)).length, 500);
    await checkChains(bench);
  });

  it('keeps the records of one append together and in order', async () => {
    await log.append([makeLine('first'), makeLine('second'), makeLine('third')], await getEpoch(bench));
    const lines = (await readLines(bench)).slice(-3);
    assert.deepEqual(
      lines,
      ['first', 'second', 'third'].map((id) => makeLine(id).line),
    );
  });

  it('refuses what was computed under another epoch, and stores nothing of it', async () => {
    const before = await readLines(bench);
    const epoch = await getEpoch(bench);
    await bench.owner.query(raise);
    await assert.rejects(log.append([makeLine('late')], epoch), StaleEpoch);
    assert.deepEqual(await readLines(bench), before);
    await log.append([makeLine('again')], await getEpoch(bench)); // the refused group's number was not used up
    await checkChains(bench);
  });

  it('refuses older epochs within a group, and stores the newest', async () => {
    const epoch = await getEpoch(bench);
    const [older, newest] = await Promise.allSettled([
      log.append([makeLine('older')], { ...epoch, n: epoch.n - 1 }),
      log.append([makeLine('newest')], epoch),
    ]);
    assert.ok(older.status === 'rejected' && older.reason instanceof StaleEpoch);
    assert.equal(newest.status, 'fulfilled');
    const ids = await checkOnce(bench, ['newest']);
    assert.ok(!ids.includes('older'));
  });

  it('commits writes together with their entry, also when they raise the epoch', async () => {
    const epoch = await getEpoch(bench);
    await log.append([makeLine('raises')], epoch, async (tx) => {
      await tx.query(raise);
    });
    assert.equal((await getEpoch(bench)).n, epoch.n + 1);
    await checkOnce(bench, ['raises']);
  });

  it('rolls writes back with their entry', async () => {
    const epoch = await getEpoch(bench);
    const failure = new FieldkeepError('conflict', 'Not now.');
    const failing = log.append([makeLine('conflict')], epoch, async (tx) => {
      await tx.query(raise);
      throw failure;
    });
    await assert.rejects(failing, failure);
    let ran = false;
    const stale = log.append([makeLine('stale write')], { ...epoch, n: epoch.n - 1 }, async (tx) => {
      ran = true;
      await tx.query(raise);
    });
    await assert.rejects(stale, StaleEpoch);
    assert.equal(ran, false);
    assert.deepEqual(await getEpoch(bench), epoch);
    const ids = await checkOnce(bench, []);
    assert.ok(!ids.includes('conflict') && !ids.includes('stale write'));
    await log.append([makeLine('after rollback')], epoch);
    await checkChains(bench);
  });

  it('does not run writes again when a swallowed error made their commit fail', async () => {
    const epoch = await getEpoch(bench);
    let runs = 0;
    const failing = log.append([makeLine('swallowed')], epoch, async (tx) => {
      runs += 1;
      await tx.query(raise);
      await tx.query('select 1 / 0').catch(() => undefined);
    });
    await assert.rejects(failing, { code: 'audit_unavailable' });
    assert.equal(runs, 1);
    assert.deepEqual(await getEpoch(bench), epoch);
    await log.append([makeLine('after swallowed')], epoch);
    assert.ok(!(await checkOnce(bench, ['after swallowed'])).includes('swallowed'));
  });

  it('refuses a record that would not come apart again', async () => {
    const epoch = await getEpoch(bench);
    await assert.rejects(log.append([{ line: '{"a":1}\n{"b":2}' }], epoch), { code: 'internal' });
    await assert.rejects(log.append([{ line: '{"a":1}', items: '{}\t{}' }], epoch), { code: 'internal' });
    await assert.rejects(log.append([{ line: '' }], epoch), { code: 'internal' });
  });

  it('bounds what waits, and takes nothing once it is closed', async () => {
    const short = await openLog(bench);
    const epoch = await getEpoch(bench);
    const results = await Promise.allSettled(
      Array.from({ length: 20_100 }, (_, i) => short.append([makeLine(`many-${i}`)], epoch)),
    );
    const refused = results.filter((result) => result.status === 'rejected');
    assert.equal(refused.length, 100);
    assert.ok(refused.every(({ reason }) => reason instanceof FieldkeepError && reason.code === 'audit_unavailable'));
    const last = short.append([makeLine('last')], epoch);
    await short.close();
    await last;
    await assert.rejects(short.append([makeLine('closed')], epoch), { code: 'audit_unavailable' });
    await checkOnce(bench, ['last']);
    await checkChains(bench);
  });
});
