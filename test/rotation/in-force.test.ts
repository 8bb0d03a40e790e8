/** Processes with different policies on one database: which of them works on runs, and what a policy must not leave behind. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { transaction } from '../../src/db.ts';
import { parsePolicy, type Policy } from '../../src/policy/policy.ts';
import { carryOut } from '../../src/retirement/destroy.ts';
import { insertDestruction } from '../../src/retirement/destroy-store.ts';
import { examineVersion } from '../../src/retirement/evidence.ts';
import { searchDue } from '../../src/retirement/undeclared-watch.ts';
import { watchDone } from '../../src/retirement/watch.ts';
import { describeSkew, mayWork, mustBeInForce, NotInForce } from '../../src/rotation/in-force.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { advance, listWorkable } from '../../src/rotation/run.ts';
import { startAdoption, startDue } from '../../src/rotation/start.ts';
import { findRun } from '../../src/rotation/store.ts';
import { examine } from '../../src/health.ts';
import { adoptPolicy } from '../../src/service.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import {
  activate,
  adopt,
  changePolicy,
  drive,
  fill,
  isSettled,
  openBench,
  policyText,
  rotate,
  shippedPolicy,
  type Bench,
} from './support.ts';

const valueOf = (id: number) => `536-22-${id}`;
const withoutColumns = changePolicy({ columns: [] });
const reformatted: Policy = parsePolicy(`${policyText}\n\n`);

describe('processes with different policies', () => {
  let database: TestDatabase;
  let home: string;
  let bench: Bench;
  const others: Bench[] = [];

  beforeEach(async () => {
    database = await createDatabase();
    home = mkdtempSync(join(tmpdir(), 'fieldkeep-skew-'));
    bench = await openBench({ database, home });
  });
  afterEach(async () => {
    for (const each of others.splice(0)) await each.service.close().then(() => each.owner.end());
    await bench.close();
    rmSync(home, { recursive: true, force: true });
  });

  async function openOther(policy: Policy): Promise<Bench> {
    const other = await openBench({ database, home, policy });
    others.push(other);
    return other;
  }

  async function countOld(): Promise<number> {
    const { rows } = await bench.owner.query<{ n: number }>(
      'select count(*)::int as n from demo.employees where fieldkeep.fe_version(ssn) = 1',
    );
    return rows[0]!.n;
  }

  it('a process that starts with other columns neither plans, drives, counts nor ends a run', async () => {
    await fill(bench.owner, 50, valueOf);
    await adopt(bench.service);
    const { service: odd } = await openOther(withoutColumns);
    const id = await activate(bench);
    for (let n = 0; n < 10; n += 1) assert.equal(await advance(odd, id), false);
    assert.equal((await findRun(bench.owner, id))!.phase, 'active', 'it plans nothing');
    await advance(bench.service, id);
    const [range] = await listFreeRanges(bench.owner);
    assert.deepEqual(await listWorkable(odd), []);
    await workRange(odd, range!, () => false);
    assert.equal(await countOld(), 50);
    const done = await drive(bench.service, id, isSettled);
    assert.deepEqual([done.phase, await countOld()], ['done', 0]);
    assert.equal(done.policy, shippedPolicy.version, 'the run says by which policy');
  });

  it('it starts nothing, guards nothing, searches nothing and lets no version be destroyed', async () => {
    await fill(bench.owner, 20, valueOf);
    await adopt(bench.service);
    await rotate(bench);
    const { service: odd } = await openOther(withoutColumns);
    await bench.owner.query(`update fieldkeep.key_families set next_rotation_at = now() - interval '1 d'`);
    await bench.owner.query(`update demo.employees set ssn = 'plain' where id = 1`);
    assert.deepEqual(await startDue(odd), []);
    assert.equal(await startAdoption(odd, true), undefined);
    assert.deepEqual(await watchDone(odd, { now: true }), []);
    await searchDue(odd);
    const { rows } = await bench.owner.query('select from fieldkeep.watches where searched_at is not null');
    assert.equal(rows.length, 0);
    const question = { family: 'ssn', version: 1, withoutGuards: true };
    const refusal = { code: 'conflict', message: /^This process goes by policy .* not in force: .* is, since/ };
    await assert.rejects(examineVersion(odd, question, 100), refusal);
    const [destruction, approval] = [randomUUID(), randomUUID()];
    await bench.owner.query(
      `insert into fieldkeep.approvals (id, action, about, details, reason, person, required, request_digest, decide_by, used_at)
       values ($1, 'destroy', '/v1/keys/ssn/versions/1', '{}', 'test', 'operator', 2, 'x', now() + interval '1 day', now())`,
      [approval],
    );
    const asked = { id: destruction, approval, ...question, decisions: [], details: {}, reason: 'test' };
    await transaction(bench.owner, (tx) => insertDestruction(tx, { ...asked, requestedBy: 'operator' }));
    const held = await carryOut(odd, destruction);
    assert.match(held.problem ?? '', refusal.message, 'it waits for a process with the policy in force');
    assert.deepEqual([held.refusedAt, held.destroyedAt], [undefined, undefined]);
  });

  it('the skew is named, with the process, its policy and since when', async () => {
    const { service: odd } = await openOther(withoutColumns);
    const [sentence, ...rest] = await describeSkew(bench.service.pool);
    assert.deepEqual(rest, []);
    assert.ok(sentence!.startsWith(`process ${odd.instanceId} has had policy ${withoutColumns.version} since `));
    assert.ok(sentence!.includes(`; ${shippedPolicy.version} has been in force since `));
    assert.ok((await examine(bench.service)).warnings.includes(sentence!));
  });

  it('a new policy comes into force when the last process with the one before has gone', async () => {
    const next = await openOther(reformatted);
    assert.equal(await mayWork(next.service), false);
    await bench.owner.query('delete from fieldkeep.instances where id = $1', [bench.service.instanceId]);
    assert.equal(await mayWork(next.service), true);
    assert.equal(await mayWork(bench.service), false);
  });

  it('a policy that a running process is given is in force at once, also one that was in force before', async () => {
    const other = await openOther(shippedPolicy);
    await adoptPolicy(bench.service, reformatted);
    assert.deepEqual([await mayWork(bench.service), await mayWork(other.service)], [true, false]);
    await adoptPolicy(bench.service, shippedPolicy);
    assert.equal(await mayWork(other.service), true);
  });

  it('what was found out under a policy is not written down under the next', async () => {
    await fill(bench.owner, 20, valueOf);
    await adopt(bench.service);
    const id = await activate(bench);
    await drive(bench.service, id, (run) => run.phase === 'verifying');
    const other = await openOther(shippedPolicy);
    const pool = bench.service.pool;
    await adoptPolicy(other.service, reformatted);
    await assert.rejects(
      transaction(pool, (tx) => mustBeInForce(tx, shippedPolicy.version)),
      NotInForce,
    );
    assert.equal(await advance(bench.service, id), false);
    assert.equal((await findRun(bench.owner, id))!.doneAt, undefined);
    assert.equal((await drive(other.service, id, isSettled)).phase, 'done');
  });

  it('a rotation is not done while a column that is no longer registered holds older values', async () => {
    await fill(bench.owner, 30, valueOf);
    await adopt(bench.service);
    await adoptPolicy(bench.service, withoutColumns);
    const run = await rotate(bench);
    assert.equal(run.phase, 'blocked');
    const said = `Policy ${withoutColumns.version} no longer registers demo.employees.ssn, which still holds older values of ssn.`;
    assert.equal(run.blocked, `${said} Register it again, or set those values to null.`);
    const question = { family: 'ssn', version: 1, withoutGuards: true };
    await assert.rejects(examineVersion(bench.service, question, 100), { code: 'rotation_in_progress' });
    await adoptPolicy(bench.service, shippedPolicy);
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch'`);
    assert.deepEqual([(await drive(bench.service, run.id, isSettled)).phase, await countOld()], ['done', 0]);
  });

  it('a rotation is done when what was left in such a column was cleared, or its table is gone', async () => {
    await fill(bench.owner, 5, valueOf);
    await adopt(bench.service);
    await adoptPolicy(bench.service, withoutColumns);
    const run = await rotate(bench);
    assert.equal(run.phase, 'blocked');
    await bench.owner.query('update demo.employees set ssn = null');
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch'`);
    assert.equal((await drive(bench.service, run.id, isSettled)).phase, 'done');
  });

  it('a version is not destroyed while such a column holds it', async () => {
    await fill(bench.owner, 5, valueOf);
    await adopt(bench.service);
    await rotate(bench);
    await bench.owner.query(`update demo.employees set ssn = 'fe1.ssn.1.AA', ssn_eq = null where id = 1`);
    await adoptPolicy(bench.service, withoutColumns);
    await bench.owner.query(
      `update fieldkeep.rotations set done_at = now() - interval '1 year', activated_at = now() - interval '1 year'`,
    );
    await bench.owner.query(`update fieldkeep.key_versions set activated_at = now() - interval '1 year'`);
    await assert.rejects(examineVersion(bench.service, { family: 'ssn', version: 1, withoutGuards: true }, 100), {
      message: /no longer registers demo\.employees\.ssn, which still holds older values of ssn/,
    });
  });
});

describe('a process that starts with a superseded policy', () => {
  let database: TestDatabase;
  let first: TestService;
  let second: TestService | undefined;
  const body = {
    class: 'bank',
    value: 'GB29 NWBK 6016',
    context: { table: 'demo.employees', column: 'bank', row: '1' },
  };

  before(async () => {
    database = await createDatabase();
    first = await openTestService({ database, workers: false });
    await adoptPolicy(first.service, reformatted);
    const { rootKeys } = first.service;
    second = await openTestService({ database, rootKeys, workers: false });
  });
  after(async () => {
    await second?.close();
    await first.close();
    await database.drop();
  });

  it('answers nobody and is not ready, and says why', async () => {
    const answer = await second!.call('payroll-agent', 'POST', '/v1/encrypt', body);
    assert.deepEqual([answer.status, answer.body['code']], [503, 'policy_superseded']);
    assert.match(
      String(answer.body['detail']),
      new RegExp(`^This process answers nobody: policy ${shippedPolicy.version} was superseded`),
    );
    const { reasons } = await examine(second!.service);
    assert.match(reasons.join(), /was superseded: .* has been in force since/);
    assert.equal((await second!.call('operator', 'GET', '/v1/keys')).status, 503);
  });

  it('answers when it is given the policy in force, or a person puts its own in force', async () => {
    await adoptPolicy(second!.service, reformatted);
    assert.equal((await second!.call('payroll-agent', 'POST', '/v1/encrypt', body)).status, 200);
    await adoptPolicy(second!.service, shippedPolicy);
    assert.equal((await second!.call('payroll-agent', 'POST', '/v1/encrypt', body)).status, 200);
    assert.equal((await first.call('payroll-agent', 'POST', '/v1/encrypt', body)).status, 200, 'its file comes later');
    const { warnings, reasons } = await examine(first.service);
    assert.deepEqual([reasons, warnings.length], [[], 1], JSON.stringify(warnings));
  });
});
