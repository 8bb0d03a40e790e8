/**
 * kill -9 at every step of a version's way out: a process of its own is killed right before or right after one of its
 * writes, and whoever comes next finds one truth and finishes. KILLS=100 for a long look.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openPool, type Pool } from '../../src/db.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { Keyring } from '../../src/keys/keyring.ts';
import type { Service } from '../../src/service.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { checkEnd, checkTruth, passTime, rows, valueOf } from './end.ts';
import { adopt, fill, openBench } from '../rotation/support.ts';

const kills = Number(process.env.KILLS ?? 4);
/** Writes of the whole way, guard and destruction, with room for more: who comes behind the last one ends a version. */
const writesMax = 40;

describe('a process that is killed on a version’s way out', () => {
  let database: TestDatabase;
  let owner: Pool;
  let pool: Pool;
  let home: string;

  before(async () => {
    database = await createDatabase();
    owner = openPool(database.ownerUrl, { max: 2, name: 'owner' });
    pool = openPool(database.workerUrl, { max: 2, name: 'check' });
    home = mkdtempSync(join(tmpdir(), 'fieldkeep-retire-'));
    const bench = await openBench({ database, home });
    await fill(owner, rows, valueOf);
    await adopt(bench.service);
    await bench.service.close();
    await bench.owner.end();
  });
  after(async () => {
    await owner.end();
    await pool.end();
    await database.drop();
    rmSync(home, { recursive: true, force: true });
  });

  /** True when it was killed. */
  async function runChild(at: number, when: 'before' | 'after'): Promise<boolean> {
    const file = fileURLToPath(new URL('./child.ts', import.meta.url));
    const { workerUrl, rowsUrl, ownerUrl } = database;
    const env = { ...process.env, DATABASE_URL: workerUrl, DATABASE_ROWS_URL: rowsUrl, DATABASE_OWNER_URL: ownerUrl };
    const child = spawn(process.execPath, [file, home, String(at), when], { env, stdio: ['ignore', 'ignore', 'pipe'] });
    let told = '';
    child.stderr.on('data', (chunk: Buffer) => (told += String(chunk)));
    await once(child, 'close');
    // What a minute brings: nobody waits for the dead, and what it held is free.
    await owner.query('delete from fieldkeep.instances');
    await owner.query('update fieldkeep.rotations set driver_until = null');
    await passTime(owner);
    if (child.signalCode === 'SIGKILL') return true;
    assert.equal(child.exitCode, 0, told);
    return false;
  }

  /** The version whose way out it is, or was last. */
  async function current(): Promise<number> {
    const { rows: found } = await owner.query<{ version: number }>(
      `select coalesce((select max(version) from fieldkeep.destructions),
         (select min(version) from fieldkeep.key_versions where family = 'ssn')) as version`,
    );
    return found[0]!.version;
  }

  function isRootKeyThere(version: number): boolean {
    const file = JSON.parse(readFileSync(join(home, 'root-keys.json'), 'utf8')) as {
      ssn: { versions: Record<string, string> };
    };
    return String(version) in file.ssn.versions;
  }

  it(`leaves one truth each time: ${kills} kills`, async function () {
    this.timeout(60_000 + kills * 30_000);
    const places = new Set<string>();
    let [killed, ended] = [0, 0];
    for (let at = randomInt(1, 12); killed < kills;) {
      const when = killed % 2 === 0 ? 'before' : 'after';
      if (await runChild(at, when)) {
        killed += 1;
        places.add(`${at} ${when}`);
        at = randomInt(1, writesMax);
      } else {
        ended += 1;
        at = randomInt(1, 12);
      }
      const version = await current();
      await checkTruth({ pool }, owner, version, isRootKeyThere(version));
    }
    // The last one comes to its end, too.
    while (await runChild(1_000, 'before'));
    const version = await current();
    const rootKeys = await openEmbeddedRootKeys(join(home, 'root-keys.json'));
    const keyring = await Keyring.open({ pool, rootKeys, onError: () => undefined });
    try {
      await checkEnd({ pool, keyring } as unknown as Service, owner, version);
    } finally {
      keyring.close();
    }
    const { rows: open } = await owner.query('select from fieldkeep.destructions where finished_at is null');
    assert.equal(open.length, 0);
    assert.ok(!isRootKeyThere(version));
    console.log(`      ${killed} kills at ${places.size} places; ${ended + 1} versions came to their end`);
  });
});
