/** Re-encryption beside a real standby that cannot keep up: it rests, says why, and goes on. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { connect, openPool, roleOf, type Pool } from '../../src/db.ts';
import { migrate } from '../../src/migrate.ts';
import { placePostgres } from '../../src/embedded/postgres-place.ts';
import { findPort, startPostgres, type EmbeddedPostgres } from '../../src/embedded/postgres.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { viewRun } from '../../src/rotation/progress.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { advance } from '../../src/rotation/run.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { findRun } from '../../src/rotation/store.ts';
import { findLagMib } from '../../src/rotation/throttle-store.ts';
import { openService, type Service } from '../../src/service.ts';
import { changePolicy, fill } from './support.ts';

/** `url` with another port. */
function at(url: string, port: number): string {
  const changed = new URL(url);
  changed.port = String(port);
  return changed.href;
}

describe('a replica that is behind', () => {
  let home: string;
  let primary: EmbeddedPostgres;
  let standby: ChildProcess | undefined;
  let replica: string;
  let owner: Pool;
  let service: Service;

  /** A standby from a copy of the primary's folder, made while that was down. */
  async function startStandby(): Promise<void> {
    const settings = { fsync: 'off', wal_receiver_status_interval: '1s' };
    primary = await startPostgres({ home, settings });
    await migrate(primary.ownerUrl, {}, () => undefined);
    await primary.stop();
    const { id } = JSON.parse(readFileSync(join(home, 'postgres.json'), 'utf8')) as { id: string };
    const place = placePostgres(home, id);
    const data = `${place.data}.standby`;
    cpSync(place.data, data, { recursive: true });
    primary = await startPostgres({ home, settings });
    writeFileSync(join(data, 'standby.signal'), '');
    const source = new URL(primary.ownerUrl);
    const info = `host=127.0.0.1 port=${source.port} user=${source.username} password=${source.password}`;
    writeFileSync(join(data, 'postgresql.auto.conf'), `primary_conninfo = '${info}'\n`);
    if (place.user !== undefined) {
      const { uid, gid } = place.user;
      for (const path of await listAll(data)) chownSync(path, uid, gid);
    }
    chmodSync(data, 0o700);
    const port = await findPort(0);
    const args = ['-D', data, '-p', String(port), '-c', 'listen_addresses=127.0.0.1', '-c', 'unix_socket_directories='];
    standby = spawn(join(place.bin, 'postgres'), [...args, '-c', 'fsync=off'], {
      ...place.user,
      cwd: '/',
      stdio: 'ignore',
    });
    replica = at(primary.ownerUrl, port);
  }

  async function listAll(folder: string): Promise<string[]> {
    const inside = await readdir(folder, { recursive: true });
    return [folder, ...inside.map((name) => join(folder, name))];
  }

  /** On the standby, which takes a moment to answer. */
  async function tell(sql: string): Promise<void> {
    for (let tries = 0; ; tries += 1) {
      try {
        const client = await connect(replica, { name: 'standby' });
        await client.query(sql).finally(() => client.end());
        return;
      } catch (error) {
        if (tries > 200) throw error;
        await sleep(100);
      }
    }
  }

  before(async function () {
    this.timeout(120_000);
    home = mkdtempSync(join(tmpdir(), 'fieldkeep-replica-'));
    chmodSync(home, 0o711);
    await startStandby();
    owner = openPool(primary.ownerUrl, { max: 2, name: 'owner' });
    await owner.query(`grant pg_read_all_stats to ${roleOf(primary.rowsUrl)}`);
    const rootKeys = await openEmbeddedRootKeys(join(home, 'root-keys.json'));
    const rotation = { lagMibMax: 1 };
    const policy = changePolicy({ classes: { ssn: { rotation }, bank: { rotation }, salary: { rotation } } });
    const log = pino({ level: 'silent' });
    service = await openService({
      databaseUrl: primary.workerUrl,
      rows: new Map([[undefined, primary.rowsUrl]]),
      rootKeys,
      policy,
      log,
    });
    await tell('select pg_wal_replay_pause()');
  });
  after(async () => {
    await service.close();
    await owner.end();
    if (standby !== undefined) {
      const ended = once(standby, 'exit');
      standby.kill('SIGQUIT');
      await ended;
    }
    await primary.stop();
    rmSync(home, { recursive: true, force: true });
  });

  it('is waited for', async () => {
    const count = 6_000;
    await fill(owner, count, (id) => `536-22-${id}`);
    const deadline = performance.now() + 20_000;
    while ((await findLagMib(service.targets.findRows(undefined)!)) <= 1) {
      assert.ok(performance.now() < deadline, 'the standby is seen to be behind');
      await sleep(100);
    }
    const id = (await startAdoption(service, true))!;
    await advance(service, id);
    const working = (async () => {
      for (const range of await listFreeRanges(service.pool)) await workRange(service, range, () => false);
    })();
    const adopted = async () => {
      const { rows } = await owner.query<{ n: number }>(
        'select count(*)::int as n from demo.employees where fieldkeep.fe_version(ssn) > 0',
      );
      return rows[0]!.n;
    };
    await sleep(2_500);
    assert.equal(await adopted(), 0, 'nothing is written while it is behind');
    const held = await viewRun(service.pool, (await findRun(service.pool, id))!);
    assert.match(held.throttle!, /a replica that is \d+ MiB behind/);
    await tell('select pg_wal_replay_resume()');
    await working;
    assert.equal(await adopted(), count);
    const run = (await findRun(service.pool, id))!;
    assert.equal((await viewRun(service.pool, run)).phase, 'verifying');
  }).timeout(120_000);
});
