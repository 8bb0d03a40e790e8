/**
 * A column goes there and back (finish, undo, leave, adoption) while every external write of every step is broken twice:
 * failed and not stored, failed but stored. What fails is tried again, as workers do, and each step ends as if nothing had
 * failed: nothing lost, nothing in two places that should be in one.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { roleOf, transaction } from '../../src/db.ts';
import { setStarted, setUndone } from '../../src/rotation/adoption-store.ts';
import { formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges, releaseForgotten } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { findRun, insertRun } from '../../src/rotation/store.ts';
import type { RunKind } from '../../src/rotation/work.ts';
import type { Service } from '../../src/service.ts';
import { Faults, openFaultyShop, type Mode } from '../rotation/faulty.ts';
import { changePolicy, openBench, openFor, type Bench } from '../rotation/support.ts';
import { describeLong } from '../support/long.ts';

const address = 'demo.employees';
const rows = 12;
const about = { table: address, column: 'ssn_enc', source: 'tax' } as const;
const policy = changePolicy({
  columns: [
    {
      ...{ table: address, key: ['id'], tenant: { column: 'tenant' }, column: 'ssn_enc', class: 'ssn' },
      ...{ from: 'tax', adopt: true, index: [{ name: 'eq', column: 'ssn_eq', bits: 8 }] },
    },
  ],
});
const settleMaxMs = 10_000;

/** Which of source and envelope stand after a step. */
const steps: readonly (readonly [RunKind, boolean, boolean])[] = [
  ['finish', false, true],
  ['undo', true, true],
  ['leave', true, false],
  ['adoption', true, true],
];

const valueOf = (id: number) => (id % 5 === 0 ? null : String(100_000_000 + id));

describeLong('an adoption whose writes fail', () => {
  let bench: Bench;
  let shop: Service;
  let faults: Faults;
  let closeShop: () => void;
  before(async () => {
    bench = await openBench({ policy });
    await bench.owner.query(`
      alter table ${address} add tax numeric, add ssn_enc text;
      create index on ${address} (id) where tax is not null and ssn_enc is null;
      insert into ${address} (id, tenant, name) select n, 'acme', 'n' from generate_series(1, ${rows}) n;
      grant select (tax, ssn_enc), update (tax, ssn_enc) on ${address} to ${roleOf(bench.database.rowsUrl)}`);
    const of = {
      schema: 'demo',
      name: 'employees',
      column: 'ssn_enc',
      source: 'tax',
      indexColumns: ['ssn_eq'],
      bound: ['id', 'tenant'],
    };
    for (const statement of formatTriggers(of)) await bench.owner.query(statement);
    for (let id = 1; id <= rows; id += 1) {
      await bench.owner.query(`update ${address} set tax = $2 where id = $1`, [id, valueOf(id)]);
    }
    faults = new Faults();
    ({ shop, close: closeShop } = await openFaultyShop(bench.service, faults));
    await perform('adoption');
  });
  after(async () => {
    closeShop();
    await bench.close();
  });

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

  async function begin(kind: RunKind): Promise<string> {
    const id = randomUUID();
    await transaction(bench.owner, async (tx) => {
      if (kind === 'adoption') await setStarted(tx, address, 'ssn_enc');
      if (kind === 'undo') await setUndone(tx, address, 'ssn_enc');
      const what = kind === 'adoption' ? {} : { family: 'ssn', ...about };
      assert.ok(await insertRun(tx, { id, kind, ...what, requestedBy: 'test' }));
    });
    shop.catalog = await loadCatalog(bench.service.targets, policy.columns);
    return id;
  }

  async function perform(kind: RunKind): Promise<void> {
    const id = await begin(kind);
    const deadline = performance.now() + settleMaxMs;
    for (;;) {
      while ((await attempt(() => advance(shop, id))) === true);
      await attempt(() => releaseForgotten(shop.pool, shop.instanceId, []));
      for (const range of await listFreeRanges(bench.owner)) await attempt(() => workRange(shop, range, () => false));
      const run = (await findRun(bench.owner, id))!;
      if (run.phase === 'done') return assert.equal(run.failed, 0);
      assert.equal(run.blocked, undefined);
      assert.ok(performance.now() < deadline, `${kind} ends, after: ${faults.fired.join(', ')}`);
    }
  }

  async function check(hasSource: boolean, hasEnvelope: boolean): Promise<void> {
    const found = await bench.owner.query<{
      id: string;
      tax: string | null;
      ssn_enc: string | null;
      ssn_eq: string | null;
    }>(`select id, tax::text, ssn_enc, ssn_eq from ${address} order by id`);
    assert.equal(found.rows.length, rows);
    for (const { id, tax, ssn_enc: envelope, ssn_eq: token } of found.rows) {
      const value = valueOf(Number(id));
      assert.equal(tax, hasSource ? value : null);
      assert.equal(envelope !== null, hasEnvelope && value !== null);
      assert.equal(token !== null, hasEnvelope && value !== null);
      if (envelope !== null) assert.equal(await openFor(bench.service, 'ssn_enc', id, envelope), value);
    }
  }

  it('ends as if nothing had failed, in every step', async () => {
    const writes = new Map<RunKind, number>();
    for (let [at, met] = [1, 1]; met > 0; at += 1) {
      met = 0;
      for (const mode of ['lost', 'unheard'] as const satisfies readonly Mode[]) {
        for (const [kind, hasSource, hasEnvelope] of steps) {
          faults.arm({ at, mode });
          await perform(kind);
          const { fired } = faults;
          faults.arm();
          met += fired.length;
          if (fired.length > 0) writes.set(kind, at);
          await check(hasSource, hasEnvelope).catch((cause: unknown) => {
            throw new Error(`${kind}, after ${fired.join(', ')}`, { cause });
          });
        }
      }
    }
    console.log(`      ${[...writes].map(([kind, n]) => `${kind}: ${n}`).join(', ')} writes, each broken twice`);
    for (const [kind] of steps) assert.ok(writes.get(kind)! > 10, kind);
  }).timeout(120_000);
});
