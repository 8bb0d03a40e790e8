/**
 * A trigger that returns null drops an UPDATE without a word. Such a row is recorded and the run blocks, whatever it is a
 * run of; a row that somebody else locked or changed is never taken for one.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { roleOf, transaction } from '../../src/db.ts';
import { readBatch, writeBatch, type Change } from '../../src/rotation/batch.ts';
import { listFailures } from '../../src/rotation/failure-store.ts';
import { setStarted, setUndone } from '../../src/rotation/adoption-store.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { insertRun, type Run } from '../../src/rotation/store.ts';
import type { RunKind } from '../../src/rotation/work.ts';
import { formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { adopt, changePolicy, drive, fill, isSettled, openBench, rotate, type Bench } from './support.ts';

const swallowed = 'not_stored:no_row';

/** Drops the updates of rows for which `condition` holds, as soft deletion and immutable rows are often made. */
async function swallow({ owner }: Bench, condition: string, table = 'demo.employees'): Promise<void> {
  await owner.query(`create or replace function public.swallow() returns trigger language plpgsql as
    $$ begin if ${condition} then return null; end if; return new; end $$`);
  await owner.query(
    `create trigger a_swallow before update on ${table} for each row execute function public.swallow()`,
  );
}
const letThrough = ({ owner }: Bench) => owner.query('drop function public.swallow() cascade');

async function failuresOf({ service }: Bench, run: Run): Promise<string[]> {
  const failures = await listFailures(service.pool, run.id, 1_000, undefined);
  return failures.map(({ column, row, code }) => `${column} ${row} ${code}`);
}

/** A blocked run looks again after a while; here at once. */
async function goOn({ service, owner }: Bench, run: Run): Promise<Run> {
  await owner.query(`update fieldkeep.rotations set blocked_at = blocked_at - interval '10 min' where id = $1`, [
    run.id,
  ]);
  return await drive(
    service,
    run.id,
    ({ phase, pass }) => phase === 'done' || (phase === 'blocked' && pass > run.pass),
  );
}

describe('an update that a trigger swallows', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench();
    await fill(bench.owner, 30, (id) => `value ${id}`);
  });
  afterEach(() => bench.close());

  const columns = ['ssn', 'ssn_eq'];
  const target = () => bench.service.targets.findRows(undefined)!;
  const table = () => bench.service.catalog.tables.get('demo.employees')!;
  const change = async (mark: string): Promise<Change[]> => {
    const rows = await readBatch(target(), table(), { columns, rowsMax: 100 });
    return rows.map((row) => ({ ...row, next: [`${mark} ${row.key[0]}`, 'b1.AA'] }));
  };
  const write = (changes: readonly Change[], skipLocked: boolean) =>
    writeBatch(target(), table(), { read: columns, written: columns }, changes, skipLocked);

  it('is told by the statement itself, and the other rows are stored', async () => {
    await swallow(bench, 'old.id in (7, 9)');
    const { keys, swallowed: dropped } = await write(await change('new'), true);
    assert.equal(keys.length, 28);
    assert.deepEqual(dropped.map(([id]) => id).sort(), ['7', '9']);
  });

  it('is never seen in rows that others lock and change meanwhile', async () => {
    await swallow(bench, `old.id = 7 and new.ssn like 'new%'`);
    let stopping = false;
    const hammer = async (first: number) => {
      for (let n = 0; !stopping; n += 1) {
        // A value there and back, so that what was read may stand there again; and rows that come, go and are only locked.
        const id = 1 + ((first + n) % 5);
        await bench.owner.query(`update demo.employees set ssn = 'theirs' where id = $1`, [id]);
        await bench.owner.query(`update demo.employees set ssn = $2 where id = $1`, [id, `value ${id}`]);
        await transaction(bench.owner, async (tx) => {
          await tx.query('select from demo.employees where id = $1 for update', [6]);
          await tx.query('delete from demo.employees where id = 8');
          await tx.query(`insert into demo.employees (id, tenant, name, ssn) values (8, 'acme', 'n', 'value 8')`);
        }).catch((error: unknown) => {
          if ((error as { code?: string }).code !== '23505') throw error; // two of us insert the row at once
        });
      }
    };
    const hammers = [0, 2, 4].map(hammer);
    let stored = 0;
    let overtaken = 0;
    const until = performance.now() + 4_000;
    for (let n = 0; performance.now() < until; n += 1) {
      const changes = await change(`new${n}`);
      const { keys, swallowed: dropped } = await write(changes, n % 2 === 0).catch((error: unknown) => {
        if ((error as { code?: string }).code !== '55P03') throw error;
        return { keys: [], swallowed: [['7']] };
      });
      assert.deepEqual(dropped, [['7']], `round ${n}`);
      stored += keys.length;
      overtaken += changes.length - keys.length - dropped.length;
    }
    stopping = true;
    await Promise.all(hammers);
    assert.ok(stored > 100, `${stored} rows stored`);
    assert.ok(overtaken > 20, `the application was in the way ${overtaken} times`);
  });

  it('blocks an adoption in place and a rotation, which go on when the trigger is gone', async () => {
    await swallow(bench, 'old.id = 7');
    const adoption = await adopt(bench.service);
    assert.equal(adoption.phase, 'blocked');
    assert.match(adoption.blocked ?? '', /^One value does not open or cannot be stored/);
    assert.ok(adoption.pass <= 2, `after pass ${adoption.pass}`);
    assert.deepEqual(await failuresOf(bench, adoption), [`ssn 7 ${swallowed}`]);
    await letThrough(bench);
    const adopted = await goOn(bench, adoption);
    assert.deepEqual([adopted.phase, await failuresOf(bench, adopted)], ['done', []]);

    await swallow(bench, 'old.id in (11, 12)');
    const rotation = await rotate(bench);
    assert.equal(rotation.phase, 'blocked');
    assert.ok(rotation.pass <= 2, `after pass ${rotation.pass}`);
    assert.deepEqual(await failuresOf(bench, rotation), [`ssn 11 ${swallowed}`, `ssn 12 ${swallowed}`]);
    const still = await goOn(bench, rotation);
    assert.deepEqual([still.phase, still.failed], ['blocked', 2], 'it looks again, and says it again');
    await letThrough(bench);
    assert.equal((await goOn(bench, still)).phase, 'done');
  }).timeout(90_000);

  it('is tried once more, and no failure when the trigger lets it through then', async () => {
    await adopt(bench.service);
    await bench.owner.query('create sequence demo.tries; grant usage on sequence demo.tries to public');
    await swallow(bench, `old.id = 7 and nextval('demo.tries') = 1`);
    const rotation = await rotate(bench);
    assert.deepEqual([rotation.phase, rotation.failed, rotation.pass], ['done', 0, 1]);
    const { rows } = await bench.owner.query<{ n: string }>('select last_value as n from demo.tries');
    assert.equal(rows[0]!.n, '2');
  }).timeout(60_000);
});

describe('an update that a trigger swallows on the way in and out', () => {
  const address = 'public.people';
  const column = 'ssn_enc';
  const policy = changePolicy({
    columns: [
      {
        ...{
          table: address,
          key: ['id'],
          tenant: { column: 'tenant' },
          column,
          class: 'ssn',
          from: 'ssn',
          adopt: true,
        },
        index: [{ name: 'eq', column: 'ssn_eq', bits: 8 }],
      },
    ],
  });
  let bench: Bench;
  before(async () => {
    bench = await openBench({ policy });
    const role = roleOf(bench.database.rowsUrl);
    await bench.owner.query(`
      create table ${address} (id int not null, tenant text not null, ssn text, ssn_enc text, ssn_eq text, primary key (id))
        partition by range (id);
      create table public.people_low partition of ${address} for values from (0) to (10);
      create table public.people_high partition of ${address} for values from (10) to (100);
      insert into ${address} (id, tenant, ssn) select n, 'acme', 100000000 + n from generate_series(1, 20) n;
      grant usage on schema public to ${role}; grant select, update on ${address} to ${role}`);
    const of = {
      schema: 'public',
      name: 'people',
      column,
      source: 'ssn',
      indexColumns: ['ssn_eq'],
      bound: ['id', 'tenant'],
    };
    for (const statement of formatTriggers(of)) await bench.owner.query(statement);
    await transaction(bench.service.pool, (tx) => setStarted(tx, address, column));
    await look();
  });
  after(() => bench.close());

  const look = async () => {
    bench.service.catalog = await loadCatalog(bench.service.targets, bench.service.policy.columns);
  };
  const begin = async (kind: RunKind): Promise<string> => {
    if (kind === 'adoption') return (await startAdoption(bench.service, true))!;
    const id = randomUUID();
    const about = { table: address, column, source: 'ssn' };
    assert.ok(
      await insertRun(bench.service.pool, {
        id,
        kind: kind,
        family: 'ssn',
        ...about,
        requestedBy: 'test',
      }),
    );
    return id;
  };

  for (const kind of ['adoption', 'finish', 'undo', 'leave'] as const) {
    it(`blocks ${kind}, by a trigger of one partition, and names the row`, async () => {
      if (kind === 'undo') await transaction(bench.service.pool, (tx) => setUndone(tx, address, column));
      await look();
      await swallow(bench, 'old.id = 13', 'public.people_high');
      const run = await drive(bench.service, await begin(kind), isSettled);
      assert.equal(run.phase, 'blocked', JSON.stringify(run));
      assert.deepEqual(await failuresOf(bench, run), [`${column} 13 ${swallowed}`]);
      await letThrough(bench);
      const ended = await goOn(bench, run);
      assert.deepEqual([ended.phase, ended.failed], ['done', 0], JSON.stringify(ended));
    }).timeout(60_000);
  }
});
