/** `npm run keys` as a person runs it: a backup into a new database, and a version destroyed at a real Vault. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect } from '../../src/db.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { describeVault, mountTransit, openAt, openVaultServer, type VaultServer } from '../support/vault.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const context = { table: 'demo.employees', column: 'bank', row: '1' };

describe('npm run keys', function () {
  this.timeout(60_000);
  let it_: TestService;
  let database: TestDatabase;
  let folder: string;

  before(async () => {
    database = await createDatabase();
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep keys '));
  });
  after(async () => {
    await database.drop();
    rmSync(folder, { recursive: true, force: true });
  });
  afterEach(() => it_.close());

  async function keys(args: readonly string[], on: TestDatabase, env: Record<string, string> = {}) {
    const child = spawn(process.execPath, ['scripts/keys.ts', ...args], {
      cwd: root,
      env: {
        ...process.env,
        ...{ DATABASE_URL: on.serviceUrl, DATABASE_OWNER_URL: on.ownerUrl, VAULT_ADDR: '', NODE_ENV: '', ...env },
      },
    });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    return { code: child.exitCode, out, err };
  }

  it('exports, imports into an empty server, and says in a sentence what is wrong', async () => {
    it_ = await openTestService({ database });
    await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: 'x', context });
    const file = join(folder, 'keys.ndjson');
    const exported = await keys(['export', file], database);
    assert.equal(exported.code, 0, exported.err);
    assert.match(exported.out, /2 wrapped data keys\. They open nothing without the root keys/);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    const empty = await createDatabase();
    try {
      // Not even a schema: the import makes it.
      const owner = await connect(empty.ownerUrl, { name: 'test' });
      await owner.query('drop schema fieldkeep cascade; drop schema demo cascade');
      await owner.end();
      const imported = await keys(['import', file], empty);
      assert.equal(imported.out, 'Added 4 families, 4 versions and 2 wrapped data keys.\n', imported.err);
      assert.equal(
        (await keys(['import', file], empty)).out,
        'Added 0 families, 0 versions and 0 wrapped data keys.\n',
      );
      writeFileSync(file, 'nonsense');
      for (const [args, pattern] of [
        [['import', file], /^Line 1 is not JSON[^\n]*\n$/],
        [['import', join(folder, 'none')], /none cannot be read\.\n$/],
        [['destroy', 'bank', '1', '--reason', 'x'], /^VAULT_ADDR and the login of an operator are needed[^\n]*\n$/],
        [['destroy', 'bank', '1'], /^Usage: npm run keys/],
        [[], /^Usage: npm run keys/],
      ] as const) {
        const failed = await keys(args, empty);
        assert.equal(failed.code, 1);
        assert.match(failed.err, pattern);
      }
    } finally {
      await empty.drop();
    }
  });

  describeVault('with a Vault', () => {
    let server: VaultServer;
    before(async () => {
      server = await openVaultServer();
    });
    after(() => server.close());

    it('destroys a version after a real rotation, and says why it will not', async () => {
      const mount = await mountTransit(server);
      const own = await createDatabase();
      it_ = await openTestService({ database: own, rootKeys: openAt(server, { mount }).rootKeys });
      const ca = join(folder, 'ca.pem');
      if (server.ca !== undefined) writeFileSync(ca, server.ca);
      const token = (await server.call('POST', 'auth/token/create', { ttl: '1h' })).auth!['client_token'] as string;
      const env = {
        ...{ VAULT_ADDR: server.address, VAULT_TOKEN: token, VAULT_TRANSIT_MOUNT: mount },
        ...{ VAULT_CACERT: server.ca === undefined ? '' : ca },
      };
      const body = { class: 'bank', value: 'x', context };
      const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body);
      await it_.owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'x', $1)`, [
        sealed.body['envelope'],
      ]);
      const destroy = () => keys(['destroy', 'bank', '1', '--reason', 'test'], own, env);
      assert.match((await destroy()).err, /^Version 1 of family bank is active: rotate first\.\n$/);
      const rotation = await it_.call('operator', 'POST', '/v1/keys/bank/rotate', {});
      const path = `/v1/rotations/${String(rotation.body['id'])}`;
      assert.match((await destroy()).err, /^(Family bank is rotating|Version 1 of family bank is active)/);
      while ((await it_.call('operator', 'GET', path)).body['phase'] !== 'done') {
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      const done = await destroy();
      assert.equal(done.code, 0, done.err);
      assert.match(done.out, /^Version 1 of family bank is destroyed: Vault has confirmed/);
      const { rows } = await it_.owner.query<{ bank: string }>('select bank from demo.employees');
      const decrypt = { envelope: rows[0]!.bank, context, view: 'full' };
      assert.equal((await it_.call('payroll-agent', 'POST', '/v1/decrypt', decrypt)).body['value'], 'x');
      const old = { ...decrypt, envelope: sealed.body['envelope'] };
      assert.equal((await it_.call('payroll-agent', 'POST', '/v1/decrypt', old)).body['code'], 'version_destroyed');
      for (const text of [done.out, done.err]) assert.ok(!text.includes(token));
    });
  });
});
