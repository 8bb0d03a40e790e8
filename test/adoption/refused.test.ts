/** Rows that the API would refuse are recorded and stay as they are; what an older release sealed of them comes back by undo. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { seal } from '../../src/crypto/aead.ts';
import { formatEnvelope } from '../../src/crypto/envelope.ts';
import { roleOf, transaction } from '../../src/db.ts';
import { setStarted, setUndone } from '../../src/rotation/adoption-store.ts';
import { listFailures } from '../../src/rotation/failure-store.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { insertRun, type Run } from '../../src/rotation/store.ts';
import { formatTriggers } from '../../src/targets/adoption-triggers.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { encodePlace } from '../../src/values/place.ts';
import { changePolicy, drive, isSettled, openBench, rotate, type Bench } from '../rotation/support.ts';

const address = 'public.people';
const column = 'ssn_enc';
const policy = changePolicy({
  columns: [
    {
      ...{ table: address, key: ['id'], tenant: { column: 'tenant' }, column, class: 'ssn', from: 'ssn', adopt: true },
      index: [{ name: 'eq', column: 'ssn_eq', bits: 8 }],
    },
  ],
});

describe('rows that the API would refuse', () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await openBench({ policy });
    const role = roleOf(bench.database.rowsUrl);
    await bench.owner.query(`
      create table ${address} (id text primary key, tenant text, ssn text, ssn_enc text, ssn_eq text);
      grant usage on schema public to ${role}; grant select, update on ${address} to ${role}`);
    const at = { schema: 'public', name: 'people', column, source: 'ssn', indexColumns: ['ssn_eq'] };
    for (const statement of formatTriggers({ ...at, bound: ['id', 'tenant'] })) await bench.owner.query(statement);
    await transaction(bench.service.pool, (tx) => setStarted(tx, address, column));
    await look();
  });
  afterEach(() => bench.close());

  const look = async () => {
    bench.service.catalog = await loadCatalog(bench.service.targets, bench.service.policy.columns);
  };
  const insert = (id: string, tenant: string | null, ssn: string) =>
    bench.owner.query(`insert into ${address} (id, tenant, ssn) values ($1, $2, $3)`, [id, tenant, ssn]);
  const failuresOf = async (run: Run) => {
    const failures = await listFailures(bench.service.pool, run.id, 100, undefined);
    return failures.map(({ row, code }) => [row, code]);
  };
  async function people() {
    const { rows } = await bench.owner.query<{
      id: string;
      ssn: string | null;
      ssn_enc: string | null;
      ssn_eq: string | null;
    }>(`select id, ssn, ssn_enc, ssn_eq from ${address} order by id collate "C"`);
    return rows;
  }
  const fill = async (): Promise<Run> =>
    await drive(bench.service, (await startAdoption(bench.service, true))!, isSettled);

  it('are recorded with why by an adoption, which seals the others and blocks', async () => {
    const long = 'k'.repeat(513);
    const given: [string, string | null, string, string][] = [
      ['', 'acme', '1', 'row_empty'],
      ['a', 'acme', '12３', 'value_not_ascii'],
      ['b', 'acme', '1'.repeat(600), 'value_not_indexable'],
      ['c', 'acme', '-'.repeat(16_385), 'value_invalid'],
      ['d', null, '1', 'tenant_missing'],
      ['e', 'x'.repeat(129), '1', 'tenant_invalid'],
      [long, 'acme', '1', 'row_invalid'],
    ];
    for (const [id, tenant, ssn] of given) await insert(id, tenant, ssn);
    await insert('fine', 'acme', '536-22-1234');
    const run = await fill();
    assert.equal(run.phase, 'blocked');
    assert.deepEqual(
      new Map((await failuresOf(run)) as [string, string][]),
      new Map(given.map(([id, , , why]) => [id, `request_invalid:${why}`])),
    );
    for (const { id, ssn, ssn_enc: envelope } of await people()) {
      assert.equal(envelope !== null, id === 'fine', id);
      assert.ok(ssn !== null);
    }
  });

  it('were sealed by an older release: a rotation names them, and undo gives the values back', async () => {
    const versions = bench.service.keyring.state.families.get('ssn')!.versions;
    const key = await bench.service.keyring.getOrMake('acme', 'ssn', 1);
    const old = (row: string, value: string) => {
      const ctx = encodePlace(versions.get(1)!, { tenant: 'acme', table: address, column, row });
      return formatEnvelope(seal(key, 'ssn', 1, ctx, value, 16));
    };
    for (const [id, value] of [
      ['', '111'],
      ['a', '12３'],
      ['b', '1'.repeat(600)],
      ['fine', '536-22-1234'],
    ] as const) {
      await insert(id, 'acme', 'x');
      await bench.owner.query(`update ${address} set ssn = null, ssn_enc = $2, ssn_eq = 'b1.AA' where id = $1`, [
        id,
        old(id, value),
      ]);
    }
    const rotation = await rotate(bench);
    assert.equal(rotation.phase, 'blocked');
    assert.deepEqual(await failuresOf(rotation), [['', 'request_invalid:row_empty']]);
    const rows = await people();
    assert.deepEqual(
      rows.map(({ id, ssn_enc: envelope, ssn_eq: token }) => [id, envelope!.slice(0, 10), token?.slice(0, 3)]),
      [
        ['', 'fe1.ssn.1.', 'b1.'],
        ['a', 'fe1.ssn.2.', undefined],
        ['b', 'fe1.ssn.2.', undefined],
        ['fine', 'fe1.ssn.2.', 'b2.'],
      ],
    );
    await bench.owner.query('update fieldkeep.rotations set done_at = now() where done_at is null');
    await transaction(bench.service.pool, (tx) => setUndone(tx, address, column));
    await look();
    const id = randomUUID();
    const about = { table: address, column, source: 'ssn', family: 'ssn' };
    assert.ok(await insertRun(bench.service.pool, { id, kind: 'undo', ...about, requestedBy: 'test' }));
    const undone = await drive(bench.service, id, isSettled);
    assert.equal(undone.phase, 'done', JSON.stringify(undone));
    assert.deepEqual(
      (await people()).map(({ ssn }) => ssn),
      ['111', '12３', '1'.repeat(600), '536-22-1234'],
    );
  });
});
