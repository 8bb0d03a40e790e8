/**
 * Every external write of a run is broken twice: failed and not stored, failed but stored. Whatever fails is tried again,
 * as the workers do, and in the end it is as if nothing had failed. FAULTS=all breaks every pair of writes, too.
 */
import assert from 'node:assert/strict';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { indexToken, normalise } from '../../src/crypto/blind-index.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges, listProgress, releaseForgotten } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { startAdoption, startDue } from '../../src/rotation/start.ts';
import { findRun, listRuns, listUnfinished, type Run } from '../../src/rotation/store.ts';
import type { Service } from '../../src/service.ts';
import { Faults, openFaultyShop, type Fault, type Mode } from './faulty.ts';
import { beReady, openBench, openFor, sealFor, skipWaits, type Bench } from './support.ts';
import { describeLong } from '../support/long.ts';

const rows = 30;
const columns = ['ssn', 'bank', 'salary'] as const;
const modes: readonly Mode[] = ['lost', 'unheard'];
const settleMaxMs = 10_000;

type Column = (typeof columns)[number];

function valueOf(column: Column, id: number): string | null {
  if (id % 10 === 0) return null;
  return id % 11 === 0 ? '' : `${column} 536-22-${id}`;
}

describeLong('a run whose writes fail', () => {
  let bench: Bench;
  let shop: Service;
  let faults: Faults;
  let closeShop: () => void;

  async function open(): Promise<void> {
    bench = await openBench();
    faults = new Faults();
    ({ shop, close: closeShop } = await openFaultyShop(bench.service, faults));
    const ids = Array.from({ length: rows }, (_, i) => i + 1);
    await bench.owner.query(
      `insert into demo.employees (id, tenant, name) select id, 'acme', 'n' from unnest($1::bigint[]) id`,
      [ids],
    );
    await putPlaintext();
    await settle(undefined);
  }
  async function close(): Promise<void> {
    closeShop();
    await bench.close();
  }
  before(open);
  after(close);

  async function putPlaintext(): Promise<void> {
    const ids = Array.from({ length: rows }, (_, i) => i + 1);
    await bench.owner.query(
      `update demo.employees e set ssn = u.ssn, ssn_eq = null, bank = u.bank, salary = u.salary
       from unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) as u (id, ssn, bank, salary) where e.id = u.id`,
      [ids, ...columns.map((column) => ids.map((id) => valueOf(column, id)))],
    );
  }

  /** What throws must be a fault's doing: nothing else may go wrong. */
  async function attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
    const before = faults.fired.length;
    try {
      return await work();
    } catch (error) {
      if (faults.fired.length === before) throw error;
      return undefined;
    }
  }

  /** What a tick of the workers does, and their jobs; and what time brings: instances are ready, waits are over. */
  async function tick(): Promise<void> {
    await attempt(() => startDue(shop));
    await attempt(() => startAdoption(shop, true));
    for (const run of await listUnfinished(bench.owner)) {
      while ((await attempt(() => advance(shop, run.id))) === true);
      await skipWaits(bench.owner, run.id);
    }
    await beReady(bench.owner);
    await attempt(() => releaseForgotten(shop.pool, shop.instanceId, []));
    for (const range of await listFreeRanges(bench.owner)) await attempt(() => workRange(shop, range, () => false));
  }

  /** Ticks until a run that was not there `before` is done and none is under way. */
  async function settle(before: string | undefined): Promise<Run> {
    const deadline = performance.now() + settleMaxMs;
    for (;;) {
      await tick();
      const [newest] = await listRuns(bench.owner, { limit: 1 });
      if (newest !== undefined && newest.id !== before && newest.phase === 'done') return newest;
      assert.equal(newest?.blocked, undefined);
      assert.ok(
        performance.now() < deadline,
        `the run ends, and is ${newest?.phase} after: ${faults.fired.join(', ')}`,
      );
    }
  }

  async function checkTable(expected: readonly Column[]): Promise<void> {
    await bench.service.keyring.refresh();
    const { families } = bench.service.keyring.state;
    const found = await bench.owner.query<Record<Column | 'id' | 'ssn_eq', string | null>>(
      'select id, ssn, ssn_eq, bank, salary from demo.employees order by id',
    );
    assert.equal(found.rows.length, rows);
    const active = families.get('ssn')!.active!;
    const { normalise: how, indexes } = families.get('ssn')!.versions.get(active)!;
    const key = await bench.service.keyring.getOrMake('acme', 'ssn', active);
    const place = { tenant: 'acme', table: 'demo.employees', column: 'ssn', index: 'eq', bits: indexes[0]!.bits };
    for (const row of found.rows) {
      for (const column of expected) {
        const want = valueOf(column, Number(row.id));
        const text = row[column];
        if (want === null || text === null) {
          assert.equal(text, want);
          continue;
        }
        assert.ok(text.startsWith(`fe1.${column}.${families.get(column)!.active}.`), `${column} of row ${row.id}`);
        assert.equal(await openFor(bench.service, column, row.id!, text), want);
      }
      const value = valueOf('ssn', Number(row.id));
      const token = value === null ? undefined : indexToken(key, active, place, normalise(how, value)!);
      assert.equal(row.ssn_eq, token ?? null, `the token of row ${row.id}`);
    }
  }

  async function checkVersions(family: string): Promise<void> {
    const { rows: versions } = await bench.owner.query<{ version: number; state: string }>(
      'select version, state from fieldkeep.key_versions where family = $1 order by version',
      [family],
    );
    const last = versions.length;
    assert.deepEqual(
      versions,
      versions.map((_, i) => ({ version: i + 1, state: i + 1 === last ? 'active' : 'decrypt-only' })),
    );
  }

  async function checkRun({ id, pass }: Run): Promise<void> {
    const { rows: ranges } = await bench.owner.query<{ pass: number; open: number }>(
      `select pass, count(*) filter (where finished_at is null)::int as open
       from fieldkeep.rotation_ranges where rotation = $1 group by pass order by pass`,
      [id],
    );
    assert.deepEqual(ranges, [{ pass: 1, open: 0 }]);
    assert.equal(pass, 1);
    for (const { column, total, done, failed } of await listProgress(bench.owner, id)) {
      assert.ok(done <= total, `${done} of ${total} values of ${column}`);
      assert.equal(failed, 0);
    }
  }

  /** No step is told twice, and at no moment are there more results than intents. */
  async function checkAudit({ id }: Run): Promise<void> {
    await unfoldAcknowledged(bench.service.pool);
    const { rows: entries } = await bench.owner.query<{ line: string }>(
      'select line from fieldkeep.audit_entries where line like $1 order by index',
      [`% ${id}"%`],
    );
    const told = entries.map(({ line }) => JSON.parse(line) as { purpose: string; count?: number });
    const steps = told.map(({ purpose }) => purpose.replace(/ of \w+ [0-9a-f-]+$/, ''));
    const phases = steps.filter((step) => step !== 'intent' && step !== 'result');
    assert.deepEqual(phases, [...new Set(phases)]);
    assert.equal(phases.at(-1), 'end');
    let open = 0;
    let [intended, changed] = [0, 0];
    for (const [i, step] of steps.entries()) {
      if (step === 'intent') [open, intended] = [open + 1, intended + told[i]!.count!];
      if (step === 'result') [open, changed] = [open - 1, changed + told[i]!.count!];
      assert.ok(open >= 0 && changed <= intended, `entry ${i} of ${steps.join(', ')}`);
    }
    assert.ok(intended > 0);
  }

  /** Some rows are of the version before: a range then has two steps, and the second intent goes with the first result. */
  async function putBack(): Promise<void> {
    const version = bench.service.keyring.state.families.get('ssn')!.active! - 1;
    if (version < 1) return;
    const key = await bench.service.keyring.getOrMake('acme', 'ssn', version);
    for (const id of [3, 4, 5]) {
      const envelope = sealFor(key, version, 'ssn', String(id), valueOf('ssn', id)!);
      await bench.owner.query('update demo.employees set ssn = $2 where id = $1', [id, envelope]);
    }
  }

  /** One run with these faults. Answers how many of them it met. */
  async function runWith(kind: Run['kind'], wanted: readonly Fault[]): Promise<number> {
    const [last] = await listRuns(bench.owner, { limit: 1 });
    if (kind === 'adoption') await putPlaintext();
    else await putBack();
    if (kind === 'rotation') {
      await bench.owner.query(`update fieldkeep.key_families set next_rotation_at = now() where family = 'ssn'`);
    }
    faults.arm(...wanted);
    const run = await settle(last?.id);
    const met = faults.fired.length;
    const what = faults.fired.join(', ');
    faults.arm();
    try {
      assert.equal(run.kind, kind);
      assert.equal((await listRuns(bench.owner, { limit: 2 }))[1]?.id, last?.id, 'one run was started');
      await checkTable(kind === 'rotation' ? ['ssn'] : columns);
      for (const family of columns) await checkVersions(family);
      await checkRun((await findRun(bench.owner, run.id))!);
      await checkAudit(run);
    } catch (error) {
      throw new Error(`after ${what}`, { cause: error });
    }
    return met;
  }

  for (const kind of ['rotation', 'adoption'] as const) {
    it(`ends as if nothing had failed: ${kind}`, async () => {
      let at = 1;
      for (let met = 1; met > 0; at += 1) {
        met = 0;
        for (const mode of modes) met += await runWith(kind, [{ at, mode }]);
      }
      console.log(`      ${at - 2} writes, each broken twice`);
      assert.ok(at > 15);
    }).timeout(120_000);
  }

  if (process.env.FAULTS === 'all') {
    it('ends as if nothing had failed: rotation, two writes', async () => {
      const pairs = modes.flatMap((first) => modes.map((second) => [first, second] as const));
      for (const [first, second] of pairs) {
        for (let at = 1, met = 1; met > 0; at += 1) {
          met = 0;
          await close(); // a count looks for every version that there ever was
          await open();
          for (let then = at + 1, both = 2; both === 2; then += 1) {
            both = await runWith('rotation', [
              { at, mode: first },
              { at: then, mode: second },
            ]);
            met = Math.max(met, both);
          }
        }
      }
    }).timeout(3_600_000);
  }
});
