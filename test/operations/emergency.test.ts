/** `rotate` with `compromised`, whatever is under way, asked of a whole service. */
import assert from 'node:assert/strict';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { transaction } from '../../src/db.ts';
import { activateVersion, raiseEpoch } from '../../src/keys/store.ts';
import { findRun } from '../../src/rotation/store.ts';
import { entriesOf, openTestService, type Reply, type TestService } from '../support/service.ts';
import { holdActivation, waitForActive, waitUntil } from './support.ts';

const rows = 200;

describe('an emergency', () => {
  let it_: TestService;
  beforeEach(async () => {
    it_ = await openTestService();
  });
  afterEach(() => it_.close());

  const rotate = (body: object, headers: Record<string, string> = {}) =>
    it_.call('operator', 'POST', '/v1/keys/bank/rotate', body, { headers });
  const encrypt = (row: string) => {
    const context = { table: 'demo.employees', column: 'bank', row };
    return it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: `GB${row}`, context });
  };

  async function start(body: object): Promise<string> {
    const answer = await rotate(body);
    assert.equal(answer.status, 202, answer.text);
    assert.equal(answer.headers['location'], `/v1/rotations/${String(answer.body['id'])}`);
    return answer.body['id'] as string;
  }

  async function states(): Promise<string[]> {
    const { rows: found } = await it_.owner.query<{ text: string }>(
      `select version || ' ' || state as text from fieldkeep.key_versions where family = 'bank' order by version`,
    );
    return found.map(({ text }) => text);
  }

  async function record(id: string): Promise<Record<string, unknown>> {
    const { rows: found } = await it_.owner.query<Record<string, unknown>>(
      `select version, compromised, reason, requested_by, paused_at, cancelled, done_at is not null as done,
              (select count(*)::int from fieldkeep.rotation_ranges g where g.rotation = r.id and finished_at is null) as open
       from fieldkeep.rotations r where id = $1`,
      [id],
    );
    return found[0]!;
  }

  async function entryOf(answer: Reply): Promise<Record<string, unknown>> {
    await unfoldAcknowledged(it_.service.pool);
    return (await entriesOf(it_.owner, answer.headers['x-request-id'] as string))[0]!;
  }

  /** Rows of both tenants under version 1, stored as an application would. */
  async function fill(): Promise<void> {
    const envelopes: string[] = [];
    for (let id = 1; id <= rows; id += 1) envelopes.push((await encrypt(String(id))).body['envelope'] as string);
    await it_.owner.query(
      `insert into demo.employees (id, tenant, name, bank)
       select n, 'acme', 'n', e from unnest($1::text[]) with ordinality as u(e, n)`,
      [envelopes],
    );
  }

  const runIsDone = async (id: string) => (await findRun(it_.service.pool, id))?.phase === 'done';

  it('joins a run whose version is not active, also one that is paused', async () => {
    const release = await holdActivation(it_.owner);
    const id = await start({ reason: 'quarter' });
    await waitUntil(async () => (await states()).length === 2, 'version 2 is pending');
    await it_.owner.query('update fieldkeep.rotations set paused_at = now() where id = $1', [id]);
    const answer = await rotate({ compromised: true, reason: 'laptop lost' }, { 'idempotency-key': 'alarm' });
    assert.deepEqual([answer.status, answer.body['id'], answer.body['version']], [202, id, 2]);
    assert.deepEqual(await states(), ['1 compromised', '2 pending']);
    const { open: _, ...told } = await record(id);
    assert.deepEqual(told, {
      ...{ version: 2, compromised: true, reason: 'laptop lost', requested_by: 'operator' },
      ...{ paused_at: null, cancelled: null, done: false },
    });
    const again = await rotate({ compromised: true, reason: 'laptop lost' }, { 'idempotency-key': 'alarm' });
    assert.deepEqual([again.status, again.body['id']], [202, id]);
    for (const body of [{ compromised: true }, { reason: 'quarter' }]) {
      const other = await rotate(body);
      const { code, rotationId } = other.body;
      assert.deepEqual([other.status, code, rotationId], [409, 'rotation_in_progress', id]);
    }
    await release();
    await waitForActive(it_, 'bank', 2);
    assert.deepEqual(await states(), ['1 compromised', '2 active']);
  });

  it('forgets why an ordinary run was asked for when nobody says why', async () => {
    const release = await holdActivation(it_.owner);
    const id = await start({ reason: 'quarter' });
    assert.equal(await start({ compromised: true }), id);
    const told = await record(id);
    assert.deepEqual([told['reason'], told['compromised']], [null, true]);
    await release();
  });

  it('ends a run whose version is active, and its successor brings every row up to date', async function () {
    this.timeout(90_000);
    await fill();
    const first = await start({ reason: 'quarter' });
    await waitForActive(it_, 'bank', 2);
    await waitUntil(async () => (await findRun(it_.service.pool, first))?.plannedAt !== undefined, 'it is planned');
    // As if it were in the middle: nobody alive works on a range of it.
    await it_.owner.query(
      `insert into fieldkeep.rotation_ranges (id, rotation, pass, "table", lease)
       values (gen_random_uuid(), $1, 1, 'demo.elsewhere', gen_random_uuid())`,
      [first],
    );
    const answer = await rotate({ compromised: true });
    const second = answer.body['id'] as string;
    assert.notEqual(second, first);
    assert.equal(answer.body['version'], 3);
    assert.equal((await entryOf(answer))['purpose'], `version 2 is compromised, rotation ${first} is superseded`);
    const { cancelled, done, open } = await record(first);
    assert.deepEqual({ cancelled, done, open }, { cancelled: `superseded by ${second}`, done: true, open: 0 });
    assert.deepEqual((await states()).slice(0, 2), ['1 decrypt-only', '2 compromised']);
    await waitForActive(it_, 'bank', 3);
    assert.equal((await rotate({})).body['rotationId'], second);
    await waitUntil(() => runIsDone(second), 'the emergency is done', 60_000);
    assert.deepEqual(await states(), ['1 decrypt-only', '2 compromised', '3 active']);
    const { rows: counted } = await it_.owner.query(
      'select fieldkeep.fe_version(bank) as version, count(*)::int as n from demo.employees group by 1',
    );
    assert.deepEqual(counted, [{ version: 3, n: rows }]);
  });

  it('ends an emergency whose version is active, too', async () => {
    const first = await start({ compromised: true });
    await waitForActive(it_, 'bank', 2);
    // While its own run has not yet noted that.
    await it_.owner.query('update fieldkeep.rotations set done_at = null, activated_at = null where id = $1', [first]);
    const second = await start({ compromised: true });
    assert.equal((await record(first))['cancelled'], `superseded by ${second}`);
    await waitForActive(it_, 'bank', 3);
    assert.deepEqual(await states(), ['1 compromised', '2 compromised', '3 active']);
  });

  it('takes a version up again that a cancelled run left pending', async () => {
    const release = await holdActivation(it_.owner);
    const first = await start({ compromised: true });
    await waitUntil(async () => (await states()).length === 2, 'version 2 is pending');
    await it_.owner.query(`update fieldkeep.rotations set done_at = now(), cancelled = 'test' where id = $1`, [first]);
    assert.equal(
      (await encrypt('1')).body['detail'],
      'Version 1 of family bank is compromised; version 2 is on its way.',
    );
    const again = await rotate({ compromised: true });
    assert.deepEqual([again.status, again.body['version']], [202, 2]);
    assert.equal((await entryOf(again))['purpose'], undefined, 'nothing was left to close');
    await release();
    await waitForActive(it_, 'bank', 2);
    assert.deepEqual(await states(), ['1 compromised', '2 active']);
    assert.equal((await encrypt('1')).body['version'], 2);
  });

  it('closes the version that was meant also when another becomes active that very moment', async () => {
    const release = await holdActivation(it_.owner);
    const first = await start({});
    await waitUntil(async () => (await states()).length === 2, 'version 2 is pending');
    const late = await transaction(it_.owner, async (tx) => {
      await raiseEpoch(tx); // whoever commits an entry waits for this transaction from here on
      const answer = rotate({ compromised: true });
      await new Promise((resolve) => setTimeout(resolve, 300));
      assert.equal(await activateVersion(tx, 'bank', 2), true);
      return { answer };
    });
    const answer = await late.answer;
    assert.deepEqual([answer.status, answer.body['version']], [202, 3], answer.text);
    assert.deepEqual((await states()).slice(0, 2), ['1 compromised', '2 compromised']);
    assert.equal((await record(first))['cancelled'], `superseded by ${String(answer.body['id'])}`);
    await release();
  });

  it('begins once, however many ask at once', async () => {
    const release = await holdActivation(it_.owner);
    const answers = await Promise.all(Array.from({ length: 8 }, () => rotate({ compromised: true })));
    assert.deepEqual(answers.map(({ status }) => status).sort(), [202, ...Array.from({ length: 7 }, () => 409)]);
    const { id } = answers.find(({ status }) => status === 202)!.body;
    for (const { status, body } of answers) if (status === 409) assert.equal(body['rotationId'], id);
    await release();
  });

  it('only says what it would do in a dry run', async () => {
    const answer = await rotate({ compromised: true, dryRun: true });
    assert.deepEqual([answer.status, answer.body['phase'], answer.body['version']], [200, 'dry-run', 2]);
    assert.deepEqual(await states(), ['1 active']);
  });

  it('is answered after whoever was storing an entry under the version has ended', async () => {
    let answered = false;
    const late = await transaction(it_.owner, async (tx) => {
      await tx.query('lock table fieldkeep.audit_intake in row exclusive mode'); // as one who inserts does
      const answer = rotate({ compromised: true }, { 'idempotency-key': 'alarm' }).finally(() => (answered = true));
      await waitUntil(async () => (await states())[0] === '1 compromised', 'version 1 is closed');
      const again = rotate({ compromised: true }, { 'idempotency-key': 'alarm' }).finally(() => (answered = true));
      await new Promise((resolve) => setTimeout(resolve, 300));
      assert.equal(answered, false);
      return { answers: Promise.all([answer, again]) };
    });
    for (const { status } of await late.answers) assert.equal(status, 202);
  });

  it('lets no envelope of the closed version out after its answer', async function () {
    this.timeout(60_000);
    let running = true;
    let closed = 0;
    const counts = { sealed: 0, waited: 0 };
    const caller = async (n: number) => {
      while (running) {
        const before = closed;
        const answer = await encrypt(String(n));
        if (answer.status === 503) {
          assert.equal(answer.body['code'], 'keys_not_ready');
          counts.waited += 1;
          continue;
        }
        assert.equal(answer.status, 200, answer.text);
        const version = answer.body['version'] as number;
        assert.ok(version > before, `an envelope of version ${version} after ${before} was closed`);
        counts.sealed += 1;
      }
    };
    const callers = Array.from({ length: 16 }, (_, i) => caller(i + 1));
    const requests: string[] = [];
    for (let version = 1; version <= 4; version += 1) {
      await waitForActive(it_, 'bank', version);
      await new Promise((resolve) => setTimeout(resolve, 100));
      const answer = await rotate({ compromised: true });
      closed = version;
      assert.equal(answer.status, 202, answer.text);
      requests.push(answer.headers['x-request-id'] as string);
    }
    await waitForActive(it_, 'bank', 5);
    running = false;
    await Promise.all(callers);
    assert.ok(counts.sealed > 100 && counts.waited > 10, JSON.stringify(counts));
    await unfoldAcknowledged(it_.service.pool);
    const { rows: late } = await it_.owner.query(
      `select s.line from unnest($1::text[]) with ordinality as r(id, version)
       join fieldkeep.audit_entries a on a.request_id = r.id
       join fieldkeep.audit_entries s on s.index > a.index and s.action = 'encrypt' and s.outcome = 'ok'
       where (s.line::json ->> 'keyVersion')::int <= r.version`,
      [requests],
    );
    assert.deepEqual(late, [], 'nor is one told of after it in the log');
  });
});
