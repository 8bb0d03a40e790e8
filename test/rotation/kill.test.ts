import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openPool, type Pool } from '../../src/db.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { Keyring } from '../../src/keys/keyring.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { fill, openFor } from './support.ts';

// More of both for a long look: ROWS=100000 KILLS=10 mocha …
const rows = Number(process.env.ROWS ?? 10_000);
const kills = Number(process.env.KILLS ?? 4);

describe('a service that is killed in the middle of a rotation', () => {
  let database: TestDatabase;
  let owner: Pool;
  let home: string;
  let child: ChildProcess | undefined;

  before(async () => {
    database = await createDatabase();
    owner = openPool(database.ownerUrl, { max: 4, name: 'owner', statementTimeoutMs: 60_000 });
    home = mkdtempSync(join(tmpdir(), 'fieldkeep-kill-'));
  });
  after(async () => {
    child?.kill('SIGKILL');
    await owner.end();
    await database.drop();
    rmSync(home, { recursive: true, force: true });
  });

  async function start(): Promise<void> {
    const runtime = join(home, 'runtime.json');
    rmSync(runtime, { force: true });
    const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
    const env = {
      ...process.env,
      VAULT_ADDR: '',
      FIELDKEEP_HOME: home,
      PORT: '0',
      DATABASE_URL: database.apiUrl,
      DATABASE_WORKER_URL: database.workerUrl,
      DATABASE_ROWS_URL: database.rowsUrl,
      DATABASE_OWNER_URL: database.ownerUrl,
    };
    child = spawn(process.execPath, [main], { env, stdio: ['ignore', 'ignore', 'inherit'] });
    while (!existsSync(runtime)) {
      assert.equal(child.exitCode, null, 'the service starts');
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }

  async function kill(): Promise<void> {
    const ended = once(child!, 'exit');
    child!.kill('SIGKILL');
    await ended;
    // What ten seconds without a heartbeat bring about: its leases are free, and nobody waits for it.
    await owner.query('delete from fieldkeep.instances');
  }

  async function waitFor(sql: string, what: string, maxMs = 60_000): Promise<void> {
    const deadline = performance.now() + maxMs;
    for (;;) {
      const { rows: found } = await owner.query<{ ok: boolean }>(`select (${sql}) as ok`);
      if (found[0]!.ok) return;
      assert.ok(performance.now() < deadline, `in time: ${what}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  it('finishes after every start, and loses and mixes nothing', async function () {
    this.timeout(600_000);
    const value = (id: number) => (id % 97 === 0 ? null : `536-${id}`);
    await fill(owner, rows, value);
    await start();
    for (let n = 0; n < kills / 2; n += 1) {
      await new Promise((resolve) => setTimeout(resolve, randomInt(100, 700)));
      await kill(); // while it adopts
      await start();
    }
    await waitFor(
      `exists (select from fieldkeep.rotations where kind = 'adoption' and done_at is not null)
      and not exists (select from demo.employees where fieldkeep.fe_version(ssn) = 0)`,
      'adopted',
    );
    // Due now: the schedule starts it.
    await owner.query(`update fieldkeep.key_families set next_rotation_at = now() where family = 'ssn'`);
    await waitFor(
      `exists (select from fieldkeep.rotations where family = 'ssn' and pending_at is not null)`,
      'pending',
    );
    await owner.query(`update fieldkeep.rotations set pending_at = pending_at - interval '1 min'`);
    for (let n = 0; n < kills / 2; n += 1) {
      await new Promise((resolve) => setTimeout(resolve, randomInt(100, 700)));
      await kill(); // while it waits, activates, re-encrypts
      await start();
    }
    await waitFor(
      `exists (select from fieldkeep.rotations where family = 'ssn' and activated_at is not null)`,
      'active',
    );
    await owner.query(
      `update fieldkeep.rotations set activated_at = activated_at - interval '1 min' where done_at is null`,
    );
    await waitFor(`exists (select from fieldkeep.rotations where family = 'ssn' and done_at is not null)`, 'done');
    await kill();

    const pool = openPool(database.workerUrl, { max: 2, name: 'check' });
    const rootKeys = await openEmbeddedRootKeys(join(home, 'root-keys.json'));
    const keyring = await Keyring.open({ pool, rootKeys, onError: (error) => assert.fail(String(error)) });
    try {
      const table = await owner.query<{ id: string; ssn: string | null }>(
        'select id, ssn from demo.employees order by id',
      );
      assert.equal(table.rows.length, rows);
      for (const { id, ssn } of table.rows) {
        const want = value(Number(id));
        if (ssn === null) assert.equal(want, null);
        else {
          assert.match(ssn, /^fe1\.ssn\.2\./);
          assert.equal(await openFor({ keyring }, 'ssn', id, ssn), want);
        }
      }
      const { rows: versions } = await owner.query<{ version: number; state: string }>(
        `select version, state from fieldkeep.key_versions where family = 'ssn' order by version`,
      );
      assert.deepEqual(versions, [
        { version: 1, state: 'decrypt-only' },
        { version: 2, state: 'active' },
      ]);
    } finally {
      keyring.close();
      await pool.end();
    }
  });
});
