/**
 * A search never misses a row during a rotation: tokens are asked for, held for a while (some almost until they expire)
 * and used, while every row gets new tokens from the worker, and an application writes to other rows. ROTATIONS says how
 * many.
 */
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { openTestService, type TestService } from '../support/service.ts';

const rows = 3_000;
const rotations = Number(process.env.ROTATIONS ?? 1);
const searchers = 24;
const writers = 2;
const heldMaxMs = 300;
/** Of the time that tokens are good for, what a patient search leaves for the search itself. */
const patienceSlackMs = 500;
const place = { table: 'demo.employees', column: 'ssn' };

const valueOf = (id: number) => `536-${String(id).padStart(6, '0')}`;

const versionOf = (token: string) => Number(/^b(\d+)\./.exec(token)![1]);

describe('a search during a rotation', () => {
  let it_: TestService;
  let over = false;
  let searches = 0;
  let patient = 0;
  let rewritten = 0;
  const misses: string[] = [];
  /** By version: when the first token to store was answered, and when the last tokens expire of which it is the newest. */
  const firsts = new Map<number, number>();
  const expiries = new Map<number, number>();
  const running: Promise<void>[] = [];

  before(async () => {
    it_ = await openTestService();
    const ids = Array.from({ length: rows }, (_, i) => i + 1);
    await it_.owner.query(
      `insert into demo.employees (id, tenant, name, ssn)
       select u.id, 'acme', 'n', u.ssn from unnest($1::bigint[], $2::text[]) as u (id, ssn)`,
      [ids, ids.map(valueOf)],
    );
    it_.service.wake();
    for (let left = rows; left > 0; await sleep(100)) {
      const found = await it_.owner.query<{ n: number }>(
        `select count(*)::int as n from demo.employees where fieldkeep.fe_version(ssn) = 0`,
      );
      left = found.rows[0]!.n;
    }
  });
  after(async () => {
    await end();
    await it_.close();
  });

  async function end(): Promise<void> {
    over = true;
    for (let n = 0; n < running.length; n += 1) await running[n]; // some come while we wait
  }

  /** Holds the tokens for `heldMs`, then looks for the row with them. */
  async function use(id: number, tokens: readonly string[], heldMs: number): Promise<void> {
    await sleep(heldMs);
    const found = await it_.owner.query<{ id: string }>(
      `select id from demo.employees where tenant = 'acme' and ssn_eq = any ($1)`,
      [tokens],
    );
    searches += 1;
    if (found.rows.some((row) => Number(row.id) === id)) return;
    const versions = tokens.map((token) => token.split('.')[0]).join(' and ');
    const { rows: stands } = await it_.owner.query<{ token: string }>(
      `select split_part(ssn_eq, '.', 1) as token from demo.employees where id = $1`,
      [id],
    );
    misses.push(`row ${id}, with tokens ${versions} held for ${heldMs} ms, stands under ${stands[0]?.token}`);
  }

  async function search(): Promise<void> {
    while (!over) {
      const id = randomInt(rows) + 1;
      const body = { class: 'ssn', value: valueOf(id), context: place };
      const answer = await it_.call('hr-agent', 'POST', '/v1/search-tokens', body);
      assert.equal(answer.status, 200, answer.text);
      const { tokens, expiresAt } = answer.body as unknown as { tokens: string[]; expiresAt: string };
      const goodUntil = new Date(expiresAt).getTime();
      const newest = versionOf(tokens[0]!);
      expiries.set(newest, Math.max(goodUntil, expiries.get(newest) ?? 0));
      const goodMs = goodUntil - Date.now() - patienceSlackMs;
      if (randomInt(4) === 0) {
        patient += 1;
        running.push(use(id, tokens, randomInt(goodMs)));
      }
      await use(id, tokens, randomInt(heldMaxMs));
    }
  }

  /** Stores the same value again, under the version that the API seals with at the moment. */
  async function write(): Promise<void> {
    while (!over) {
      const id = randomInt(rows) + 1;
      const body = { class: 'ssn', value: valueOf(id), context: { ...place, row: String(id) } };
      const answer = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body);
      assert.equal(answer.status, 200, answer.text);
      const { envelope, indexes } = answer.body as unknown as { envelope: string; indexes: { eq: string } };
      const version = versionOf(indexes.eq);
      if (!firsts.has(version)) firsts.set(version, Date.now());
      await sleep(randomInt(20));
      await it_.owner.query('update demo.employees set ssn = $2, ssn_eq = $3 where id = $1', [
        id,
        envelope,
        indexes.eq,
      ]);
      rewritten += 1;
    }
  }

  it('finds every row', async () => {
    for (let n = 0; n < searchers; n += 1) running.push(search());
    for (let n = 0; n < writers; n += 1) running.push(write());
    const failed = Promise.race(running); // none of them ends before it is over, but by an error
    for (let n = 0; n < rotations; n += 1) {
      const { status, body } = await it_.call('operator', 'POST', '/v1/keys/ssn/rotate', {});
      assert.equal(status, 202);
      for (let phase: unknown; phase !== 'done';) {
        await Promise.race([failed, sleep(100)]);
        const run = await it_.call('operator', 'GET', `/v1/rotations/${String(body['id'])}`);
        ({ phase } = run.body);
        assert.equal(run.body['blocked'], undefined);
      }
    }
    await end();
    console.log(`      ${searches} searches, ${patient} of them patient; ${rewritten} rows written again`);
    assert.deepEqual(misses.slice(0, 5), [], `${misses.length} of ${searches} searches missed their row`);
    assert.ok(searches > 1_000, `${searches} searches`);
    const { rows: versions } = await it_.owner.query(
      'select distinct fieldkeep.fe_version(ssn) as v from demo.employees',
    );
    assert.deepEqual(versions, [{ v: rotations + 1 }]);
  }).timeout(60_000 + rotations * 60_000);

  it('needs no token that an answer which still holds does not have', () => {
    for (let version = 2; version <= rotations + 1; version += 1) {
      const early = expiries.get(version - 1)! - firsts.get(version)!;
      assert.ok(early <= 0, `version ${version} is stored ${early} ms before tokens without it expire`);
    }
  });
});
