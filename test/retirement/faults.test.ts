/**
 * Every external write on a version's way out is broken twice: failed and not stored, failed but stored. Whatever fails is
 * tried again, as the workers do, and in the end it is as if nothing had failed.
 */
import assert from 'node:assert/strict';
import type { Service } from '../../src/service.ts';
import { Faults, openFaultyShop, type Mode } from '../rotation/faulty.ts';
import { agree, policyOf } from './retiring.ts';
import { checkEnd, checkTruth, driveRuns, isGuarded, passTime, rows, standingOf, tick, valueOf } from './end.ts';
import { adopt, beginRotation, fill, openBench, type Bench } from '../rotation/support.ts';

const modes: readonly Mode[] = ['lost', 'unheard'];
const settleMaxMs = 20_000;

describe('a version on its way out, whose writes fail', () => {
  let bench: Bench;
  let shop: Service;
  let faults: Faults;
  let closeShop: () => void;
  before(async () => {
    bench = await openBench({ policy: policyOf() });
    await fill(bench.owner, rows, valueOf);
    await adopt(bench.service);
    faults = new Faults();
    ({ shop, close: closeShop } = await openFaultyShop(bench.service, faults));
  });
  after(async () => {
    closeShop();
    await bench.close();
  });

  /** What throws must be a fault's doing: nothing else may go wrong. */
  async function attempt(work: () => Promise<unknown>): Promise<void> {
    const before = faults.fired.length;
    try {
      await work();
    } catch (error) {
      if (faults.fired.length === before) throw error;
    }
  }

  async function until(what: string, isThere: () => Promise<boolean>): Promise<void> {
    const deadline = performance.now() + settleMaxMs;
    while (!(await isThere())) {
      await passTime(bench.owner);
      await attempt(() => tick(shop));
      await driveRuns(bench.service, bench.owner);
      assert.ok(performance.now() < deadline, `${what}, after ${faults.fired.join(', ')}`);
    }
  }

  /** Rotates, with nothing failing. Answers the version that was followed. */
  async function follow(): Promise<number> {
    faults.arm();
    const id = await beginRotation(bench.service);
    const isDone = async () =>
      (await bench.owner.query('select from fieldkeep.rotations where id = $1 and done_at is not null', [id])).rowCount;
    while ((await isDone()) === 0) await driveRuns(bench.service, bench.owner);
    await bench.service.keyring.refresh();
    return bench.service.keyring.state.families.get('ssn')!.active! - 1;
  }

  /** One version's way out with a fault at write `at`, in guarding or in destroying. Answers how many faults it met. */
  async function runWith(stage: 'guard' | 'destroy', at: number, mode: Mode): Promise<number> {
    const version = await follow();
    if (stage === 'guard') faults.arm({ at, mode });
    await until('the guard stands', () => isGuarded(bench.owner, version + 1));
    if (stage === 'guard') await attempt(() => tick(shop));
    let met = faults.fired.length;
    faults.arm();
    await agree(bench.service, bench.owner, { version });
    if (stage === 'destroy') faults.arm({ at, mode });
    await until('it is certified', async () => {
      const isThere = (await bench.service.rootKeys.findOldest('ssn')) <= version;
      await checkTruth(bench.service, bench.owner, version, isThere);
      return (await standingOf(bench.service, bench.owner, version)).signed;
    });
    met += faults.fired.length;
    const what = faults.fired.join(', ');
    faults.arm();
    try {
      await checkEnd(bench.service, bench.owner, version);
    } catch (error) {
      throw new Error(`after ${what}`, { cause: error });
    }
    return met;
  }

  for (const [stage, least] of [
    ['guard', 8],
    ['destroy', 12],
  ] as const) {
    it(`comes to one end as if nothing had failed: ${stage}`, async () => {
      let at = 1;
      for (let met = 1; met > 0; at += 1) {
        met = 0;
        for (const mode of modes) met += await runWith(stage, at, mode);
      }
      console.log(`      ${at - 2} writes, each broken twice`);
      assert.ok(at > least, `${at}`);
    }).timeout(180_000);
  }
});
