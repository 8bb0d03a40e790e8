/** Runs that are paused or cancelled: at every step the word counts, and what follows is as if they had never begun. */
import assert from 'node:assert/strict';
import { newRequestId } from '../../src/http/request-id.ts';
import { bindOperations } from '../../src/operations/all.ts';
import { advance } from '../../src/rotation/run.ts';
import { nextVersion, startDue } from '../../src/rotation/start.ts';
import { findRun } from '../../src/rotation/store.ts';
import { replace } from './intercept.ts';
import { adopt, beginRotation, drive, fill, isSettled, openBench, rotate, skipWaits, type Bench } from './support.ts';

describe('a run that is held', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
    await fill(bench.owner, 20, (id) => `536-22-${id}`);
    await adopt(bench.service);
  });
  afterEach(() => bench.close());

  const say = (verb: 'pauseRotation' | 'resumeRotation' | 'cancelRotation', id: string) =>
    bindOperations(bench.service)[verb]({
      ...{
        requestId: newRequestId(),
        principal: { person: 'operator', system: true },
        body: {},
        params: { id },
        query: {},
      },
      deadline: performance.now() + 10_000,
    });
  const stateOf = async (version: number) => {
    await bench.service.keyring.refresh();
    return bench.service.keyring.state.families.get('ssn')!.versions.get(version)?.state;
  };
  const find = async (id: string) => (await findRun(bench.service.pool, id))!;

  it('goes no further while it is paused, in whatever phase, and then on to its end', async () => {
    const id = await beginRotation(bench.service);
    await say('pauseRotation', id);
    for (let n = 0; n < 3; n += 1) await advance(bench.service, id);
    assert.deepEqual([(await find(id)).phase, await stateOf(2)], ['paused', undefined]);
    await say('resumeRotation', id);
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, id);
    await say('pauseRotation', id);
    for (let n = 0; n < 3; n += 1) await advance(bench.service, id);
    assert.equal((await find(id)).plannedAt, undefined);
    await say('resumeRotation', id);
    assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
  });

  it('activates nothing when the word comes while the new version is made ready', async () => {
    const id = await beginRotation(bench.service);
    // Between the last look at the run and the commit that activates, somebody cancels.
    const { audit } = bench.service;
    const append: typeof audit.append = async (records, ...rest) => {
      if (records.some(({ line }) => line.includes('activation of'))) await say('cancelRotation', id);
      return await audit.append(records, ...rest);
    };
    const shop = replace(bench.service, { audit: replace(audit, { append }) });
    await assert.rejects(
      drive(shop, id, (run) => run.activatedAt !== undefined),
      { code: 'conflict' },
    );
    assert.deepEqual([await stateOf(1), await stateOf(2)], ['active', 'pending']);
    assert.equal((await find(id)).phase, 'cancelled');
  });

  it('leaves a version that is taken up by the next rotation, when it was cancelled before that was active', async () => {
    const id = await beginRotation(bench.service);
    await bench.owner.query(
      `insert into fieldkeep.instances (id, heartbeat_at) values (gen_random_uuid(), now() + interval '1 hour')`,
    ); // somebody who is never ready
    await drive(bench.service, id, (run) => run.pendingAt !== undefined);
    await say('cancelRotation', id);
    await bench.owner.query(`delete from fieldkeep.instances where heartbeat_at > now() + interval '1 min'`);
    assert.deepEqual([await stateOf(2), nextVersion(bench.service, 'ssn')], ['pending', 2]);
    const run = await rotate(bench);
    assert.deepEqual([run.phase, run.version, await stateOf(2)], ['done', 2, 'active']);
  });

  it('is followed by a rotation that takes what it left, when it was cancelled half-way', async () => {
    const id = await beginRotation(bench.service);
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await say('cancelRotation', id);
    const run = await rotate(bench);
    assert.deepEqual([run.phase, run.version], ['done', 3]);
    const { rows } = await bench.owner.query('select distinct fieldkeep.fe_version(ssn) as v from demo.employees');
    assert.deepEqual(rows, [{ v: 3 }]);
  });

  it('is not started again by its schedule when it was cancelled, and in a quarter it is', async () => {
    await bench.owner.query(`update fieldkeep.key_families set next_rotation_at = now() where family = 'ssn'`);
    const [id] = await startDue(bench.service);
    await say('cancelRotation', id!);
    assert.deepEqual(await startDue(bench.service), []);
    await bench.owner.query(
      `update fieldkeep.key_families set next_rotation_at = next_rotation_at - interval '3 months 1 day' where family = 'ssn'`,
    );
    assert.equal((await startDue(bench.service)).length, 1);
  });
});
