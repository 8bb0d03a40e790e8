/** Every write of the log is broken twice: failed and not stored, failed but stored. Acknowledged lines are there once. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { AuditLog } from '../../src/audit/log.ts';
import { AuditStream } from '../../src/audit/stream.ts';
import { isUnavailable } from '../../src/db.ts';
import { FieldkeepError } from '../../src/errors.ts';
import type { Epoch } from '../../src/keys/epoch.ts';
import { openProxy, type Fault, type Proxy } from './proxy.ts';
import { checkChains, checkOnce, getEpoch, killBackends, makeLine, openBench, openLog, type Bench } from './support.ts';

const insert = 'audit-insert-group';
const raise = 'select fieldkeep.raise_epoch()';

/** Keeps `concurrent` appends going until told to stop. Answers what was acknowledged and what was refused. */
function load(log: AuditLog, epoch: Epoch, concurrent: number, name: string) {
  let stopped = false;
  const acknowledged: string[] = [];
  const refused: string[] = [];
  async function appendForever(who: number): Promise<void> {
    for (let n = 0; !stopped; n += 1) {
      const id = `${name}-${who}-${n}`;
      try {
        await log.append([makeLine(id)], epoch);
        acknowledged.push(id);
      } catch (error) {
        if (!(error instanceof FieldkeepError) || error.code !== 'audit_unavailable') throw error;
        refused.push(id);
      }
    }
  }
  const running = Promise.all(Array.from({ length: concurrent }, (_, who) => appendForever(who)));
  return {
    acknowledged,
    refused,
    async stop() {
      stopped = true;
      await running;
    },
  };
}

describe('audit log, broken connections', () => {
  let bench: Bench;
  let proxy: Proxy;
  const failures: unknown[] = [];
  const logs: AuditLog[] = [];

  async function open(url: string, onError?: (error: unknown) => void): Promise<AuditLog> {
    const log = await openLog(bench, url, onError);
    logs.push(log);
    return log;
  }

  before(async () => {
    bench = await openBench();
    proxy = await openProxy(bench.workerUrl);
  });

  afterEach(async () => {
    for (const log of logs.splice(0)) await log.close();
  });

  after(async () => {
    await proxy.close();
    await bench.close();
  });

  it('loses and repeats nothing while its server process is ended again and again', async function () {
    this.timeout(60_000);
    const log = await open(bench.workerUrl, (error) => failures.push(error));
    const work = load(log, await getEpoch(bench), 32, 'killed');
    let kills = 0;
    while (kills < 40) {
      await sleep(Math.random() * 60);
      kills += await killBackends(bench, 'fieldkeep audit');
    }
    await work.stop();
    assert.ok(log.retries > 0);
    assert.deepEqual(work.refused, []);
    assert.ok(
      failures.length > 0 && failures.every(isUnavailable),
      String(failures.find((each) => !isUnavailable(each))),
    );
    await checkOnce(bench, work.acknowledged);
    await checkChains(bench);
  });

  for (const fault of ['before', 'after', 'late'] as Fault[]) {
    it(`loses and repeats nothing when commits are broken ${fault === 'late' ? 'and arrive late' : fault}`, async () => {
      const log = await open(proxy.url);
      const work = load(log, await getEpoch(bench), 16, fault);
      const met = proxy.met();
      for (let n = 1; n <= 10; n += 1) {
        proxy.arm(fault, insert);
        while (proxy.met() < met + n) await sleep(2);
        const before = work.acknowledged.length;
        while (work.acknowledged.length === before) await sleep(2);
        await sleep(Math.random() * 20);
      }
      await work.stop();
      assert.deepEqual(work.refused, []);
      await checkOnce(bench, work.acknowledged);
      await sleep(fault === 'late' ? 400 : 0); // what is still on its way finds no server process
      await checkOnce(bench, work.acknowledged);
      await checkChains(bench);
    });
  }

  it('takes silence for a lost connection', async () => {
    const log = await open(proxy.url);
    proxy.arm('silence', insert);
    const started = performance.now();
    await log.append([makeLine('silent')], await getEpoch(bench));
    assert.ok(performance.now() - started < 5_000);
    assert.equal((await checkOnce(bench, ['silent'])).filter((id) => id === 'silent').length, 1);
  });

  it('answers audit_unavailable within its deadline, follows the group to its end, and goes on', async function () {
    this.timeout(40_000);
    const own = await openProxy(bench.workerUrl);
    const log = await open(own.url);
    const epoch = await getEpoch(bench);
    own.arm('after', insert);
    own.refuse(); // no way back
    const refused = log.append([makeLine('unknown fate')], epoch);
    const started = performance.now();
    await assert.rejects(refused, { code: 'audit_unavailable' });
    await assert.rejects(log.append([makeLine('no way')], epoch), { code: 'audit_unavailable' });
    assert.ok(performance.now() - started < 11_000);
    for (const log of logs.splice(0)) await log.close();
    await own.close();
    const ids = await checkOnce(bench, ['unknown fate']); // it had happened
    assert.ok(!ids.includes('no way'));
    await checkChains(bench);
  });

  it('gives a number to another group only when the first can never be stored', async () => {
    const stream = await AuditStream.open(proxy.url, bench.pool, {
      instanceId: '00000000-0000-4000-8000-000000000000',
    });
    const epoch = await getEpoch(bench);
    const batch = (id: string, wanted: boolean) => ({
      lines: makeLine(id).line,
      entries: 1,
      epoch,
      isWanted: () => wanted,
    });
    proxy.arm('late', insert);
    assert.deepEqual(await stream.store(batch('given up', false)), { result: 'failed' });
    assert.equal((await stream.store(batch('instead', true))).result, 'stored');
    proxy.arm('after', insert);
    assert.equal((await stream.store(batch('happened', false))).result, 'stored');
    await sleep(400);
    const ids = await checkOnce(bench, ['instead', 'happened']);
    assert.ok(!ids.includes('given up'));
    await checkChains(bench);
    await stream.close();
  });

  it('acknowledges writes whose commit was answered into the void, and runs none twice', async () => {
    const log = await open(proxy.url);
    const commit = 'commit\0'; // the statement: the word also stands in others, in the name of a setting
    for (const [id, fault, marker, stored] of [
      ['last answer lost', 'after', commit, true],
      ['last message lost', 'before', commit, false],
      ['last message late', 'late', commit, false],
      ['entry lost', 'before', insert, false],
      ['answer to entry lost', 'after', insert, false],
    ] as const) {
      const epoch = await getEpoch(bench);
      let runs = 0;
      proxy.arm(fault, marker);
      const append = log.append([makeLine(id)], epoch, async (tx) => {
        runs += 1;
        await tx.query(raise);
      });
      if (stored) await append;
      else await assert.rejects(append, { code: 'audit_unavailable' });
      await sleep(fault === 'late' ? 400 : 0);
      assert.equal(runs, 1);
      assert.equal((await getEpoch(bench)).n, stored ? epoch.n + 1 : epoch.n, id);
      assert.equal((await checkOnce(bench, [])).includes(id), stored);
    }
    await log.append([makeLine('after broken writes')], await getEpoch(bench));
    await checkChains(bench);
  });

  it('finds a group refused when the epoch moved while its connection was lost', async () => {
    const log = await open(proxy.url);
    const epoch = await getEpoch(bench);
    proxy.arm('late', insert);
    const append = log.append([makeLine('moved')], epoch);
    await bench.owner.query(raise);
    await assert.rejects(append, { name: 'StaleEpoch' });
    await log.append([makeLine('moved on')], await getEpoch(bench));
    await sleep(400);
    assert.ok(!(await checkOnce(bench, ['moved on'])).includes('moved'));
    await checkChains(bench);
  });
});
