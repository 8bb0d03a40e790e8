/** Duties as processes: an api process and a worker, each with its own token at a real Vault, on one database. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { encodeWrapContext } from '../../src/crypto/context.ts';
import { VaultError } from '../../src/keys/vault.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { waitUntil } from '../operations/support.ts';
import { openTestService, type TestService, type TestServiceOptions } from '../support/service.ts';
import { describeVault, loginAs, openAt, openVaultServer, setUp, type VaultServer } from '../support/vault.ts';

const context = { table: 'demo.employees', column: 'bank', row: '1' };
const bank = { class: 'bank', value: 'GB29 NWBK 6016 1331 9268 19', context };
const ssn = { class: 'ssn', value: '123-45-6789', context: { ...context, column: 'ssn' } };

describeVault('an api process and a worker', function () {
  this.timeout(60_000);
  const mount = `fk-roles-${randomBytes(4).toString('hex')}`;
  let server: VaultServer;
  let database: TestDatabase;
  const open: TestService[] = [];

  before(async () => {
    server = await openVaultServer();
    await setUp(server, mount, ['ssn', 'bank', 'salary']);
  });
  after(() => server.close());
  beforeEach(async () => {
    database = await createDatabase();
  });
  afterEach(async () => {
    for (const each of open.splice(0).reverse()) await each.close();
    await database.drop();
  });

  async function start(appRole: string, options: TestServiceOptions): Promise<TestService> {
    const token = await loginAs(server, appRole);
    const { rootKeys } = openAt(server, { mount, auth: { method: 'token', token } });
    const it_ = await openTestService({ rootKeys, database, ...options });
    open.push(it_);
    return it_;
  }

  /** An api process looks every second for what workers have published. */
  const untilReady = (it_: TestService) =>
    waitUntil(() => it_.service.catalog.keyTypes.has('demo.employees'), 'a worker has seen the tables');

  const seal = (it_: TestService, body: object, tenant = 'acme') =>
    it_.call('payroll-agent', 'POST', '/v1/encrypt', body, { tenant });

  it('the worker makes a tenant’s first key while the api waits, once for all who wait', async () => {
    const api = await start('fieldkeep-api', { role: 'api' });
    assert.equal((await seal(api, bank)).status, 503, 'no worker has made the families or seen the tables yet');
    await start('fieldkeep-worker', { role: 'worker' });
    await api.service.keyring.refresh();
    await untilReady(api);
    const tenants = ['acme', 'globex', 'initech'];
    const replies = await Promise.all(
      Array.from({ length: 90 }, (_, i) => seal(api, i % 2 === 0 ? bank : ssn, tenants[i % 3])),
    );
    for (const reply of replies) assert.equal(reply.status, 200, reply.text);
    const { rows } = await api.owner.query<{ n: number }>(
      `select count(*)::int as n from fieldkeep.data_keys where tenant <> ''`,
    );
    assert.equal(rows[0]!.n, 9, 'bank, ssn and the digest key of each of three tenants');
    const { envelope } = (await seal(api, bank)).body;
    const opened = await api.call('payroll-agent', 'POST', '/v1/decrypt', { envelope, context, view: 'full' });
    assert.equal(opened.body['value'], bank.value);
  });

  it('the api answers keys_not_ready after two seconds when no worker is there, and asks none to decrypt', async () => {
    const worker = await start('fieldkeep-worker', { role: 'worker' });
    const api = await start('fieldkeep-api', { role: 'api' });
    const { envelope } = (await seal(api, bank)).body;
    await worker.close();
    open.splice(open.indexOf(worker), 1);
    const began = performance.now();
    const replies = await Promise.all(Array.from({ length: 20 }, () => seal(api, bank, 'globex')));
    const took = performance.now() - began;
    assert.ok(took > 1_900 && took < 3_500, `${took} ms`);
    for (const reply of replies) {
      assert.equal(reply.status, 503);
      assert.equal(reply.body['code'], 'keys_not_ready');
      assert.equal(reply.headers['retry-after'], '2');
    }
    const body = { envelope, context, view: 'full' };
    const stranger = await api.call('payroll-agent', 'POST', '/v1/decrypt', body, { tenant: 'globex' });
    assert.equal(stranger.body['code'], 'decryption_failed', stranger.text);
    assert.equal((await seal(api, bank)).status, 200, 'a tenant whose key exists notices nothing');
    await start('fieldkeep-worker', { role: 'worker' });
    await new Promise((resolve) => setTimeout(resolve, 2_100));
    assert.equal((await seal(api, bank, 'globex')).status, 200);
  });

  it('an api process for bank alone cannot open ssn: we refuse it, and Vault refuses it', async () => {
    const worker = await start('fieldkeep-worker', { role: 'worker' });
    await seal(worker, ssn);
    const api = await start('fieldkeep-api-bank', { role: 'api', families: ['bank'] });
    await untilReady(api);
    assert.equal((await seal(api, bank)).status, 200);
    const refused = await seal(api, ssn);
    assert.equal(refused.status, 503);
    assert.equal(refused.body['detail'], 'This process does not serve class ssn.');
    assert.equal((await api.call('', 'GET', '/readyz', undefined, { token: '' })).status, 200);
    const { rows } = await api.owner.query<{ wrapped: string }>(
      `select wrapped from fieldkeep.data_keys where tenant = 'acme' and family = 'ssn'`,
    );
    const wrapContext = encodeWrapContext('acme', 'ssn', 1);
    await assert.rejects(
      api.service.rootKeys.unwrap('ssn', rows[0]!.wrapped, wrapContext),
      (error: unknown) => error instanceof VaultError && error.status === 403,
    );
    assert.equal((await worker.service.rootKeys.unwrap('ssn', rows[0]!.wrapped, wrapContext)).length, 64);
  });

  it('a rotation that the api starts is made by the worker, and waits for every process that serves the family', async () => {
    await start('fieldkeep-worker', { role: 'worker' });
    const api = await start('fieldkeep-api', { role: 'api' });
    const bankOnly = await start('fieldkeep-api-bank', { role: 'api', families: ['bank'] });
    await seal(api, ssn);
    for (const family of ['ssn', 'bank']) {
      const started = await api.call('operator', 'POST', `/v1/keys/${family}/rotate`, {});
      assert.equal(started.status, 202, started.text);
      const id = started.body['id'] as string;
      for (let n = 0; ; n += 1) {
        const { body } = await api.call('operator', 'GET', `/v1/rotations/${id}`);
        if (body['phase'] !== 'pending') break;
        assert.ok(n < 400, JSON.stringify(body));
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    const later = await seal(api, ssn);
    assert.equal(later.body['version'], 2);
    assert.equal((await seal(bankOnly, bank)).body['version'], 2);
    const { rows } = await api.owner.query<{ family: string }>(
      `select distinct r.family from fieldkeep.instance_ready r join fieldkeep.instances i on i.id = r.instance
       where i.families is not null`,
    );
    assert.deepEqual(rows, [{ family: 'bank' }], 'who serves bank alone was not asked about ssn');
    const settings = await server.call('GET', `${mount}/keys/fk-ssn`);
    const { rows: versions } = await api.owner.query<{ transit_version: number }>(
      `select transit_version from fieldkeep.key_versions where family = 'ssn' order by version`,
    );
    assert.deepEqual(versions.at(-1)!.transit_version, settings.data!['latest_version']);
  });
});
