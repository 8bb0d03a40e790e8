/** Destroying a version at a real Vault, and trying everything to open what it sealed. */
import assert from 'node:assert/strict';
import { randomBytes, randomUUID } from 'node:crypto';
import { encodeWrapContext } from '../../src/crypto/context.ts';
import { transaction } from '../../src/db.ts';
import { exportKeys, parseBackup } from '../../src/keys/backup.ts';
import type { RootKeyError, RootKeys } from '../../src/keys/root-keys.ts';
import { activateVersion, insertVersion, raiseEpoch } from '../../src/keys/store.ts';
import type { Destruction } from '../../src/retirement/destroy-store.ts';
import { insertRun } from '../../src/rotation/store.ts';
import { openProxy } from '../support/proxy.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { agree, carryOn, policyOf } from './retiring.ts';
import { describeVault, openAt, openVaultServer, setUp, type VaultServer } from '../support/vault.ts';

const context = { table: 'demo.employees', column: 'bank', row: '1' };
const value = 'GB29 NWBK 6016 1331 9268 19';

type Step = () => Promise<void>;

describeVault('destroying a version', function () {
  this.timeout(60_000);
  let server: VaultServer;
  let mount: string;
  let it_: TestService;
  let operator: RootKeys;
  const open: { close(): void | Promise<void> }[] = [];

  before(async () => {
    server = await openVaultServer();
  });
  after(() => server.close());

  beforeEach(async () => {
    mount = `fk-destroy-${randomBytes(4).toString('hex')}`;
    await setUp(server, mount, ['ssn', 'bank', 'salary']);
    const worker = await server.call('POST', 'auth/token/create', {
      policies: ['ssn', 'bank', 'salary', 'audit'].map((family) => `fieldkeep-worker-${family}`),
    });
    const token = worker.auth!['client_token'] as string;
    const { rootKeys } = openAt(server, { mount, auth: { method: 'token', token } });
    it_ = await openTestService({ rootKeys, policy: policyOf(), workers: false });
    operator = openOperator();
  });
  afterEach(async () => {
    for (const each of open.splice(0)) await each.close();
    await it_.close();
  });

  function openOperator(address?: string): RootKeys {
    const { rootKeys } = openAt(server, { mount, ...(address !== undefined && { address, timeoutMs: 1_000 }) });
    open.push(rootKeys);
    return rootKeys;
  }

  async function seal(tenant: string): Promise<string> {
    const body = { class: 'bank', value, context };
    const reply = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body, { tenant });
    assert.equal(reply.status, 200, reply.text);
    return reply.body['envelope'] as string;
  }

  const openIt = (envelope: string, tenant: string) =>
    it_.call('payroll-agent', 'POST', '/v1/decrypt', { envelope, context, view: 'full' }, { tenant });

  /** What a rotation does to keys, without its rows. */
  async function rotateKeys(version: number): Promise<void> {
    const { service } = it_;
    const transitVersion = await service.rootKeys.rotate('bank');
    await transaction(service.pool, async (tx) => {
      const made = { family: 'bank', version, state: 'pending', transitVersion, bind: 'row', indexes: [] } as const;
      await insertVersion(tx, made);
      await activateVersion(tx, 'bank', version);
      await raiseEpoch(tx);
    });
    await service.keyring.refresh();
  }

  const begin = (version = 1) => agree(it_.service, it_.owner, { family: 'bank', version });

  /** Begun and carried out with this login; errors are those of asking. */
  async function destroy(rootKeys: RootKeys, version = 1): Promise<Destruction> {
    return await carryOn({ ...it_.service, rootKeys }, await begin(version), { person: 'op' });
  }

  async function stateOf(version: number): Promise<{ state: string; keys: number }> {
    const { rows } = await it_.owner.query<{ state: string; keys: number }>(
      `select state, (select count(*)::int from fieldkeep.data_keys k where k.family = v.family and k.version = v.version) as keys
       from fieldkeep.key_versions v where family = 'bank' and version = $1`,
      [version],
    );
    return rows[0]!;
  }

  it('leaves no copy of its data keys that opens by any means', async () => {
    const old = { acme: await seal('acme'), globex: '' };
    // The root key has rotated before this tenant first turns up: its key must not be wrapped under the newer version.
    await it_.service.rootKeys.rotate('bank');
    old.globex = await seal('globex');
    await rotateKeys(2);
    const young = await seal('acme');
    const dump = parseBackup(await exportKeys(it_.service.pool)).dataKeys.filter((key) => key.family === 'bank');
    const doomed = dump.filter((key) => key.version === 1 && key.tenant !== '');
    assert.deepEqual(doomed.map((key) => key.tenant).sort(), ['acme', 'globex']);

    const { problem, keeperAnswer } = await destroy(operator);
    assert.equal(problem, undefined);
    assert.deepEqual(keeperAnswer, { keeper: 'vault', key: 'fk-bank', oldestBefore: 0, oldestAfter: 3 });
    assert.deepEqual(await stateOf(1), { state: 'destroyed', keys: 0 });
    assert.equal((await openIt(old.acme, 'acme')).body['code'], 'version_destroyed');
    assert.equal((await openIt(young, 'acme')).body['value'], value);

    // The key tables as a dump has them, on top of what is there now, and a database that knows nothing of the end.
    const { owner, service } = it_;
    await owner.query(`alter table fieldkeep.key_versions disable trigger key_version_step`);
    await owner.query(`update fieldkeep.key_versions set state = 'decrypt-only' where family = 'bank' and version = 1`);
    for (const { tenant, version, wrapped, fingerprint } of doomed) {
      await owner.query(
        `insert into fieldkeep.data_keys (tenant, family, version, wrapped, fingerprint)
         values ($1, 'bank', $2, $3, decode($4, 'base64'))`,
        [tenant, version, wrapped, fingerprint],
      );
    }
    await transaction(owner, raiseEpoch);
    await service.keyring.refresh();
    for (const [tenant, envelope] of Object.entries(old)) {
      const reply = await openIt(envelope, tenant);
      assert.equal(reply.body['code'], 'vault_unavailable', reply.text);
    }
    // With every right there is: the root token lowers the minimums, asks for the key, and unwraps.
    const key = `${mount}/keys/fk-bank`;
    await assert.rejects(server.call('POST', `${key}/config`, { min_decryption_version: 1 }));
    await server.call('POST', `${key}/config`, { min_encryption_version: 0 }).catch(() => undefined);
    await assert.rejects(server.call('GET', `${mount}/export/encryption-key/fk-bank`));
    await assert.rejects(server.call('GET', `${mount}/backup/fk-bank`));
    for (const { tenant, version, wrapped } of doomed) {
      const wrapContext = encodeWrapContext(tenant, 'bank', version);
      await assert.rejects(operator.unwrap('bank', wrapped, wrapContext), (error: RootKeyError) => error.refused);
      const body = { ciphertext: wrapped, context: wrapContext.toString('base64') };
      await assert.rejects(server.call('POST', `${mount}/decrypt/fk-bank`, body));
      await assert.rejects(server.call('POST', `${mount}/rewrap/fk-bank`, body));
    }
    const { rows } = await owner.query<{ n: number }>(
      `select count(*)::int as n from fieldkeep.audit_intake
       where lines like '%"action":"destroy"%"outcome":"ok"%"purpose":"result of destruction %'`,
    );
    assert.equal(rows[0]!.n, 1);
  });

  it('refuses while a row holds the version, or cannot be counted, and out of turn', async () => {
    const envelope = await seal('acme');
    await assert.rejects(destroy(operator), { code: 'conflict', message: /is active: rotate first/ });
    await rotateKeys(2);
    await assert.rejects(destroy(operator, 2), { code: 'conflict' });
    await it_.owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'x', $1)`, [
      envelope,
    ]);
    await assert.rejects(destroy(operator), {
      code: 'conflict',
      message: /bank of demo\.employees holds values of version 1/,
    });
    await it_.owner.query(`update demo.employees set bank = 'fe1.bank.x'`);
    await assert.rejects(destroy(operator), { code: 'conflict', message: /malformed/ });
    await it_.owner.query('delete from demo.employees');
    const writer = await it_.owner.connect();
    try {
      await writer.query('begin');
      await writer.query(`insert into demo.employees (id, tenant, name, bank) values (2, 'acme', 'x', $1)`, [envelope]);
      const refused = assert.rejects(destroy(operator), { code: 'conflict', message: /holds values/ });
      await new Promise((resolve) => setTimeout(resolve, 300));
      await writer.query('commit');
      await refused;
    } finally {
      writer.release();
    }
    await it_.owner.query('delete from demo.employees');
    await rotateKeys(3);
    await assert.rejects(destroy(operator, 2), { code: 'conflict', message: /oldest first: version 1/ });
    assert.deepEqual(await stateOf(1), { state: 'decrypt-only', keys: 1 });
    assert.equal((await openIt(envelope, 'acme')).status, 200);
    const run = { id: randomUUID(), kind: 'rotation', family: 'bank', version: 4 } as const;
    assert.ok(await insertRun(it_.owner, { ...run, requestedBy: 'test' }));
    await assert.rejects(destroy(operator), { code: 'rotation_in_progress' });
    await it_.owner.query('delete from fieldkeep.rotations where id = $1', [run.id]);
    await destroy(operator, 1);
    await destroy(operator, 2);
    assert.equal((await stateOf(2)).state, 'destroyed');
  });

  it('is recorded only when Vault has confirmed it', async () => {
    const envelope = await seal('acme');
    await rotateKeys(2);
    const id = await begin();
    const refused = await carryOn(it_.service, id);
    assert.match(
      refused.problem!,
      /^Vault does not let the service destroy it \(Vault answers 403 .*npm run keys -- destr/,
    );
    assert.deepEqual(await stateOf(1), { state: 'decrypt-only', keys: 1 });
    assert.equal((await openIt(envelope, 'acme')).status, 200);

    // It happened, and nobody heard of it.
    const proxy = await openProxy(server.address);
    open.push(proxy);
    const deaf = openOperator(proxy.through(server.address).replace(/\/$/, ''));
    await deaf.findProblem();
    // From the moment Vault has trimmed the key, answers are lost: the trim's is still on its way then.
    const trimmed = (async () => {
      for (;;) {
        const { data } = await server.call('GET', `${mount}/keys/fk-bank`);
        if (data!['min_available_version'] === 2) return (proxy.mode = 'swallow');
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    })();
    proxy.delayMs = 50;
    const lost = await carryOn({ ...it_.service, rootKeys: deaf }, id, { person: 'op' });
    assert.match(lost.problem!, /^Vault [^(]*$/);
    await trimmed;
    assert.deepEqual(await stateOf(1), { state: 'decrypt-only', keys: 1 });
    // From here on nothing is asked any more: also not what an application has written back meanwhile.
    await it_.owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'x', $1)`, [
      envelope,
    ]);
    const done = await carryOn({ ...it_.service, rootKeys: operator }, id, { person: 'op' });
    assert.deepEqual([done.problem, done.keeperAnswer?.oldestAfter], [undefined, 2]);
    assert.deepEqual(await stateOf(1), { state: 'destroyed', keys: 0 });
    assert.equal((await openIt(envelope, 'acme')).body['code'], 'version_destroyed');
  });

  it('opens again when a late envelope comes between the first step at Vault and the last', async () => {
    const envelope = await seal('acme');
    await rotateKeys(2);
    const id = await begin();
    const half = { ...operator, destroyBelow: () => Promise.reject(new Error('killed')) };
    await server.call('POST', `${mount}/keys/fk-bank/config`, { min_decryption_version: 2, min_encryption_version: 2 });
    await assert.rejects(carryOn({ ...it_.service, rootKeys: half }, id), /killed/);
    await it_.owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'x', $1)`, [
      envelope,
    ]);
    const refused = await carryOn({ ...it_.service, rootKeys: operator }, id, { person: 'op' });
    assert.match(refused.refused!, /bank of demo\.employees holds 1 values of version 1/);
    await transaction(it_.owner, raiseEpoch);
    await it_.service.keyring.refresh();
    const fresh = openAt(server, { mount });
    open.push(fresh.rootKeys);
    const { rows } = await it_.owner.query<{ wrapped: string }>(
      `select wrapped from fieldkeep.data_keys where family = 'bank' and version = 1 and tenant = 'acme'`,
    );
    const unwrapped = await fresh.rootKeys.unwrap('bank', rows[0]!.wrapped, encodeWrapContext('acme', 'bank', 1));
    assert.equal(unwrapped.length, 64);
    assert.deepEqual(await stateOf(1), { state: 'decrypt-only', keys: 1 });
  });

  /**
   * A process that stands still inside its call to Vault, for longer than it holds its lease; another one finds a late
   * envelope meanwhile. Then the first one wakes up and goes on.
   */
  for (const [where, stopped] of [
    [
      'before the first step at Vault',
      (meanwhile: Step): Partial<RootKeys> => ({
        async destroyBelow(family, floor, mayGoOn) {
          await meanwhile();
          await operator.destroyBelow(family, floor, mayGoOn);
        },
      }),
    ],
    [
      'right before the last step at Vault',
      (meanwhile: Step): Partial<RootKeys> => ({
        destroyBelow: (family, floor, mayGoOn) =>
          operator.destroyBelow(family, floor, async () => {
            await mayGoOn?.();
            await meanwhile();
          }),
      }),
    ],
  ] as const) {
    it(`a refusal is final, also for a process that stood still ${where}`, async () => {
      const envelope = await seal('acme');
      await rotateKeys(2);
      const id = await begin();
      const meanwhile = async () => {
        await it_.owner.query('update fieldkeep.destructions set driver_until = now()');
        await it_.owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'x', $1)`, [
          envelope,
        ]);
        const other = await carryOn({ ...it_.service, rootKeys: openOperator() }, id, { person: 'other' });
        assert.match(other.refused!, /holds 1 values of version 1/);
      };
      const late = await carryOn({ ...it_.service, rootKeys: { ...operator, ...stopped(meanwhile) } }, id);
      assert.match(late.refused!, /holds 1 values of version 1/);
      assert.deepEqual(await stateOf(1), { state: 'decrypt-only', keys: 1 });
      assert.equal(await openOperator().findOldest('bank'), 0);
      await it_.service.keyring.refresh();
      const { rows } = await it_.owner.query<{ wrapped: string }>(
        `select wrapped from fieldkeep.data_keys where family = 'bank' and version = 1 and tenant = 'acme'`,
      );
      const unwrapped = await openOperator().unwrap('bank', rows[0]!.wrapped, encodeWrapContext('acme', 'bank', 1));
      assert.equal(unwrapped.length, 64);
    });
  }

  it('that was agreed to and waits for an operator is called off, and no operator destroys it then', async () => {
    const envelope = await seal('acme');
    await rotateKeys(2);
    const id = await begin();
    assert.match((await carryOn(it_.service, id)).problem!, /Vault does not let the service destroy it/);
    const callOff = (agent: string, body: object = { reason: 'a mistake' }) =>
      it_.call(agent, 'POST', '/v1/keys/bank/versions/1/destroy/call-off', body);
    assert.equal((await callOff('payroll-agent')).status, 403);
    assert.equal((await callOff('security-lead')).status, 403);
    assert.equal((await callOff('operator', {})).status, 400);
    const called = await callOff('operator');
    assert.deepEqual([called.status, called.body['status']], [202, 'calling-off'], called.text);
    assert.equal((await callOff('operator')).status, 202, 'again');
    // Whoever comes next finds it called off, and needs no right for that where Vault has done nothing yet.
    const over = await carryOn(it_.service, id);
    assert.equal(over.refused, 'It was called off by operator: a mistake');
    assert.deepEqual(await stateOf(1), { state: 'decrypt-only', keys: 1 });
    assert.equal((await openIt(envelope, 'acme')).status, 200);
    assert.deepEqual([(await callOff('operator')).status], [409], 'there is nothing left to call off');
    assert.ok((await destroy(operator)).finishedAt !== undefined, 'it can be asked for anew');
    assert.equal((await callOff('operator')).body['code'], 'conflict');
    const { rows } = await it_.owner.query<{ lines: string }>(
      `select lines from fieldkeep.audit_intake where lines like '%calling off of destruction ' || $1 || ': a mistake%'`,
      [id],
    );
    assert.equal(rows.length, 2);
    assert.match(rows[0]!.lines, /"person":"operator"/);
  });

  it('calling it off between the steps at Vault ends it, and after the last one comes too late', async () => {
    await seal('acme');
    await rotateKeys(2);
    const callOff = () =>
      it_.call('operator', 'POST', '/v1/keys/bank/versions/1/destroy/call-off', { reason: 'a mistake' });
    const rootKeys = (when: 'before' | 'after'): RootKeys => ({
      ...operator,
      destroyBelow: (family, floor, mayGoOn) =>
        operator.destroyBelow(family, floor, async () => {
          if (when === 'before') assert.equal((await callOff()).status, 202);
          await mayGoOn?.();
          if (when === 'after') assert.equal((await callOff()).status, 202);
        }),
    });
    const first = await carryOn({ ...it_.service, rootKeys: rootKeys('before') }, await begin());
    assert.match(first.refused!, /^It was called off/);
    assert.equal(await operator.findOldest('bank'), 0);
    const second = await carryOn({ ...it_.service, rootKeys: rootKeys('after') }, await begin());
    assert.deepEqual([second.refused, second.finishedAt === undefined], [undefined, false]);
    assert.deepEqual(await stateOf(1), { state: 'destroyed', keys: 0 });
  });

  it('goes on opening where a login may take the first step at Vault and not the last', async () => {
    const envelope = await seal('acme');
    await rotateKeys(2);
    const rules = ['read', 'update', 'update'].map((right, i) => {
      const path = `${mount}/${['keys/*', 'keys/+/config', 'sign/*'][i]!}`;
      return `path "${path}" { capabilities = ["${right}"] }`;
    });
    await server.call('POST', `sys/policies/acl/${mount}`, { policy: rules.join('\n') });
    const made = await server.call('POST', 'auth/token/create', { policies: [mount] });
    const token = made.auth!['client_token'] as string;
    const { rootKeys } = openAt(server, { mount, auth: { method: 'token', token } });
    open.push(rootKeys);
    const id = await begin();
    const held = await carryOn({ ...it_.service, rootKeys }, id, { person: 'op' });
    assert.match(held.problem!, /^Vault does not let the service destroy it \(Vault answers 403/);
    const { data } = await server.call('GET', `${mount}/keys/fk-bank`);
    assert.equal(data!['min_decryption_version'], 1);
    assert.equal((await openIt(envelope, 'acme')).status, 200);
    await it_.owner.query('update fieldkeep.destructions set retry_at = null');
    const done = await carryOn({ ...it_.service, rootKeys: operator }, id, { person: 'op' });
    assert.deepEqual([done.problem, done.keeperAnswer?.oldestAfter], [undefined, 2]);
  });

  it('is refused for a root key that could have been copied out', async () => {
    await seal('acme');
    await rotateKeys(2);
    await server.call('POST', `${mount}/keys/fk-bank/config`, { exportable: true });
    assert.match((await destroy(operator)).problem!, /could be copied out/);
    assert.equal((await stateOf(1)).state, 'decrypt-only');
  });
});
