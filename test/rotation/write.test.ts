/** Writing with what gets in the way: locks, timeouts, deadlocks, rows that the database does not take. */
import assert from 'node:assert/strict';
import pg from 'pg';
import { connect, withClient, type Queryable } from '../../src/db.ts';
import { readBatch, type Change } from '../../src/rotation/batch.ts';
import { BatchSize } from '../../src/rotation/pace.ts';
import { writeChanges, type Destination } from '../../src/rotation/write.ts';
import { fill, openBench, type Bench } from './support.ts';

describe('rotation/write', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench();
  });
  after(() => bench.close());
  beforeEach(async () => {
    await bench.owner.query('truncate demo.employees');
    await fill(bench.owner, 300, (id) => `value ${id}`);
  });

  const columns = ['ssn'];
  const target = () => bench.service.targets.findRows(undefined)!;
  const table = () => bench.service.catalog.tables.get('demo.employees')!;
  const to = (more: Partial<Destination> = {}): Destination => ({
    ...{ db: target(), table: table(), columns: { read: columns, written: columns }, skipLocked: true },
    ...more,
  });
  const changes = async (): Promise<Change[]> => {
    const rows = await readBatch(target(), table(), { columns, rowsMax: 1000 });
    return rows.map((row) => ({ ...row, next: [`new ${row.key[0]}`] }));
  };
  const counts = async () => {
    const { rows } = await bench.owner.query<{ n: number }>(
      `select count(*)::int as n from demo.employees where ssn like 'new %'`,
    );
    return rows[0]!.n;
  };

  /** A database that fails the first statements with these states, before or after they were carried out. */
  function failing(states: readonly string[], stored: boolean): { db: Queryable; statements: () => number } {
    let statements = 0;
    const query = async (...args: Parameters<pg.Pool['query']>) => {
      const state = states[statements++];
      const result =
        state === undefined || stored
          ? await (target().query as (...a: unknown[]) => Promise<unknown>)(...args)
          : undefined;
      if (state === undefined) return result;
      throw Object.assign(new pg.DatabaseError('told by the test', 0, 'error'), { code: state });
    };
    return { db: { query } as unknown as Queryable, statements: () => statements };
  }

  it('writes in statements of the size that fits, and says how long they took', async () => {
    const { db, statements } = failing([], false);
    const size = new BatchSize(100);
    const written = await writeChanges(to({ db }), await changes(), size);
    assert.deepEqual([written.keys.length, written.refused.length, written.contended], [300, 0, false]);
    assert.equal(statements(), 2);
    assert.ok(written.ms > 0);
    assert.equal(await counts(), 300);
  });

  for (const [state, what] of [
    ['55P03', 'a lock that was not to be had'],
    ['57014', 'a statement that took too long'],
    ['40P01', 'a deadlock'],
    ['40001', 'a serialization failure'],
  ] as const) {
    it(`tries again after ${what}, with half as many rows`, async () => {
      const { db } = failing([state, state], false);
      const size = new BatchSize(100);
      const first = size.rows;
      const seen: number[] = [];
      const observed = {
        get rows() {
          return size.rows;
        },
        observe: (rows: number) => void seen.push(rows),
        halve: () => size.halve(),
      };
      const written = await writeChanges(to({ db }), await changes(), observed as unknown as BatchSize);
      assert.deepEqual([written.keys.length, written.contended], [300, true]);
      assert.equal(seen[0], first / 4);
      assert.equal(await counts(), 300);
    });
  }

  it('changes nothing twice when a statement failed and was carried out all the same', async () => {
    const { db } = failing(['57014'], true);
    const written = await writeChanges(to({ db }), await changes(), new BatchSize(100));
    assert.equal(written.keys.length, 100, 'what was stored by the one that failed is not as it was read any more');
    assert.equal(await counts(), 300);
  });

  it('gives up on what does not go away, and on what is not about a row', async () => {
    const stays = failing(
      Array.from({ length: 20 }, () => '57014'),
      false,
    );
    await assert.rejects(writeChanges(to({ db: stays.db }), (await changes()).slice(0, 1), new BatchSize(100)), {
      code: '57014',
    });
    assert.equal(stays.statements(), 7);
    const gone = failing(['42P01'], false);
    await assert.rejects(writeChanges(to({ db: gone.db }), await changes(), new BatchSize(100)), { code: '42P01' });
    assert.equal(gone.statements(), 1);
  }).timeout(60_000);

  it('finds the rows that the database does not take, and stores all others', async () => {
    await bench.owner.query(
      `alter table demo.employees add constraint odd check (ssn not in ('new 7', 'new 111', 'new 112')) not valid`,
    );
    await bench.owner.query(`create function demo.meddle() returns trigger language plpgsql as
      $$ begin if new.id = 250 then new.ssn := 'meddled'; end if; return new; end $$`);
    await bench.owner.query(
      'create trigger meddle before update on demo.employees for each row execute function demo.meddle()',
    );
    try {
      const some = await changes();
      const written = await withClient(target(), (db) => writeChanges(to({ db }), some, new BatchSize(100)));
      assert.equal(written.keys.length, 296);
      const refused = written.refused.map(({ key, state }) => `${key[0]} ${state}`).sort();
      assert.deepEqual(refused, ['111 23514', '112 23514', '250 27000', '7 23514']);
      assert.equal(await counts(), 296);
    } finally {
      await bench.owner.query('drop function demo.meddle() cascade');
      await bench.owner.query('alter table demo.employees drop constraint odd');
    }
  });

  it('does not take a table apart that takes nothing at all', async () => {
    await bench.owner.query(`alter table demo.employees add constraint nothing check (ssn not like 'new %') not valid`);
    try {
      await assert.rejects(writeChanges(to(), await changes(), new BatchSize(100)), { code: '23514' });
    } finally {
      await bench.owner.query('alter table demo.employees drop constraint nothing');
    }
  });

  it('waits for locks when it should, no longer than a quarter of a second, then passes over them', async () => {
    const application = await connect(bench.database.ownerUrl, { name: 'application' });
    try {
      await application.query('begin');
      await application.query('select from demo.employees where id = 5 for update');
      const started = performance.now();
      const written = await writeChanges(to({ skipLocked: false }), await changes(), new BatchSize(100));
      const ms = performance.now() - started;
      assert.ok(ms > 240 && ms < 3_000, `${ms} ms`);
      assert.deepEqual([written.keys.length, written.contended], [299, true]);
    } finally {
      await application.end();
    }
  });
});
