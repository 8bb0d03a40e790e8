import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatEntry, formatItem, itemsRoot, type Entry, type Item } from '../../src/audit/entry.ts';
import { StaleEpoch, type AuditLog } from '../../src/audit/log.ts';
import { startSequencer } from '../../src/audit/sequencer.ts';
import { findEntries, unfold, waitOutIntake, type EntryFilter } from '../../src/audit/store.ts';
import {
  checkOnce,
  getEpoch,
  killBackends,
  makeEntry,
  makeLine,
  openBench,
  openLog,
  openSession,
  readLines,
  type Bench,
} from './support.ts';

const raise = 'select fieldkeep.raise_epoch()';
const byHand = `insert into fieldkeep.audit_intake (stream, seq, lines, entries, prev_hash, hash)
  select $1, 1, $2, 1, sha256(''), sha256('') from fieldkeep.epoch where n = $3`;

async function find(bench: Bench, filter: EntryFilter): Promise<string[]> {
  const { items } = await findEntries(bench.pool, filter, 1000);
  return items.map(({ line }) => (JSON.parse(line) as Entry).requestId);
}

describe('unfolding', () => {
  let bench: Bench;
  let log: AuditLog;

  beforeEach(async () => {
    bench = await openBench();
    log = await openLog(bench);
  });

  afterEach(async () => {
    await log.close();
    await bench.close();
  });

  it('takes whole groups up to its limit, the streams by time of commit and each in its own order', async () => {
    const epoch = await getEpoch(bench);
    const other = await openLog(bench);
    for (let n = 0; n < 5; n += 1) {
      await log.append([makeLine(`a${n}`), makeLine(`A${n}`)], epoch);
      await other.append([makeLine(`b${n}`)], epoch);
    }
    await other.close();
    assert.equal(await unfold(bench.pool, 1), 2); // one group always
    assert.equal(await unfold(bench.pool, 4), 4);
    const ids = await checkOnce(bench, []);
    assert.deepEqual(ids, 'a0 A0 b0 a1 A1 b1 a2 A2 b2 a3 A3 b3 a4 A4 b4'.split(' '));
    assert.equal(await unfold(bench.pool, 100), 0);
  });

  it('is exactly once by several at once, beside an idle transaction, while unfolders are killed', async function () {
    this.timeout(60_000);
    const epoch = await getEpoch(bench);
    const idle = await openSession(bench);
    await idle.query('begin isolation level repeatable read');
    await idle.query('select count(*) from fieldkeep.audit_intake');
    await idle.query(`insert into fieldkeep.audit_streams (instance) values (gen_random_uuid())`); // holds an xid
    const failures: unknown[] = [];
    const sequencers = Array.from({ length: 4 }, () => startSequencer(bench.pool, (error) => failures.push(error)));
    const ids: string[] = [];
    for (let n = 0; n < 60; n += 1) {
      const batch = Array.from({ length: 50 }, (_, i) => `u-${n}-${i}`);
      await Promise.all(batch.map((id) => log.append([makeLine(id)], epoch)));
      ids.push(...batch);
      for (const sequencer of sequencers) sequencer.wake();
      if (n % 3 === 0) {
        await sleep(Math.random() * 10);
        await killBackends(bench, 'fieldkeep test');
      }
    }
    for (const sequencer of sequencers) await sequencer.stop();
    assert.equal((await checkOnce(bench, ids)).length, ids.length);
    assert.ok(failures.length > 0, 'some unfolder was killed at work');
    await idle.end();
  });

  it('is done by the sequencer without being asked', async () => {
    const sequencer = startSequencer(bench.pool, () => undefined);
    await log.append([makeLine('alone')], await getEpoch(bench));
    let count = 0;
    for (let n = 0; n < 200 && count === 0; n += 1) {
      await sleep(10);
      const { rows } = await bench.owner.query<{ n: number }>('select count(*)::int as n from fieldkeep.audit_entries');
      count = rows[0]!.n;
    }
    await sequencer.stop();
    assert.equal(count, 1);
  });

  it('keeps every line byte for byte, whatever its texts hold', async () => {
    const epoch = await getEpoch(bench);
    const odd = ['\u0000', 'a\\u0000b', '\\', '"', '\t\n\u2028', 'é€😀', "'; drop table x; --", '{"rowDigest":"1.no"}'];
    const lines = odd.map((purpose, i) => makeLine(`odd-${i}`, { purpose, tenant: `t${purpose}` }).line);
    for (const line of lines) await log.append([{ line }], epoch);
    assert.deepEqual(await readLines(bench), lines);
    const found = await find(bench, { agent: 'payroll-agent' });
    assert.equal(found.length, odd.length, 'every one of them can be searched');
  });
});

describe('the fence', () => {
  let bench: Bench;

  before(async () => {
    bench = await openBench();
  });

  after(() => bench.close());

  it('waits for groups that are being stored, and not for later ones', async () => {
    const epoch = await getEpoch(bench);
    const [early, late] = [await openSession(bench), await openSession(bench)];
    await early.query('begin');
    await early.query(byHand, [900, makeLine('early').line, epoch.n]);
    await bench.owner.query(raise);
    let waited = false;
    const waiting = waitOutIntake(bench.pool).then(() => (waited = true));
    await sleep(100);
    await late.query('begin');
    await late.query(byHand, [901, makeLine('late').line, epoch.n + 1]);
    await sleep(50);
    assert.equal(waited, false);
    await early.query('commit');
    await waiting;
    await late.query('rollback');
    await early.end();
    await late.end();
    await waitOutIntake(bench.pool);
  });

  it('lets nothing of an older epoch in once it was waited out', async () => {
    const logs = await Promise.all([openLog(bench), openLog(bench)]);
    let stopped = false;
    let stale = 0;
    async function appendForever(log: AuditLog, who: number): Promise<void> {
      let epoch = await getEpoch(bench);
      for (let n = 0; !stopped; n += 1) {
        try {
          await log.append([makeLine(`epoch ${epoch.n} ${who} ${n}`)], epoch);
        } catch (error) {
          if (!(error instanceof StaleEpoch)) throw error;
          stale += 1;
          epoch = await getEpoch(bench);
        }
      }
    }
    const work = Promise.all(Array.from({ length: 16 }, (_, who) => appendForever(logs[who % 2]!, who)));
    const count = async (epoch: number) => {
      const { rows } = await bench.owner.query<{ n: number }>(
        `select count(*)::int as n from fieldkeep.audit_intake where lines like $1`,
        [`%epoch ${epoch} %`],
      );
      return rows[0]!.n;
    };
    for (let n = 0; n < 15; n += 1) {
      const old = (await getEpoch(bench)).n;
      await bench.owner.query(raise);
      await waitOutIntake(bench.pool);
      const before = await count(old);
      await sleep(20);
      assert.equal(await count(old), before);
    }
    stopped = true;
    await work;
    assert.ok(stale > 0);
    for (const log of logs) await log.close();
  });
});

describe('finding entries', () => {
  let bench: Bench;
  let log: AuditLog;
  const item = (digest: string, more: Partial<Item> = {}): Item => ({
    ...{ outcome: 'ok', class: 'ssn', view: 'full', table: 'demo.employees', column: 'ssn', rowDigest: digest },
    ...more,
  });
  const batchItems: Item[] = [
    item('1.row7', { ref: 'a', view: 'last4' }),
    item('1.row8', { ref: '"rowDigest":"1.row9"', class: 'bank', outcome: 'denied', code: 'forbidden' }),
  ];

  before(async () => {
    bench = await openBench();
    log = await openLog(bench);
    const epoch = await getEpoch(bench);
    const at = (minute: number) => `2026-03-01T12:0${minute}:00.000Z`;
    const { rowDigest: _, class: __, view: ___, ...plain } = makeEntry('batch', { time: at(2), tenant: 'beta' });
    const lines = batchItems.map(formatItem);
    const batch: Entry = { ...plain, outcome: 'partial', count: 2, itemsRoot: itemsRoot(lines) };
    await log.append(
      [
        makeLine('one', { time: at(0), rowDigest: '1.row7', class: 'salary', view: 'bucket' }),
        makeLine('two', { time: at(1), agent: 'cx-agent', person: 'ana', action: 'match', class: 'ssn' }),
        { line: formatEntry(batch), items: lines.join('\n') },
        makeLine('four', { time: at(3), outcome: 'denied', decision: 'deny', class: 'ssn', rowDigest: '1.row9' }),
      ],
      epoch,
    );
  });

  after(async () => {
    await log.close();
    await bench.close();
  });

  it('answers what was acknowledged before the question, newest first', async () => {
    assert.deepEqual(await find(bench, {}), ['four', 'batch', 'two', 'one']);
    await log.append([makeLine('five', { tenant: 'gamma' })], await getEpoch(bench));
    assert.deepEqual(await find(bench, { tenant: 'gamma' }), ['five']);
  });

  const cases: [EntryFilter, string[]][] = [
    [{ tenant: 'beta' }, ['batch']],
    [{ tenant: 'acme', agent: 'cx-agent' }, ['two']],
    [{ person: 'ana' }, ['two']],
    [{ action: 'match' }, ['two']],
    [{ requestId: 'two' }, ['two']],
    [{ requestId: 'none' }, []],
    [{ from: '2026-03-01T12:01:00Z', to: '2026-03-01T13:03:00+01:00' }, ['batch', 'two']],
    [{ class: 'ssn' }, ['four', 'batch', 'two']],
    [{ class: 'bank', tenant: 'beta' }, ['batch']],
    [{ view: 'last4' }, ['batch']],
    [{ view: 'bucket' }, ['one']],
    [{ outcome: 'denied' }, ['four', 'batch']],
    [{ outcome: 'partial' }, ['batch']],
    [{ rowDigest: '1.row7' }, ['batch', 'one']],
    [{ rowDigest: '1.row8' }, ['batch']],
    [{ rowDigest: '1.row9' }, ['four']],
    [{ rowDigest: '1.row7', class: 'salary' }, ['one']],
  ];
  for (const [filter, expected] of cases) {
    it(`by ${JSON.stringify(filter)}`, async () => {
      assert.deepEqual(await find(bench, filter), expected);
    });
  }

  it('pages without gap or overlap while the log grows', async () => {
    const epoch = await getEpoch(bench);
    await log.append(
      Array.from({ length: 25 }, (_, i) => makeLine(`page-${i}`, { tenant: 'pages' })),
      epoch,
    );
    const seen: number[] = [];
    let cursor: string | undefined;
    do {
      const page = await findEntries(bench.pool, { tenant: 'pages' }, 10, cursor);
      seen.push(...page.items.map(({ index }) => index));
      cursor = page.nextCursor;
      await log.append([makeLine('newer', { tenant: 'pages' })], epoch);
    } while (cursor !== undefined);
    assert.equal(seen.length, 25);
    assert.deepEqual(
      seen,
      seen.map((_, i) => seen[0]! - i),
    );
    await assert.rejects(findEntries(bench.pool, {}, 10, '1; drop'), { code: 'request_invalid' });
  });

  it("keeps a batch's items, which its itemsRoot commits to", async () => {
    const { items } = await findEntries(bench.pool, { requestId: 'batch' }, 1);
    const { rows } = await bench.pool.query<{ items: string }>(
      'select items from fieldkeep.audit_items where index in ($1, $1::bigint + 1)',
      [items[0]!.index],
    );
    const lines = rows.flatMap((row) => row.items.split('\n'));
    assert.deepEqual(lines, batchItems.map(formatItem));
    assert.equal(itemsRoot(lines), (JSON.parse(items[0]!.line) as Entry).itemsRoot);
  });
});
