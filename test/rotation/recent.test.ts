/** Which rows come first in an emergency, asked of a whole service that was really asked for their values. */
import assert from 'node:assert/strict';
import { findStretchSince } from '../../src/audit/recent-store.ts';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { readBatch } from '../../src/rotation/batch.ts';
import { listRecentRows, type ReadKeys } from '../../src/rotation/recent.ts';
import { waitForActive } from '../operations/support.ts';
import { openTestService, type TestService } from '../support/service.ts';

const rows = 60;
const at = (row: number, column = 'ssn') => ({ table: 'demo.employees', column, row: String(row) });
const tenantOf = (row: number) => (row % 10 === 4 || row % 10 === 6 ? 'globex' : 'acme');

describe('rows that were opened lately', () => {
  let it_: TestService;
  const sealed = new Map<number, string>();
  let quietSince: number;

  async function call(agent: string, path: string, body: object, status: number, tenant = 'acme'): Promise<string> {
    const answer = await it_.call(agent, 'POST', path, body, { tenant });
    assert.equal(answer.status, status, answer.text);
    return answer.text;
  }
  async function seal(row: number, tenant: string, column = 'ssn'): Promise<string> {
    const body = { class: column, value: `536-22-${1000 + row}`, context: at(row, column) };
    return (JSON.parse(await call('payroll-agent', '/v1/encrypt', body, 200, tenant)) as { envelope: string }).envelope;
  }
  const decrypt = (agent: string, row: number, status: number, tenant?: string, envelope = sealed.get(row)) =>
    call(agent, '/v1/decrypt', { envelope, context: at(row) }, status, tenant);

  before(async function () {
    this.timeout(60_000);
    it_ = await openTestService();
    for (let row = 1; row <= rows; row += 1) sealed.set(row, await seal(row, tenantOf(row)));
    const ids = [...sealed.keys()];
    await it_.owner.query(
      `insert into demo.employees (id, tenant, name, ssn)
       select u.id, u.tenant, 'n', u.ssn from unnest($1::bigint[], $2::text[], $3::text[]) as u(id, tenant, ssn)`,
      [ids, ids.map(tenantOf), ids.map((id) => sealed.get(id))],
    );
    // A tenant that nobody ever asked for: it has no digest key.
    await it_.owner.query(`insert into demo.employees (id, tenant, name, ssn) values (61, 'initech', 'n', $1)`, [
      sealed.get(1),
    ]);

    await decrypt('cx-agent', 3, 200);
    await decrypt('cx-agent', 3, 200);
    await decrypt('recruit-agent', 23, 200);
    await decrypt('cx-agent', 14, 200, 'globex');
    await call('cx-agent', '/v1/match', { envelope: sealed.get(21), context: at(21), candidate: 'x' }, 200);
    const items = [5, 7, 9, 11].map((row) => ({ envelope: sealed.get(row === 9 ? 8 : row), context: at(row) }));
    const batch = await call('cx-agent', '/v1/decrypt', { items: [...items, { ...items[0]!, view: 'full' }] }, 200);
    assert.equal(batch.match(/"error"/g)?.length, 2, 'row 9 fails, and row 5 once');
    for (const row of [43, ...Array.from({ length: 24 }, () => 41)]) {
      await call('cx-agent', '/v1/decrypt', { items: [{ envelope: sealed.get(row), context: at(row) }] }, 200);
    }
    // None of these opens a value of a row of the table.
    await decrypt('invoice-agent', 25, 403);
    await decrypt('cx-agent', 27, 422, 'acme', sealed.get(28));
    await decrypt('cx-agent', 16, 200, 'acme', await seal(16, 'acme')); // the row is globex's
    const bank = { envelope: await seal(29, 'acme', 'bank'), context: at(29, 'bank') };
    await call('payroll-agent', '/v1/decrypt', bank, 200);
    await call('payroll-agent', '/v1/reencrypt', { envelope: sealed.get(31), context: at(31) }, 200);
    quietSince = Date.now();
    await new Promise((resolve) => setTimeout(resolve, 600));
    await decrypt('cx-agent', 33, 200);

    await it_.call('operator', 'POST', '/v1/keys/ssn/rotate', { compromised: true });
    await waitForActive(it_, 'ssn', 2); // planning then waits ten seconds for search tokens to expire
  });
  after(() => it_.close());

  const read: ReadKeys = (table, column, version, after) => {
    const shape = it_.service.catalog.tables.get(table)!;
    const stale = [{ column, value: [version] }];
    const request = { columns: [], stale, rowsMax: 7, ...(after !== undefined && { after }) };
    return readBatch(it_.service.targets.findRows(undefined)!, shape, request);
  };

  it('are found by single calls, batches and matches, each under its own tenant', async () => {
    const found = await listRecentRows(it_.service, read, 'ssn');
    assert.deepEqual(found, new Map([['demo.employees', ['3', '5', '7', '11', '14', '21', '23', '33', '41', '43']]]));
    assert.deepEqual(await listRecentRows(it_.service, read, 'bank'), new Map(), 'nothing of it is stale');
  });

  it('are no older than asked', async () => {
    const hours = (Date.now() - quietSince - 300) / 3_600_000;
    const found = await listRecentRows(it_.service, read, 'ssn', hours);
    assert.deepEqual(found, new Map([['demo.employees', ['33']]]));
    await unfoldAcknowledged(it_.service.pool);
    const { rows: entries } = await it_.owner.query<{ time: Date }>(
      'select "time" as time from fieldkeep.audit_entries order by "time", index',
    );
    for (const n of [0, 1, 17, 63, entries.length - 1]) {
      const { time } = entries[n]!;
      const before = entries.filter((each) => each.time < time).length;
      const { first, end } = await findStretchSince(it_.service.pool, time);
      assert.ok(Math.abs(first - before) <= 3, `${first} entries stand before that time, and ${before} are older`);
      assert.equal(end, entries.length);
    }
    const end = entries.length;
    assert.deepEqual(await findStretchSince(it_.service.pool, new Date(0)), { first: 0, end });
    const future = new Date(Date.now() + 60_000);
    assert.deepEqual(await findStretchSince(it_.service.pool, future), { first: end, end });
  });

  it('are none when a key or a table cannot be had, and that is no error', async () => {
    const { pool, policy, keyring } = it_.service;
    const away = Object.assign(Object.create(keyring) as typeof keyring, {
      state: keyring.state,
      get: () => Promise.reject(new Error('the keeper of root keys is away')),
    });
    assert.deepEqual(await listRecentRows({ pool, policy, keyring: away }, read, 'ssn'), new Map());
    const broken = () => Promise.reject(new Error('the table is gone'));
    assert.deepEqual(await listRecentRows(it_.service, broken, 'ssn'), new Map());
  });
});
