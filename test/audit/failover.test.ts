/** The audit log beside a database that fails over to a standby that was behind: nothing that is gone goes unseen. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Setback } from '../../src/audit/compare.ts';
import { AuditLog, StaleEpoch } from '../../src/audit/log.ts';
import { countLost } from '../../src/audit/loss-store.ts';
import { startSequencer } from '../../src/audit/sequencer.ts';
import { findEntries } from '../../src/audit/store.ts';
import { openPool } from '../../src/db.ts';
import { readEpoch } from '../../src/keys/epoch-store.ts';
import { openFailoverServer, type FailoverServer } from '../support/failover.ts';
import { checkChains, checkOnce, getEpoch, killBackends, makeLine, openBench, raise, type Bench } from './support.ts';

const instanceId = '00000000-0000-4000-8000-000000000001';

async function waitFor(what: string, isSo: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!(await isSo())) {
    assert.ok(performance.now() < deadline, what);
    await sleep(50);
  }
}

/** Appends one line after the other, each a group, under the epoch that stands. */
async function appendEach(log: AuditLog, bench: Bench, ids: readonly string[], purpose = 'x'): Promise<void> {
  for (const id of ids) await log.append([makeLine(id, { purpose })], await getEpoch(bench));
}

const number = (name: string, count: number) => Array.from({ length: count }, (_, n) => `${name}-${n + 1}`);

describe('audit log, a failover that loses commits', function () {
  this.timeout(120_000);
  let server: FailoverServer;
  let bench: Bench;
  let setbacks: Setback[];
  const logs: AuditLog[] = [];

  async function open(id = instanceId): Promise<AuditLog> {
    const onSetback = (setback: Setback) => setbacks.push(setback);
    const log = await AuditLog.open(server.workerUrl, bench.pool, { instanceId: id, onSetback });
    logs.push(log);
    return log;
  }

  beforeEach(async () => {
    server = await openFailoverServer();
    setbacks = [];
    const pool = openPool(server.workerUrl, { max: 4, name: 'test' });
    const owner = openPool(server.ownerUrl, { max: 4, name: 'test owner' });
    bench = { ...server, pool, owner, close: () => Promise.resolve() };
  });
  afterEach(async () => {
    for (const log of logs.splice(0)) await log.close();
    await bench.pool.end();
    await bench.owner.end();
    await server.drop();
  });

  it('stores again what the standby had not got, also when nobody writes anything more', async () => {
    const log = await open();
    await appendEach(log, bench, number('kept', 5));
    await server.leaveBehind();
    await waitFor('connected again', () =>
      killBackends(bench, 'no such name').then(
        () => true,
        () => false,
      ),
    );
    await appendEach(log, bench, number('gone', 7));
    await checkOnce(bench, number('gone', 7));
    await server.promote();
    await waitFor('stored again', () => log.losses.resent > 0);
    assert.deepEqual(log.losses, { lost: 0, resent: 7, diverged: 0 });
    assert.deepEqual(
      setbacks.map(({ kind }) => kind),
      ['behind'],
    );
    await appendEach(log, bench, ['after']);
    const ids = await checkOnce(bench, [...number('kept', 5), ...number('gone', 7), 'after']);
    assert.equal(ids.length, 13);
    await checkChains(bench); // in the same stream, byte for byte
  });

  it('records what nobody has any more, begins a new stream, and readers go on', async () => {
    const log = await open();
    await appendEach(log, bench, ['before']);
    await server.leaveBehind();
    const large = 'x'.repeat(256 * 1024);
    await appendEach(log, bench, number('large', 12), large); // more than is kept
    const { stream } = log;
    await server.promote();
    await waitFor('recorded', () => log.losses.lost > 0);
    await appendEach(log, bench, ['after']);
    assert.notEqual(log.stream, stream);
    const { lost } = setbacks[0]!;
    assert.equal(lost!.first, 2);
    const [count, again] = [lost!.last - 1, 13 - lost!.last];
    assert.ok(count > 0 && again > 0);
    assert.deepEqual(log.losses, { lost: count, resent: again, diverged: 0 });
    assert.equal(await countLost(bench.pool), count);
    const { items } = await findEntries(bench.pool, {}, 100);
    const found = items.map(({ line }) => JSON.parse(line) as { requestId: string; code?: string; count?: number });
    const told = found.filter(({ code }) => code === 'audit_lost');
    assert.deepEqual(
      told.map((entry) => entry.count),
      [count],
    );
    const ids = found.filter((entry) => !told.includes(entry)).map(({ requestId }) => requestId);
    assert.deepEqual(ids.sort(), ['after', 'before', ...number('large', 12).slice(count)].sort());
    // A second failover, to the same standby, takes it all again.
    await server.promote();
    const findAfter = async () => (await findEntries(bench.pool, { requestId: 'after' }, 10)).items.length;
    await waitFor('stored again', () =>
      findAfter()
        .then((n) => n > 0)
        .catch(() => false),
    );
    assert.equal(await findAfter(), 1);
    assert.equal(await countLost(bench.pool), count);
  });

  it('gives up the number of a stream that was lost, which another process may have now', async () => {
    await server.leaveBehind();
    const log = await open();
    await appendEach(log, bench, number('first', 3));
    const { stream } = log;
    // It hears of the failover only after the other process has its number.
    const paused = log.append([makeLine('paused')], await getEpoch(bench));
    await paused;
    await server.promote();
    const other = await open('00000000-0000-4000-8000-000000000002');
    await waitFor('moved', () => log.losses.resent > 0);
    await appendEach(other, bench, number('other', 3));
    await appendEach(log, bench, ['after']);
    assert.equal(setbacks[0]!.kind, 'renumbered');
    assert.notEqual(log.stream, stream);
    assert.notEqual(log.stream, other.stream);
    const ids = await checkOnce(bench, [...number('first', 3), 'paused', ...number('other', 3), 'after']);
    assert.equal(ids.length, 8);
    await checkChains(bench);
  });

  it('refuses an answer computed under a number of the epoch that was given twice', async () => {
    const log = await open();
    await server.leaveBehind();
    await waitFor('connected again', () =>
      readEpoch(bench.pool).then(
        () => true,
        () => false,
      ),
    );
    const lost = await raise(bench);
    await server.promote();
    await waitFor('connected again', () =>
      readEpoch(bench.pool).then(
        () => true,
        () => false,
      ),
    );
    const again = await raise(bench);
    assert.equal(again.n, lost.n, 'the number is given twice');
    assert.notEqual(again.token, lost.token);
    await assert.rejects(log.append([makeLine('stale')], lost), StaleEpoch);
    // Not only because it is another server: the token alone tells them apart.
    await assert.rejects(log.append([makeLine('stale')], { ...lost, server: again.server }), StaleEpoch);
    const writes = async () => Promise.resolve();
    await assert.rejects(log.append([makeLine('stale')], { ...lost, server: again.server }, writes), StaleEpoch);
    await log.append([makeLine('fresh')], again, writes);
    assert.deepEqual(await checkOnce(bench, ['fresh']), ['fresh']);
  });
});

describe('audit log, a stream that others wrote to', function () {
  this.timeout(60_000);
  let bench: Bench;
  let log: AuditLog;
  const setbacks: Setback[] = [];
  const byHand = `insert into fieldkeep.audit_intake (stream, seq, lines, entries, prev_hash, hash, committed_at)
    values ($1, $2, $3, 1, sha256(''), sha256(''), clock_timestamp() - interval '1 minute')`;

  beforeEach(async () => {
    bench = await openBench();
    setbacks.length = 0;
    const onSetback = (setback: Setback) => setbacks.push(setback);
    log = await AuditLog.open(bench.workerUrl, bench.pool, { instanceId, onSetback });
  });
  afterEach(async () => {
    await log.close();
    await bench.close();
  });

  it('is left for a new one, and nothing is stored twice or left out', async () => {
    await appendEach(log, bench, number('ours', 3));
    await bench.owner.query(byHand, [log.stream, 4, makeLine('theirs').line]);
    await appendEach(log, bench, number('more', 3)); // the first of them finds its number taken
    assert.deepEqual(log.losses, { lost: 0, resent: 0, diverged: 1 });
    assert.deepEqual(setbacks[0]!.diverged, { first: 4, last: 4 });
    const lines = await checkOnceBesides(bench, 'audit_diverged', [
      ...number('ours', 3),
      'theirs',
      ...number('more', 3),
    ]);
    assert.equal(lines, 1);
  });

  it('is not passed by unfolding while a gap in it is unexplained, then recorded, and its writer begins another', async () => {
    const lost: unknown[] = [];
    await appendEach(log, bench, number('ours', 2));
    await bench.owner.query(byHand, [log.stream, 5, makeLine('behind the gap').line]);
    const { stream } = log;
    const reading = findEntries(bench.pool, { requestId: 'behind the gap' }, 10);
    await sleep(500);
    const { rows } = await bench.owner.query('select from fieldkeep.audit_unfolded where seq > 2');
    assert.equal(rows.length, 0);
    const sequencer = startSequencer(
      bench.pool,
      () => undefined,
      (loss) => lost.push(loss),
    );
    assert.equal((await reading).items.length, 1, 'the reader waited, and has all');
    await sequencer.stop();
    assert.deepEqual(lost, [{ stream, first: 3, last: 4, reason: 'lost', instance: instanceId }]);
    // Refused once, like an answer under another epoch; it is then computed again.
    await assert.rejects(appendEach(log, bench, ['refused']), StaleEpoch);
    await appendEach(log, bench, number('after', 2));
    assert.notEqual(log.stream, stream, 'nothing is added behind what unfolding has passed');
    await checkOnceBesides(bench, 'audit_diverged', [...number('ours', 2), 'behind the gap', ...number('after', 2)]);
  });

  it('keeps every group acknowledged that was stored before its answer was lost', async () => {
    await appendEach(log, bench, number('a', 20));
    await killBackends(bench, 'fieldkeep audit');
    await appendEach(log, bench, number('b', 20));
    assert.deepEqual([setbacks, log.losses.resent], [[], 0]);
    await checkOnce(bench, [...number('a', 20), ...number('b', 20)]);
    await checkChains(bench);
  });
});

/** As checkOnce, of all entries but those with `code`, of which it answers the number. */
async function checkOnceBesides(bench: Bench, code: string, expected: readonly string[]): Promise<number> {
  const { items } = await findEntries(bench.pool, {}, 1000);
  const entries = items.map(({ line }) => JSON.parse(line) as { requestId: string; code?: string });
  const ids = entries.filter((entry) => entry.code !== code).map(({ requestId }) => requestId);
  assert.deepEqual(ids.sort(), [...expected].sort());
  return entries.length - ids.length;
}
