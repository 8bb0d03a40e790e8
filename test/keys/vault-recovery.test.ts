/** Every loss that VAULT.md tells how to recover from, tried: the database, the Vault, and both. */
import assert from 'node:assert/strict';
import { exportKeys, importKeys, parseBackup } from '../../src/keys/backup.ts';
import { openPool } from '../../src/db.ts';
import { createDatabase } from '../support/database.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { describeVault, openAt, openVaultServer, setUp, type VaultServer } from '../support/vault.ts';

const context = { table: 'demo.employees', column: 'bank', row: '1' };
const value = 'GB29 NWBK 6016 1331 9268 19';

describeVault(
  'what was lost and is recovered',
  function () {
    this.timeout(90_000);
    let lost: VaultServer;
    let envelope: string;
    let backup: string;
    let snapshot: Buffer;

    const openAtServer = (server: VaultServer, options: Parameters<typeof openTestService>[0] = {}) =>
      openTestService({ rootKeys: openAt(server, { mount: 'transit' }).rootKeys, ...options });
    const decrypt = (it_: TestService) =>
      it_.call('payroll-agent', 'POST', '/v1/decrypt', { envelope, context, view: 'full' });

    before(async () => {
      lost = await openVaultServer({ own: true });
      await setUp(lost, 'transit', ['ssn', 'bank', 'salary']);
      const it_ = await openAtServer(lost);
      const reply = await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value, context });
      envelope = reply.body['envelope'] as string;
      backup = await exportKeys(it_.service.pool);
      snapshot = await lost.snapshot();
      await it_.close();
    });
    after(() => lost.close());

    /** A database that has only what `npm run keys -- import` brings. */
    async function openImported(server: VaultServer): Promise<TestService> {
      const database = await createDatabase();
      const pool = openPool(database.workerUrl, { max: 1, name: 'import' });
      await importKeys(pool, parseBackup(backup));
      await pool.end();
      const it_ = await openAtServer(server, { database });
      return {
        ...it_,
        async close() {
          await it_.close();
          await database.drop();
        },
      };
    }

    it('the database: keys are imported into a new one', async () => {
      const it_ = await openImported(lost);
      try {
        assert.equal((await decrypt(it_)).body['value'], value);
      } finally {
        await it_.close();
      }
    });

    it('a database that was begun anew without the import is refused it, and opens nothing', async () => {
      const it_ = await openAtServer(lost);
      try {
        await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value, context });
        await assert.rejects(importKeys(it_.service.pool, parseBackup(backup)), { code: 'conflict' });
        assert.equal((await decrypt(it_)).body['code'], 'decryption_failed');
      } finally {
        await it_.close();
      }
    });

    it('the Vault, and the database with it: a snapshot on a new server, and an import', async () => {
      const other = await openVaultServer({ own: true });
      try {
        const without = await openImported(other).then(async (it_) => {
          await setUp(other, 'transit', ['ssn', 'bank', 'salary']);
          const reply = await decrypt(it_);
          await it_.close();
          return reply;
        });
        assert.equal(without.body['code'], 'vault_unavailable', 'the same names on another server are other keys');
        await other.restore(snapshot, lost);
        const it_ = await openImported(other);
        assert.equal((await decrypt(it_)).body['value'], value);
        await it_.close();
      } finally {
        await other.close();
      }
    });
  },
  true,
);
