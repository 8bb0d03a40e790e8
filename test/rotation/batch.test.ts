import assert from 'node:assert/strict';
import { connect } from '../../src/db.ts';
import { readBatch, writeBatch, type Change, type Row } from '../../src/rotation/batch.ts';
import { fill, openBench, type Bench } from './support.ts';

describe('the batch statement', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench();
  });
  after(() => bench.close());
  beforeEach(async () => {
    await bench.owner.query('truncate demo.employees');
    await fill(bench.owner, 10, (id) => `value ${id}`);
  });

  const columns = ['ssn', 'ssn_eq'];
  const target = () => bench.service.targets.findRows(undefined)!;
  const table = () => bench.service.catalog.tables.get('demo.employees')!;
  const read = (): Promise<Row[]> =>
    readBatch(target(), table(), { columns, stale: [{ column: 'ssn', value: [0] }], rowsMax: 100 });
  const change = (rows: readonly Row[]): Change[] =>
    rows.map((row) => ({ ...row, next: [`new ${row.key[0]}`, 'b1.AA'] }));
  const write = (changes: readonly Change[], skipLocked = true) =>
    writeBatch(target(), table(), { read: columns, written: columns }, changes, skipLocked).then(({ keys }) => keys);
  const values = async () => {
    const { rows } = await bench.owner.query<{ id: string; ssn: string }>(
      'select id, ssn from demo.employees order by id',
    );
    return new Map(rows.map((row) => [Number(row.id), row.ssn]));
  };

  it('updates what is as it was read, and says which', async () => {
    const keys = await write(change(await read()));
    assert.equal(keys.length, 10);
    assert.deepEqual(
      [...(await values()).values()],
      Array.from({ length: 10 }, (_, i) => `new ${i + 1}`),
    );
  });

  it('reads no more of a value than the longest that is one, and never writes over the rest', async () => {
    await bench.owner.query(`update demo.employees set ssn = repeat('x', 100000) where id = 4`);
    const long = (await read()).filter((row) => row.key[0] === '4');
    assert.equal(long[0]!.values[0]!.length, 40_000);
    assert.deepEqual(await write(change(long)), []);
    assert.equal((await values()).get(4)!.length, 100_000);
  });

  it('reads by key, between bounds', async () => {
    const rows = await readBatch(target(), table(), {
      columns,
      stale: [{ column: 'ssn', value: [0] }],
      rowsMax: 3,
      after: ['4'],
      upper: ['9'],
    });
    assert.deepEqual(
      rows.map((row) => row.key[0]),
      ['5', '6', '7'],
    );
  });

  it('lets every concurrent change win: value, null, tenant, index column, key, deletion', async () => {
    const rows = await read();
    await bench.owner.query(`update demo.employees set ssn = 'theirs' where id = 1`);
    await bench.owner.query('update demo.employees set ssn = null where id = 2');
    await bench.owner.query(`update demo.employees set tenant = 'globex' where id = 3`);
    await bench.owner.query(`update demo.employees set ssn_eq = 'b1.ZZ' where id = 4`);
    await bench.owner.query('update demo.employees set id = 50 where id = 5');
    await bench.owner.query('delete from demo.employees where id = 6');
    await bench.owner.query(`update demo.employees set name = 'else' where id = 7`);
    const keys = await write(change(rows));
    assert.deepEqual(keys.map((key) => key[0]).sort(), ['10', '7', '8', '9']);
    const now = await values();
    assert.equal(now.get(1), 'theirs');
    assert.equal(now.get(2), null);
    assert.equal(now.get(3), 'value 3');
    assert.equal(now.get(4), 'value 4');
    assert.equal(now.get(50), 'value 5');
    assert.equal(now.get(7), 'new 7');
  });

  it('passes over rows that the application has locked, and waits for nothing', async () => {
    const rows = await read();
    const application = await connect(bench.database.ownerUrl, { name: 'application' });
    try {
      await application.query('begin');
      await application.query(`update demo.employees set ssn = 'theirs' where id in (3, 4)`);
      const keys = await write(change(rows));
      assert.equal(keys.length, 8);
      await application.query('commit');
      assert.equal((await values()).get(3), 'theirs');
    } finally {
      await application.end();
    }
  });

  it('waits for locks in a last pass, no longer than lock_timeout, and then fails as a whole', async () => {
    const rows = await read();
    const application = await connect(bench.database.ownerUrl, { name: 'application' });
    try {
      await application.query('begin');
      await application.query(`update demo.employees set ssn = 'theirs' where id = 3`);
      await assert.rejects(write(change(rows), false), { code: '55P03' });
      await application.query('rollback');
      assert.equal((await write(change(rows), false)).length, 10);
    } finally {
      await application.end();
    }
  });

  it('fails as a whole when a trigger stores something else, and leaves everything as it was', async () => {
    await bench.owner.query(`create function demo.meddle() returns trigger language plpgsql as
      $$ begin if new.id = 5 then new.ssn := 'meddled'; end if; return new; end $$`);
    await bench.owner.query(
      'create trigger meddle before update on demo.employees for each row execute function demo.meddle()',
    );
    try {
      await assert.rejects(write(change(await read())), { code: '27000' });
      assert.equal((await values()).get(1), 'value 1');
    } finally {
      await bench.owner.query('drop function demo.meddle() cascade');
    }
  });

  it('fails as a whole when a type cuts the value', async () => {
    await bench.owner.query('drop index demo.employees_ssn_version');
    await bench.owner.query('alter table demo.employees alter column ssn type varchar(8)');
    try {
      const rows = await read();
      await assert.rejects(write(rows.map((row) => ({ ...row, next: ['much too long for it', null] }))), {
        code: '22001',
      });
    } finally {
      await bench.owner.query('alter table demo.employees alter column ssn type text');
      await bench.owner.query('create index employees_ssn_version on demo.employees (fieldkeep.fe_version(ssn), id)');
    }
  });
});
