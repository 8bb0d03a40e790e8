/** A whole service beside a database that fails over to a standby that was behind: nothing that is gone is used. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { openPool, transaction } from '../../src/db.ts';
import { activateVersion, insertVersion, raiseEpoch } from '../../src/keys/store.ts';
import { examine } from '../../src/health.ts';
import { openFailoverServer, type FailoverServer } from '../support/failover.ts';
import { openTestService, type TestService } from '../support/service.ts';

const context = { table: 'demo.employees', column: 'ssn', row: '1' };

describe('a service beside a failover that loses commits', function () {
  this.timeout(120_000);
  let server: FailoverServer;
  let it_: TestService;

  beforeEach(async () => {
    server = await openFailoverServer();
    it_ = await openTestService({ database: server, workers: false });
  });
  afterEach(async () => {
    await it_.close();
    await server.drop();
  });

  const encrypt = (value: string, tenant: string) =>
    it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'ssn', value, context }, { tenant });

  /** Calls until the answer is no 503: connections have to be made again, and key state loaded. */
  async function untilAnswered<T extends { status: number }>(call: () => Promise<T>): Promise<T> {
    const deadline = performance.now() + 20_000;
    for (;;) {
      const answer = await call();
      if (answer.status !== 503) return answer;
      assert.ok(performance.now() < deadline, 'answers again');
      await sleep(50);
    }
  }

  async function leaveBehind(): Promise<void> {
    await server.leaveBehind();
    await untilAnswered(() => encrypt('536-22-0000', 'acme'));
  }

  /** Makes the next version of ssn active under a root key version of its own, as a rotation does. */
  async function activateNext(version: number): Promise<void> {
    const transitVersion = await it_.service.rootKeys.rotate('ssn');
    await transaction(it_.owner, async (tx) => {
      await insertVersion(tx, { family: 'ssn', version, state: 'pending', transitVersion, bind: 'row', indexes: [] });
      await activateVersion(tx, 'ssn', version);
      await raiseEpoch(tx);
    });
    await it_.service.keyring.refresh();
  }

  async function openDirectly(envelope: unknown, tenant: string): Promise<number> {
    const asked = { envelope, context, view: 'last4' };
    return (await it_.call('cx-agent', 'POST', '/v1/decrypt', asked, { tenant })).status;
  }

  it('uses no version that was activated in lost commits, and is ready again by itself', async () => {
    await leaveBehind();
    await activateNext(2);
    assert.equal((await encrypt('536-22-0001', 'acme')).body.version, 2);
    const known = it_.service.keyring.state.epoch;
    await server.promote();
    const answer = await untilAnswered(() => encrypt('536-22-0002', 'acme'));
    assert.equal(answer.status, 200);
    assert.equal(answer.body.version, 1);
    assert.ok(it_.service.keyring.state.epoch.n < known.n);
    assert.equal(it_.service.keyring.state.families.get('ssn')!.versions.has(2), false);
    assert.deepEqual((await examine(it_.service)).reasons, []);
    // The number is given to another version, whose key is another one: what is at hand of the first is not used.
    await activateNext(2);
    const again = await encrypt('536-22-0003', 'acme');
    assert.equal(again.body.version, 2);
    const other = await openTestService({ database: server, rootKeys: it_.service.rootKeys, workers: false });
    const { rows } = await it_.owner.query(`select from fieldkeep.data_keys where family = 'ssn' and version = 2`);
    assert.equal(rows.length, 1);
    const key = await other.service.keyring.get('acme', 'ssn', 2);
    const mine = await it_.service.keyring.get('acme', 'ssn', 2);
    assert.deepEqual(mine!.fingerprint, key!.fingerprint);
    await other.service.keyring.refresh();
    assert.equal(await openDirectly(again.body.envelope, 'acme'), 200);
  });

  it("seals nothing with a tenant's key that was lost, though no epoch was raised", async () => {
    await leaveBehind();
    const { epoch } = it_.service.keyring.state;
    assert.equal((await encrypt('536-22-0001', 'acme')).status, 200);
    const first = await encrypt('536-22-0001', 'globex'); // makes its first key
    assert.equal(first.status, 200);
    const lost = await it_.service.keyring.get('globex', 'ssn', 1);
    await server.promote();
    const answer = await untilAnswered(() => encrypt('536-22-0002', 'globex'));
    assert.equal(answer.status, 200);
    assert.equal(it_.service.keyring.state.epoch.n, epoch.n);
    const key = await it_.service.keyring.get('globex', 'ssn', 1);
    assert.notDeepEqual(key!.fingerprint, lost!.fingerprint);
    const { rows } = await it_.owner.query<{ fingerprint: Buffer }>(
      `select fingerprint from fieldkeep.data_keys where tenant = 'globex' and family = 'ssn'`,
    );
    assert.deepEqual(rows, [{ fingerprint: key!.fingerprint }]);
    assert.equal(await openDirectly(answer.body.envelope, 'globex'), 200);
  });

  it('says that it is not ready while it knows more than the database, and answers nothing from it', async () => {
    const { keyring } = it_.service;
    await leaveBehind();
    await activateNext(2);
    await encrypt('536-22-0001', 'acme');
    // What is known is to be loaded again and cannot be.
    const lock = openPool(server.ownerUrl, { max: 1, name: 'lock' });
    await server.promote();
    const held = await lock.connect();
    await held.query('begin');
    await held.query('lock table fieldkeep.key_versions in access exclusive mode');
    const called = await encrypt('536-22-0002', 'acme');
    const { reasons } = await examine(it_.service);
    await held.query('rollback');
    held.release();
    await lock.end();
    assert.ok([503, 504].includes(called.status), String(called.status));
    assert.match(reasons.join(), /database was replaced|does not answer/);
    const answer = await untilAnswered(() => encrypt('536-22-0003', 'acme'));
    assert.equal(answer.body.version, 1);
    assert.equal(await keyring.isAhead(), false);
    assert.deepEqual((await examine(it_.service)).reasons, []);
  });

  it('has every acknowledged entry once, and tells readers all of them', async () => {
    await leaveBehind();
    const ids: unknown[] = [];
    for (let n = 0; n < 20; n += 1) ids.push((await encrypt('536-22-0001', 'acme')).headers['x-request-id']);
    await server.promote();
    await untilAnswered(() => encrypt('536-22-0002', 'acme'));
    const read = await untilAnswered(() => it_.call('security-auditor', 'GET', '/v1/audit/entries?limit=100'));
    assert.equal(read.status, 200);
    const found = read.body.items!.map(({ entry }) => (entry as { requestId: string }).requestId);
    for (const id of ids) assert.equal(found.filter((each) => each === id).length, 1);
    assert.ok(it_.service.audit.losses.resent >= 20);
    assert.match(it_.logged(), /had lost acknowledged groups of audit entries; all were stored again/);
  });
});
