/** Connections to Postgres over a bad network: what counts as unavailable, and what comes back by itself. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { isUnavailable, openPool, toUnavailable, transaction, type Pool } from '../src/db.ts';
import { FieldkeepError } from '../src/errors.ts';
import { createDatabase, type TestDatabase } from './support/database.ts';
import { openProxy, type Proxy } from './support/proxy.ts';

describe('db over a bad network', () => {
  let database: TestDatabase;
  let proxy: Proxy;
  let pool: Pool;

  before(async () => {
    database = await createDatabase();
    proxy = await openProxy(database.ownerUrl);
    pool = openPool(proxy.through(database.ownerUrl), { max: 2, name: 'test', statementTimeoutMs: 2_000 });
    await pool.query('create table public.note (n int)');
  });
  afterEach(() => {
    proxy.mode = 'pass';
    proxy.delayMs = 0;
  });
  after(async () => {
    proxy.cut();
    await pool.end();
    await proxy.close();
    await database.drop();
  });

  const count = async () => (await pool.query<{ n: number }>('select count(*)::int as n from public.note')).rows[0]!.n;

  it('waits for a slow one', async () => {
    proxy.delayMs = 60;
    const started = performance.now();
    assert.equal(await count(), 0);
    assert.ok(performance.now() - started >= 119);
  });

  it('sees a cut connection as unavailable, says nothing of its address, and has a new one for the next query', async () => {
    const lost = pool.query('select pg_sleep(5)');
    await sleep(150);
    assert.ok(proxy.cut() >= 1);
    await assert.rejects(lost, (error) => {
      assert.ok(isUnavailable(error));
      const told = toUnavailable(error);
      assert.ok(told instanceof FieldkeepError && told.code === 'database_unavailable');
      assert.doesNotMatch(JSON.stringify(told) + told.message + String(told.cause), /127\.0\.0\.1|postgres/);
      return true;
    });
    assert.equal(await count(), 0);
  });

  it('outlives the loss of idle connections', async () => {
    await count();
    assert.ok(proxy.cut() >= 1);
    await sleep(50);
    assert.equal(await count(), 0);
  });

  it('sees a refused connection as unavailable', async () => {
    proxy.cut();
    proxy.mode = 'refuse';
    await sleep(50);
    await assert.rejects(count(), (error) => isUnavailable(error));
    proxy.mode = 'pass';
    assert.equal(await count(), 0);
  });

  it('rolls back a transaction that lost its connection before the commit', async () => {
    await assert.rejects(
      transaction(pool, async (tx) => {
        await tx.query('insert into public.note values (1)');
        proxy.cut();
        await tx.query('select 1');
      }),
      (error) => isUnavailable(error),
    );
    assert.equal(await count(), 0);
  });

  it('does not know of a commit whose answer was swallowed, which did happen', async () => {
    const swallowed = transaction(pool, async (tx) => {
      await tx.query('insert into public.note values (2)');
      proxy.mode = 'swallow';
    });
    const lost = assert.rejects(swallowed, (error) => isUnavailable(error));
    await sleep(300);
    proxy.cut();
    proxy.mode = 'pass';
    await lost;
    assert.equal(await count(), 1);
  });

  it('takes a wrong statement for what it is', async () => {
    await assert.rejects(pool.query('select nothing from nowhere'), (error) => !isUnavailable(error));
  });
});
