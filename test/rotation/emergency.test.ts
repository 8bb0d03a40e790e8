/** What an emergency comes to, its transaction, and the worker, who goes on opening what is closed to others. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { StaleEpoch } from '../../src/audit/log.ts';
import { transaction } from '../../src/db.ts';
import type { KeyFamily, KeyVersion, VersionState } from '../../src/keys/version.ts';
import { planEmergency, recordEmergency, type Emergency } from '../../src/rotation/emergency.ts';
import { examineVersion } from '../../src/retirement/evidence.ts';
import { advance } from '../../src/rotation/run.ts';
import { claimRange, insertCheckpoint, LeaseLost, listFreeRanges } from '../../src/rotation/range-store.ts';
import { findRun, findUnfinished, type Run } from '../../src/rotation/store.ts';
import { adopt, beginRotation, drive, fill, isSettled, openBench, openFor, skipWaits, type Bench } from './support.ts';

function family(...states: VersionState[]): KeyFamily {
  const versions = states.map((state, i): [number, KeyVersion] => [
    i + 1,
    {
      ...{ family: 'ssn', version: i + 1, state, transitVersion: i + 1, bind: 'row', indexes: [] },
      createdAt: new Date(0),
    },
  ]);
  const numberOf = (state: VersionState) => versions.find(([, each]) => each.state === state)?.[0];
  const [active, pending] = [numberOf('active'), numberOf('pending')];
  return {
    ...{ family: 'ssn', versions: new Map(versions) },
    ...(active !== undefined && { active }),
    ...(pending !== undefined && { pending }),
  };
}

const standing = (version: number, compromised = false) => ({ id: 'old', version, compromised }) as Run;

describe('an emergency, planned', () => {
  const table: [string, KeyFamily, Run | undefined, Emergency | 'refused'][] = [
    ['nothing is under way', family('active'), undefined, { id: 'new', version: 2, joins: false }],
    [
      'a version was left pending',
      family('compromised', 'pending'),
      undefined,
      { id: 'new', version: 2, joins: false },
    ],
    ['the next version is not made', family('active'), standing(2), { id: 'old', version: 2, joins: true }],
    ['it is pending', family('active', 'pending'), standing(2), { id: 'old', version: 2, joins: true }],
    [
      'it is active',
      family('decrypt-only', 'active'),
      standing(2),
      { id: 'new', version: 3, joins: false, supersedes: 'old' },
    ],
    [
      'it is active after an emergency',
      family('compromised', 'active'),
      standing(2, true),
      { id: 'new', version: 3, joins: false, supersedes: 'old' },
    ],
    ['an emergency waits for it', family('compromised', 'pending'), standing(2, true), 'refused'],
    ['an emergency has not made it', family('compromised'), standing(2, true), 'refused'],
  ];
  for (const [name, known, run, expected] of table) {
    it(`${expected === 'refused' ? 'is refused' : 'is what it has to be'} when ${name}`, () => {
      const plan = () => planEmergency(known, run, 'new');
      if (expected === 'refused') {
        assert.throws(plan, { code: 'rotation_in_progress', extras: { rotationId: 'old' } });
      } else {
        assert.deepEqual(plan(), expected);
      }
    });
  }
});

describe('an emergency, recorded', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
  });
  afterEach(() => bench.close());

  const record = (planned: Emergency, closes: number[] = [1]) =>
    transaction(bench.service.pool, (tx) =>
      recordEmergency(tx, planned, { family: 'ssn', requestedBy: 'test', closes }),
    );

  async function standsUntouched(): Promise<void> {
    await bench.service.keyring.refresh();
    assert.equal(bench.service.keyring.state.families.get('ssn')?.active, 1);
  }

  it('is planned again when a run began or ended since', async () => {
    const id = randomUUID();
    await assert.rejects(record({ id, version: 2, joins: true }), StaleEpoch);
    await assert.rejects(record({ id, version: 3, joins: false, supersedes: id }), StaleEpoch);
    const other = await beginRotation(bench.service);
    await assert.rejects(record({ id, version: 2, joins: false }), StaleEpoch);
    await standsUntouched();
    assert.equal((await findUnfinished(bench.service.pool, 'ssn'))?.id, other);
    assert.equal((await findRun(bench.service.pool, other))?.compromised, false);
  });

  it('takes the ranges from whoever works on them', async () => {
    await fill(bench.owner, 100, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const first = await beginRotation(bench.service);
    await drive(bench.service, first, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, first);
    await advance(bench.service, first);
    const { pool, instanceId } = bench.service;
    const [rangeId] = await listFreeRanges(pool);
    const lease = randomUUID();
    const range = (await claimRange(pool, rangeId!, lease, instanceId))!;
    await record({ id: randomUUID(), version: 3, joins: false, supersedes: first }, [2]);
    const point = { step: 'ssn/1', cursor: ['50'], done: new Map([['ssn', 50]]), failures: [] };
    await assert.rejects(
      transaction(pool, (tx) => insertCheckpoint(tx, range, lease, point)),
      LeaseLost,
    );
    assert.deepEqual(await listFreeRanges(pool), []);
    assert.equal((await findRun(pool, first))?.phase, 'cancelled');
  });

  it('leaves no row behind: the worker opens what is closed to everybody else', async () => {
    await fill(bench.owner, 300, (id) => `536-22-${id}`);
    await adopt(bench.service);
    const id = randomUUID();
    await record({ id, version: 2, joins: false });
    await drive(bench.service, id, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, id);
    assert.equal((await drive(bench.service, id, isSettled)).phase, 'done');
    const { rows } = await bench.owner.query<{ id: string; ssn: string }>('select id, ssn from demo.employees');
    assert.equal(rows.length, 300);
    for (const row of rows) {
      assert.match(row.ssn, /^fe1\.ssn\.2\./);
      assert.equal(await openFor(bench.service, 'ssn', row.id, row.ssn), `536-22-${row.id}`);
    }
    const versions = bench.service.keyring.state.families.get('ssn')!.versions;
    assert.deepEqual(
      [...versions.values()].map(({ state }) => state),
      ['compromised', 'active'],
    );
  });

  it('does not let its version be destroyed before another is active', async () => {
    const id = randomUUID();
    await record({ id, version: 2, joins: false });
    await bench.owner.query('update fieldkeep.rotations set done_at = now() where id = $1', [id]);
    const asked = { family: 'ssn', version: 1, withoutGuards: true };
    await assert.rejects(examineVersion(bench.service, asked, 1_000), {
      code: 'conflict',
      message: /no active version/,
    });
  });
});
