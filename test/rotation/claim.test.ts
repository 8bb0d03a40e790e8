/**
 * Writers that keep a value unique, as UNIQUE.md says: two hundred at a time race for the same value, again and again, from
 * before a rotation until after it, while the rows get new tokens. ROUNDS says how many races there are at least.
 */
import assert from 'node:assert/strict';
import { randomBytes, randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { openPool, transaction, withClient, type Pool } from '../../src/db.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { changePolicy } from './support.ts';

const rows = 600;
const writers = 200;
const roundsMin = Number(process.env.ROUNDS ?? 5);
const place = { table: 'demo.employees', column: 'ssn' };
const policy = changePolicy({
  columns: [
    {
      ...{ ...place, key: ['id'], tenant: { column: 'tenant' }, class: 'ssn', adopt: true },
      index: [{ name: 'eq', column: 'ssn_eq', unique: true }],
    },
  ],
  classes: { ssn: { rotation: { rowsPerSecondMax: 300 } } },
});

describe('a value that must be unique', () => {
  let it_: TestService;
  let database: TestDatabase;
  let application: Pool;
  let lastId = rows;
  let seen: string[] = [];

  before(async () => {
    database = await createDatabase();
    it_ = await openTestService({ policy, database });
    application = openPool(database.ownerUrl, { max: 60, name: 'application', statementTimeoutMs: 60_000 });
    await it_.owner.query(
      `insert into demo.employees (id, tenant, name, ssn)
       select n, 'acme', 'n', '9' || lpad(n::text, 8, '0') from generate_series(1, $1::int) n`,
      [rows],
    );
    it_.service.wake();
    for (let left = rows; left > 0; await sleep(100)) {
      const found = await it_.owner.query<{ n: number }>(
        'select count(*)::int as n from demo.employees where fieldkeep.fe_version(ssn) = 0',
      );
      left = found.rows[0]!.n;
    }
  });
  after(async () => {
    await application.end();
    await it_.close();
    await database.drop();
  });

  /** What an application does to store a value once: true when it was the one that stored it. */
  async function writeOnce(value: string): Promise<boolean> {
    await sleep(randomInt(300));
    lastId += 1;
    const row = String(lastId); // as nextval would give it
    const asked = { class: 'ssn', value, context: place };
    const search = await it_.call('hr-agent', 'POST', '/v1/search-tokens', asked);
    assert.equal(search.status, 200, search.text);
    const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', { ...asked, context: { ...place, row } });
    assert.equal(sealed.status, 200, sealed.text);
    const { tokens, expiresAt } = search.body as unknown as { tokens: string[]; expiresAt: string };
    const { envelope, indexes } = sealed.body as unknown as { envelope: string; indexes: { eq: string } };
    return await transaction(application, async (tx) => {
      await tx.query('select fieldkeep.fe_claim($1)', [tokens]);
      assert.ok(Date.now() < Date.parse(expiresAt), 'the tokens still hold');
      const found = await tx.query('select id from demo.employees where tenant = $1 and ssn_eq = any ($2)', [
        'acme',
        tokens,
      ]);
      if (found.rowCount !== 0) return false;
      await sleep(randomInt(5));
      await tx.query(`insert into demo.employees (id, tenant, name, ssn, ssn_eq) values ($1, 'acme', 'n', $2, $3)`, [
        row,
        envelope,
        indexes.eq,
      ]);
      return true;
    });
  }

  /** All writers at once for a new value, and some for every value of before. */
  async function race(): Promise<void> {
    const value = String(100_000_000 + seen.length);
    const fresh = await Promise.all(Array.from({ length: writers }, () => writeOnce(value)));
    assert.equal(fresh.filter(Boolean).length, 1, 'one of the writers stored it');
    const again = await Promise.all(seen.map(writeOnce));
    assert.equal(again.filter(Boolean).length, 0, 'what was stored before is found, whatever its token is by now');
    seen = [...seen, value];
  }

  it('is stored once, whoever writes, before, during and after a rotation', async () => {
    await race();
    const { status } = await it_.call('operator', 'POST', '/v1/keys/ssn/rotate', {});
    assert.equal(status, 202);
    const phases = new Map<string, number>();
    for (let phase = ''; phase !== 'done' || seen.length < roundsMin;) {
      await race();
      const { body } = await it_.call('operator', 'GET', '/v1/rotations?limit=1');
      phase = String(body.items![0]!['phase']);
      phases.set(phase, (phases.get(phase) ?? 0) + 1);
    }
    assert.ok(phases.has('pending') && phases.has('re-encrypting'), JSON.stringify([...phases]));
    await race();
    const { rows: counts } = await it_.owner.query(
      `select count(*)::int as n, count(distinct ssn_eq)::int as tokens, min(fieldkeep.fe_version(ssn)) as version from demo.employees`,
    );
    const n = rows + seen.length;
    assert.deepEqual(counts, [{ n, tokens: n, version: 2 }]);
  }).timeout(120_000);

  it('waits for nobody who claims another', async () => {
    await transaction(application, async (one) => {
      await one.query('select fieldkeep.fe_claim($1)', [['b2.one', 'b1.one']]);
      await transaction(application, async (other) => {
        await other.query(`set local lock_timeout = '1s'`);
        await other.query('select fieldkeep.fe_claim($1)', [['b2.other', 'b1.other', null, 'b1.other']]);
        await other.query('select fieldkeep.fe_claim(null)');
        await assert.rejects(other.query('select fieldkeep.fe_claim($1)', [['b1.one']]), { code: '55P03' });
      });
    });
  });

  it('deadlocks with no other, in whatever order several are claimed', async () => {
    const values = Array.from({ length: 6 }, (_, i) => `b1.value ${i}`);
    const claim = async () => {
      for (let n = 0; n < 25; n += 1) {
        const shuffled = values.map((value) => [Math.random(), value] as const).sort(([a], [b]) => a - b);
        await transaction(application, async (tx) => {
          await tx.query('select fieldkeep.fe_claim($1)', [shuffled.slice(1).map(([, value]) => value)]);
        });
      }
    };
    await Promise.all(Array.from({ length: 20 }, claim));
  });

  it('is not claimed on a snapshot that hides who claimed it before', async () => {
    for (const level of ['repeatable read', 'serializable']) {
      await withClient(application, async (client) => {
        await client.query(`begin isolation level ${level}`);
        await assert.rejects(client.query(`select fieldkeep.fe_claim('{b1.x}')`), { code: '25000' });
        await client.query('rollback');
      });
    }
  });

  it('is claimed by any role that may use the schema', async () => {
    const role = `app_${randomBytes(4).toString('hex')}`;
    await it_.owner.query(`create role ${role}`);
    const claim = () =>
      transaction(it_.owner, async (tx) => {
        await tx.query(`set local role ${role}`);
        await tx.query(`select fieldkeep.fe_claim('{b1.x}')`);
      });
    try {
      await assert.rejects(claim, { code: '42501' });
      await it_.owner.query(`grant usage on schema fieldkeep to ${role}`);
      await claim();
    } finally {
      await it_.owner.query(`drop owned by ${role}; drop role ${role}`);
    }
  });
});
