/** Columns that others have sealed, by pgcrypto and by Vault's transit, are taken in like plaintext: opened on the way, compared, cleared. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { roleOf, transaction } from '../../src/db.ts';
import { setStarted, setUndone } from '../../src/rotation/adoption-store.ts';
import { formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { listFailures } from '../../src/rotation/failure-store.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { openSources, type SourceOptions } from '../../src/rotation/sources.ts';
import { insertRun } from '../../src/rotation/store.ts';
import type { Service } from '../../src/service.ts';
import { describeVault, mountTransit, openAt, openVaultServer, type VaultServer } from '../support/vault.ts';
import {
  beginRotation,
  changePolicy,
  drive,
  isSettled,
  openBench,
  openFor,
  skipWaits,
  type Bench,
} from '../rotation/support.ts';

const rows = 40;
const address = 'demo.employees';
const passphrase = 'of another time';

type Sealed = { by: 'pgcrypto'; key: string } | { by: 'transit'; key: string; mount: string };

describe('adoption of what others have sealed', () => {
  let bench: Bench;
  afterEach(() => bench.close());

  async function open(sealed: Sealed, type: string, options: SourceOptions): Promise<Service> {
    const column = { table: address, key: ['id'], tenant: { column: 'tenant' }, column: 'pay_enc', class: 'salary' };
    const policy = changePolicy({ columns: [{ ...column, from: 'pay', adopt: true, sealed }] });
    bench = await openBench({ policy });
    await bench.owner.query(`
      alter table ${address} add pay ${type}, add pay_enc text;
      grant select (pay, pay_enc), update (pay, pay_enc) on ${address} to ${roleOf(bench.database.rowsUrl)}`);
    const of = {
      schema: 'demo',
      name: 'employees',
      column: 'pay_enc',
      source: 'pay',
      indexColumns: [],
      bound: ['id', 'tenant'],
    };
    for (const statement of formatTriggers(of)) await bench.owner.query(statement);
    await transaction(bench.owner, (tx) => setStarted(tx, address, 'pay_enc'));
    const catalog = await loadCatalog(bench.service.targets, policy.columns);
    return { ...bench.service, catalog, sources: openSources(options) };
  }

  async function goThrough(service: Service): Promise<void> {
    const id = await startAdoption(service, true);
    assert.equal((await drive(service, id!, isSettled)).phase, 'done');
    for (const kind of ['verification', 'finish'] as const) {
      const run = { id: randomUUID(), kind, family: 'salary', table: address, column: 'pay_enc', source: 'pay' };
      assert.ok(await insertRun(bench.owner, { ...run, requestedBy: 'test' }));
      const ended = await drive(service, run.id, isSettled);
      assert.deepEqual([ended.phase, ended.failed], ['done', 0], kind);
    }
    const found = await bench.owner.query<{ id: string; pay: unknown; pay_enc: string | null }>(
      `select id, pay, pay_enc from ${address} order by id`,
    );
    for (const { id: row, pay, pay_enc: envelope } of found.rows) {
      assert.equal(pay, null);
      const n = Number(row);
      const opened = envelope === null ? null : await openFor(service, 'pay_enc', row, envelope);
      assert.equal(opened, n % 9 === 0 ? null : `${n * 1000}.50`);
    }
  }

  /** What was sealed comes back as plaintext, and is compared as that. */
  async function goBack(service: Service, source: string): Promise<void> {
    await transaction(bench.owner, (tx) => setUndone(tx, address, 'pay_enc'));
    for (const kind of ['undo', 'leave'] as const) {
      const run = { id: randomUUID(), kind, family: 'salary', table: address, column: 'pay_enc', source };
      assert.ok(await insertRun(bench.owner, { ...run, requestedBy: 'test' }));
      assert.equal((await drive(service, run.id, isSettled)).phase, 'done', kind);
    }
    const { rows: found } = await bench.owner.query<{ id: string; back: string | null; pay_enc: string | null }>(
      `select id, ${source} as back, pay_enc from ${address}`,
    );
    for (const { id, back, pay_enc: envelope } of found) {
      assert.deepEqual([back, envelope], [Number(id) % 9 === 0 ? null : `${Number(id) * 1000}.50`, null]);
    }
  }

  it('by pgcrypto; what does not open is recorded, and keeps it from being done', async () => {
    const secrets = new Map([['hr', { passphrase }]]);
    const service = await open({ by: 'pgcrypto', key: 'hr' }, 'bytea', { secrets });
    await bench.owner.query('create extension pgcrypto schema public');
    await bench.owner.query(
      `insert into ${address} (id, tenant, name, pay)
       select n, 'acme', 'n', case when n % 9 > 0 then public.pgp_sym_encrypt(n * 1000 || '.50', case n when 7 then 'x' else $1 end) end
       from generate_series(1, ${rows}) n`,
      [passphrase],
    );
    const id = await startAdoption(service, true);
    assert.equal((await drive(service, id!, isSettled)).phase, 'blocked');
    const [failure, ...more] = await listFailures(bench.owner, id!, 10, undefined);
    assert.deepEqual([failure?.row, failure?.code, more.length], ['7', 'decryption_failed', 0]);
    await bench.owner.query(`update ${address} set pay = public.pgp_sym_encrypt('7000.50', $1) where id = 7`, [
      passphrase,
    ]);
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch'`);
    assert.equal((await drive(service, id!, (run) => run.phase === 'done')).failed, 0);
    const rotation = await beginRotation(service, 'salary');
    const bare = { ...service, sources: openSources({}) }; // sources that stand beside envelopes are not needed to rotate
    await drive(bare, rotation, (run) => run.activatedAt !== undefined);
    await skipWaits(bench.owner, rotation);
    assert.deepEqual(await drive(bare, rotation, isSettled).then(({ phase, failed }) => [phase, failed]), ['done', 0]);
    await bench.owner.query(
      `insert into ${address} (id, tenant, name, pay) values (41, 'acme', 'n', public.pgp_sym_encrypt('41000.50', $1))`,
      [passphrase],
    );
    await goThrough(service);
    await bench.owner.query(`alter table ${address} add shown text;
      grant select (shown), update (shown) on ${address} to ${roleOf(bench.database.rowsUrl)}`);
    await goBack(service, 'shown');
  });

  it('is not begun with another passphrase: no row is recorded for what is wrong with all of them', async () => {
    const service = await open({ by: 'pgcrypto', key: 'hr' }, 'bytea', {
      secrets: new Map([['hr', { passphrase: 'another one' }]]),
    });
    await bench.owner.query('create extension pgcrypto schema public');
    await bench.owner.query(
      `insert into ${address} (id, tenant, name, pay) select n, 'acme', 'n', public.pgp_sym_encrypt('1', $1)
       from generate_series(1, 60) n`,
      [passphrase],
    );
    const id = (await startAdoption(service, true))!;
    const refused = drive(service, id, isSettled);
    await assert.rejects(refused, {
      code: 'conflict',
      message: /^None of 60 values for demo\.employees\.pay_enc opens/,
    });
    assert.deepEqual(await listFailures(bench.owner, id, 10, undefined), []);
  });

  describeVault('with a Vault', () => {
    let server: VaultServer;
    before(async () => {
      server = await openVaultServer();
    });
    after(() => server.close());

    it('by transit', async () => {
      const mount = await mountTransit(server);
      await server.call('POST', `${mount}/keys/old-hr`, {});
      const at = openAt(server, { mount });
      const { vault, session } = at;
      const service = await open({ by: 'transit', key: 'old-hr', mount }, 'text', { vault: { vault, session } });
      for (let n = 1; n <= rows; n += 1) {
        const input = { plaintext: Buffer.from(`${n * 1000}.50`).toString('base64') };
        const { data } = await server.call('POST', `${mount}/encrypt/old-hr`, input);
        const pay = n % 9 === 0 ? null : String(data!['ciphertext']);
        await bench.owner.query(`insert into ${address} (id, tenant, name, pay) values ($1, 'acme', 'n', $2)`, [
          n,
          pay,
        ]);
      }
      await goThrough(service);
      await goBack(service, 'pay');
      at.rootKeys.close();
    });
  });
});
