/** Our own database, set up otherwise than we need it: at the start, and later on. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { findRefusal, openPool, roleOf, type Pool } from '../src/db.ts';
import { examine } from '../src/health.ts';
import { openBench } from './rotation/support.ts';
import { createDatabase, type TestDatabase } from './support/database.ts';

describe('sessions of our own database', () => {
  let database: TestDatabase;
  let admin: Pool;
  let place: string;
  before(async () => {
    database = await createDatabase();
    const server = new URL(database.ownerUrl);
    const name = server.pathname.slice(1);
    server.pathname = '/postgres';
    admin = openPool(server.href, { max: 1, name: 'admin' });
    place = `role ${roleOf(database.workerUrl)} in database ${name}`;
  });
  afterEach(() => admin.query(`alter ${place} reset all`));
  after(async () => {
    await admin.end();
    await database.drop();
  });

  it('commit what they acknowledge, whatever the role has', async () => {
    await admin.query(`alter ${place} set synchronous_commit = off`);
    const bench = await openBench({ database: { ...database, drop: () => Promise.resolve() } });
    const { rows } = await bench.service.pool.query<{ synchronous_commit: string }>('show synchronous_commit');
    assert.equal(rows[0]!.synchronous_commit, 'on');
    await bench.close();
  });

  it('keep a service from starting, and from being ready later on, and say why', async () => {
    const bench = await openBench({ database: { ...database, drop: () => Promise.resolve() } });
    assert.deepEqual((await examine(bench.service)).reasons, []);
    await admin.query(`alter ${place} set session_replication_role = replica`);
    await admin.query(
      'select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1 and usename = $2',
      [...[new URL(database.workerUrl).pathname.slice(1), roleOf(database.workerUrl)]],
    );
    await sleep(100);
    const words = /^the database answers in a session .*session_replication_role is replica.*alter role … reset/;
    const { reasons } = await examine(bench.service);
    assert.ok(
      reasons.some((reason) => words.test(reason)),
      reasons.join('\n'),
    );
    await assert.rejects(openBench({ database }), (error) => findRefusal(error) !== undefined);
    await admin.query(`alter ${place} reset all`);
    await bench.service.pool.query('select 1');
    assert.deepEqual((await examine(bench.service)).reasons, []);
    await bench.close();
  });
});
