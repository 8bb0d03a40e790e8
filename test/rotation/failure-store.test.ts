/** Rows that do not open, and what is waived of them. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { transaction } from '../../src/db.ts';
import { digestFailures, insertFailures, listFailures, waiveFailures } from '../../src/rotation/failure-store.ts';
import { insertPass } from '../../src/rotation/range-store.ts';
import { beginRotation, openBench, type Bench } from './support.ts';

const table = 'demo.employees';

describe('rotation/failure-store', () => {
  let bench: Bench;
  let run: string;
  let pass: number;
  before(async () => {
    bench = await openBench();
  });
  after(() => bench.close());
  beforeEach(async () => {
    await bench.owner.query('update fieldkeep.rotations set done_at = now() where done_at is null');
    run = await beginRotation(bench.service);
    pass = 0;
    await nextPass();
  });

  const nextPass = () => transaction(bench.service.pool, (tx) => insertPass(tx, run, (pass += 1), [], [], {}));
  const fail = (rows: readonly string[], code = 'decryption_failed', column = 'ssn') =>
    transaction(bench.service.pool, (tx) =>
      insertFailures(
        tx,
        { run, pass, table },
        rows.map((row) => ({ column, row, code })),
      ),
    );
  const waive = () => transaction(bench.service.pool, (tx) => waiveFailures(tx, run, 'approval 1'));
  const digest = () => digestFailures(bench.service.pool, run);
  const list = async () =>
    (await listFailures(bench.service.pool, run, 100, undefined)).map(({ row, code, waivedAt }) => [
      ...[row, code, waivedAt !== undefined],
    ]);

  it('names them by what is in them, whatever order they were noted in', async () => {
    const odd = 'a "quoted", \\ back\nslashed ü 🙂';
    await fail(['b', odd, 'B', '10', '9']);
    await fail(['7'], 'envelope_malformed', 'bank');
    const sha = (rows: readonly string[]) => createHash('sha256').update(rows.join(', ')).digest('base64url');
    const ssn = ['10', '9', 'B', odd, 'b'].map((row) => `[${JSON.stringify(row)}, "decryption_failed"]`);
    const before = await digest();
    assert.deepEqual(before, [
      { table, column: 'bank', rows: 1, digest: sha(['["7", "envelope_malformed"]']) },
      { table, column: 'ssn', rows: 5, digest: sha(ssn) },
    ]);
    await nextPass();
    assert.deepEqual(await digest(), []);
    await fail(['7'], 'envelope_malformed', 'bank');
    await fail([odd, '9', '10', 'b', 'B']);
    assert.deepEqual(await digest(), before);
    await fail(['9'], 'envelope_malformed');
    assert.notEqual((await digest())[1]!.digest, before[1]!.digest);
  });

  it('waives all that is noted, once, and answers what that was', async () => {
    await fail(['1', '2']);
    const expected = await digest();
    assert.deepEqual(await waive(), expected);
    assert.deepEqual(await waive(), []);
    await fail(['3']);
    assert.deepEqual(await list(), [
      ['1', 'decryption_failed', true],
      ['2', 'decryption_failed', true],
      ['3', 'decryption_failed', false],
    ]);
    assert.deepEqual(
      (await digest()).map(({ rows }) => rows),
      [1],
    );
  });

  it('keeps what is waived through the next pass, and forgets the rest', async () => {
    await fail(['1', '2']);
    await waive();
    await fail(['3']);
    await nextPass();
    assert.deepEqual(await list(), [
      ['1', 'decryption_failed', true],
      ['2', 'decryption_failed', true],
    ]);
    await fail(['1']);
    assert.deepEqual((await list())[0], ['1', 'decryption_failed', true]);
  });

  it('ends a waiver where the row fails in another way', async () => {
    await fail(['1', '2']);
    await waive();
    await fail(['2'], 'envelope_malformed');
    assert.deepEqual(await list(), [
      ['1', 'decryption_failed', true],
      ['2', 'envelope_malformed', false],
    ]);
    const { rows } = await bench.owner.query<{ waived_by: string | null }>(
      'select waived_by from fieldkeep.rotation_failures where rotation = $1 order by row',
      [run],
    );
    assert.deepEqual(rows, [{ waived_by: 'approval 1' }, { waived_by: null }]);
  });
});
