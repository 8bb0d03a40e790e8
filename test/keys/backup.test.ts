import assert from 'node:assert/strict';
import { openPool, transaction, type Pool } from '../../src/db.ts';
import { exportKeys, importKeys, parseBackup } from '../../src/keys/backup.ts';
import { activateVersion, insertVersion, raiseEpoch } from '../../src/keys/store.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { openTestService, type TestService } from '../support/service.ts';

const context = { table: 'demo.employees', column: 'bank', row: '1' };

describe('a backup of wrapped keys', () => {
  let it_: TestService;
  let fresh: TestDatabase;
  let pool: Pool;
  let envelope: string;

  before(async () => {
    it_ = await openTestService();
    const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: 'x', context });
    envelope = sealed.body['envelope'] as string;
  });
  after(() => it_.close());
  beforeEach(async () => {
    fresh = await createDatabase();
    pool = openPool(fresh.workerUrl, { max: 2, name: 'test' });
  });
  afterEach(async () => {
    await pool.end();
    await fresh.drop();
  });

  const exported = async (from: Pool) => {
    const [, ...lines] = (await exportKeys(from)).trim().split('\n');
    return lines;
  };

  it('brings a lost database back: every envelope opens again', async () => {
    const text = await exportKeys(it_.service.pool);
    const imported = await importKeys(pool, parseBackup(text));
    assert.deepEqual(imported, { families: 4, versions: 4, dataKeys: 3 }); // with the one that calls to workers are sealed with
    assert.deepEqual(await exported(pool), await exported(it_.service.pool));
    assert.deepEqual(await importKeys(pool, parseBackup(text)), { families: 0, versions: 0, dataKeys: 0 });
    const restored = await openTestService({ database: fresh, rootKeys: it_.service.rootKeys });
    try {
      const body = { envelope, context, view: 'full' };
      const reply = await restored.call('payroll-agent', 'POST', '/v1/decrypt', body);
      assert.equal(reply.body['value'], 'x', reply.text);
    } finally {
      await restored.close();
    }
  });

  it('takes an older database forward, and never back', async () => {
    const old = await exportKeys(it_.service.pool);
    await importKeys(pool, parseBackup(old));
    const { service } = it_;
    const transitVersion = await service.rootKeys.rotate('bank');
    await transaction(service.pool, async (tx) => {
      await insertVersion(tx, {
        family: 'bank',
        version: 2,
        state: 'pending',
        transitVersion,
        bind: 'row',
        indexes: [],
      });
      await activateVersion(tx, 'bank', 2);
      await raiseEpoch(tx);
    });
    await service.keyring.refresh();
    await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: 'x', context });
    const newer = await exportKeys(service.pool);
    assert.deepEqual(await importKeys(pool, parseBackup(newer)), { families: 0, versions: 1, dataKeys: 1 });
    assert.deepEqual((await exported(pool)).length, (await exported(service.pool)).length);
    await importKeys(pool, parseBackup(old));
    const { rows } = await pool.query<{ version: number; state: string }>(
      `select version, state from fieldkeep.key_versions where family = 'bank' order by 1`,
    );
    assert.deepEqual(rows, [
      { version: 1, state: 'decrypt-only' },
      { version: 2, state: 'active' },
    ]);
  });

  it('closes here what was compromised there, whatever it is here', async () => {
    const text = await exportKeys(it_.service.pool);
    await importKeys(pool, parseBackup(text));
    const versionLine = (version: number, state: string) => ({
      ...{ family: 'salary', version, state, transitVersion: version, bind: 'row', normalise: null, indexes: [] },
      ...{ createdAt: '2026-01-01T00:00:00Z', activatedAt: null },
    });
    const importStates = async (...states: string[]) => {
      const lines = [text.split('\n')[0], ...states.map((state, i) => JSON.stringify(versionLine(i + 1, state)))];
      await importKeys(pool, parseBackup(lines.join('\n')));
      const { rows } = await pool.query<{ state: string }>(
        `select state from fieldkeep.key_versions where family = 'salary' order by version`,
      );
      assert.deepEqual(
        rows.map(({ state }) => state),
        states,
      );
    };
    await importStates('active', 'pending');
    await importStates('compromised', 'compromised', 'active');
  });

  it('imports nothing when file and database disagree, or the file is damaged', async () => {
    const text = await exportKeys(it_.service.pool);
    await importKeys(pool, parseBackup(text));
    const before = await exported(pool);
    const otherKey = text.replace(
      /("fingerprint":")(.)/,
      (_, head: string, first: string) => head + (first === 'A' ? 'B' : 'A'),
    );
    await assert.rejects(importKeys(pool, parseBackup(otherKey)), { code: 'conflict', message: /another key/ });
    const otherVersion = text.replace('"transitVersion":1', '"transitVersion":7');
    await assert.rejects(importKeys(pool, parseBackup(otherVersion)), {
      code: 'conflict',
      message: /another one here/,
    });
    assert.deepEqual(await exported(pool), before);
    for (const [damaged, pattern] of [
      ['', /empty/],
      [text.slice(0, -10), /Line \d+ is not JSON/],
      [text.replace('fieldkeep-keys/1', 'fieldkeep-keys/2'), /Line 1 is no line/],
      [text.replace('"state":"active"', '"state":"CANARY"'), /^Line \d+ is no line of fieldkeep-keys\/1\.$/],
    ] as const) {
      assert.throws(() => parseBackup(damaged), { code: 'request_invalid', message: pattern });
    }
  });
});
