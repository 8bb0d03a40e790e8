/** What is sealed for a target is sealed under keys that its mirror holds; everything that can be in the way of that. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DataKey } from '../../src/crypto/data-key.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import type { RootKeys } from '../../src/keys/root-keys.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { examine } from '../../src/health.ts';
import { entriesOf, openTestService, type TestService, type TestServiceOptions } from '../support/service.ts';
import {
  comeBack,
  decryptIn,
  encryptFor,
  goAway,
  listKept,
  listWrapped,
  openCustomer,
  policy,
  prepare,
  type Customer,
} from './mirrored.ts';

/** What a failure is remembered for, and more. */
const forgottenMs = 2_100;

describe('a key that seals for a target', function () {
  this.timeout(30_000);
  let hr: Customer;
  let crm: Customer;
  let database: TestDatabase;
  let folder: string;
  let rootKeys: RootKeys;
  const open: TestService[] = [];
  let skippedMs = 0;
  /** As if what went wrong were long enough ago to be tried again. */
  const forget = () => (skippedMs += forgottenMs);

  before(async () => {
    [hr, crm] = [await openCustomer(), await openCustomer()];
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-mirror-'));
  });
  after(async () => {
    await hr.close();
    await crm.close();
    rmSync(folder, { recursive: true, force: true });
  });
  beforeEach(async () => {
    database = await createDatabase();
    rootKeys = await openEmbeddedRootKeys(join(folder, 'root-keys.json'));
  });
  afterEach(async () => {
    for (const each of [hr, crm]) {
      comeBack(each);
      await each.owner.query('truncate fieldkeep.wrapped_keys');
    }
    for (const each of open.splice(0).reverse()) await each.close();
    await database.drop();
  });

  async function start(options: TestServiceOptions = {}): Promise<TestService> {
    const targets = new Map(Object.entries({ hr: hr.url, crm: crm.url }));
    const it_ = await openTestService({
      ...{ policy, targets, database, rootKeys, now: () => performance.now() + skippedMs, ...options },
    });
    open.push(it_);
    return it_;
  }

  /** A process that answers agents and is connected to no target. */
  const startApi = () => start({ role: 'api', targets: new Map() });

  async function mirroredIn(it_: TestService, tenant: string): Promise<string[]> {
    const { rows } = await it_.owner.query<{ mirrored: string[] }>(
      `select mirrored from fieldkeep.data_keys where tenant = $1 and family = 'bank' and version = 1`,
      [tenant],
    );
    return [...rows[0]!.mirrored].sort();
  }

  it('is in its mirror when the answer is there, the same one as in our database', async () => {
    const it_ = await start();
    const sealed = await encryptFor(it_, 'hr', 1);
    assert.equal(sealed.status, 200, sealed.text);
    assert.deepEqual(await listKept(hr), ['acme/bank/1 active']);
    const own = await it_.owner.query(`select to_regclass('fieldkeep.wrapped_keys') is null as none`);
    assert.deepEqual(own.rows, [{ none: true }], 'our own database is no target');
    assert.equal(new Set(await listWrapped([it_.owner, hr.owner], 'acme')).size, 1);
    assert.ok((await mirroredIn(it_, 'acme')).includes('hr'));
    const moved = await it_.call('payroll-agent', 'POST', '/v1/reencrypt', {
      ...{ envelope: sealed.body['envelope'], context: { table: 'hr:app.people', column: 'bank', row: '1' } },
      to: { table: 'crm:app.people', column: 'bank', row: '1' },
    });
    assert.equal(moved.status, 200, moved.text);
    assert.ok((await mirroredIn(it_, 'acme')).includes('crm'), 'where the value moves to');
    const key = it_.service.keyring.getOrMake('acme', 'bank', 1, 'hr');
    assert.ok(key instanceof DataKey, 'and now it is at hand');
  });

  it('waits for a target that is away with a 503, while other targets and our own tables go on', async () => {
    const it_ = await start();
    assert.equal((await encryptFor(it_, 'hr', 1)).status, 200);
    goAway(hr);
    const refused = await encryptFor(it_, 'hr', 1, { tenant: 'globex' });
    assert.equal(refused.status, 503, refused.text);
    assert.equal(refused.body['code'], 'keys_not_ready');
    assert.match(
      String(refused.body['detail']),
      /mirror of hr, so nothing is sealed .* Target hr cannot be reached\.$/,
    );
    assert.equal(refused.body['envelope'], undefined);
    for (const target of [undefined, 'crm']) {
      assert.equal((await encryptFor(it_, target, 1, { tenant: 'globex' })).status, 200, String(target));
    }
    assert.equal((await encryptFor(it_, 'hr', 2)).status, 200, 'a key that is mirrored goes on sealing');
    assert.deepEqual(await listKept(hr), ['acme/bank/1 active']);
    comeBack(hr);
    forget();
    assert.equal((await encryptFor(it_, 'hr', 1, { tenant: 'globex' })).status, 200);
    assert.deepEqual(await listKept(hr), ['acme/bank/1 active', 'globex/bank/1 active']);
  });

  it('that was mirrored unheard is found there, and is no other one', async () => {
    const it_ = await start();
    await encryptFor(it_, 'hr', 1);
    hr.proxy.mode = 'swallow';
    const began = performance.now();
    const refused = await encryptFor(it_, 'hr', 1, { tenant: 'globex' });
    assert.equal(refused.body['code'], 'keys_not_ready', refused.text);
    assert.ok(performance.now() - began < 3_500, 'whoever asks is told in time');
    for (let n = 0; n < 250 && (await listKept(hr)).length < 2; n += 1) await sleep(20);
    assert.ok(!(await mirroredIn(it_, 'globex')).includes('hr'), 'we do not know');
    comeBack(hr);
    forget();
    const sealed = await encryptFor(it_, 'hr', 1, { tenant: 'globex' });
    assert.equal(sealed.status, 200, sealed.text);
    assert.equal(new Set(await listWrapped([it_.owner, hr.owner], 'globex')).size, 1);
  });

  it('is one, however many processes and targets race', async () => {
    const processes = [await start(), await start()];
    const replies = await Promise.all(
      Array.from({ length: 80 }, (_, i) => encryptFor(processes[i % 2]!, i % 4 < 2 ? 'hr' : 'crm', 1)),
    );
    for (const [i, reply] of replies.entries()) {
      assert.equal(reply.status, 200, reply.text);
      const opened = await decryptIn(processes[(i + 1) % 2]!, i % 4 < 2 ? 'hr' : 'crm', 1, reply.body['envelope']);
      assert.equal(opened.body['value'], 'x', opened.text);
    }
    const wrapped = await listWrapped([processes[0]!.owner, hr.owner, crm.owner], 'acme');
    assert.equal(wrapped.length, 3);
    assert.equal(new Set(wrapped).size, 1);
    assert.deepEqual(await mirroredIn(processes[0]!, 'acme'), ['crm', 'hr']);
  });

  it('seals nothing there while the mirror holds another key under its name', async () => {
    const it_ = await start();
    const own = await encryptFor(it_, undefined, 1);
    await hr.owner.query(
      `insert into fieldkeep.wrapped_keys values
         ('acme', 'bank', 1, 'embedded:v1:AAAA', $1, 'active', 1, 'row', null, '[]', now(), now())
       on conflict (tenant, family, version) do update
       set wrapped = excluded.wrapped, fingerprint = excluded.fingerprint`,
      [Buffer.alloc(16)],
    );
    await it_.owner.query('update fieldkeep.data_keys set mirrored = default'); // a worker may have been first
    it_.service.keyring.close();
    const refused = await encryptFor(it_, 'hr', 1);
    assert.equal(refused.status, 500);
    assert.match(String(refused.body['detail']), /^The mirror of hr holds another key of family bank, version 1 for a/);
    assert.match(it_.logged(), /holds another key of family bank, version 1/);
    assert.ok(![refused.text, it_.logged()].some((text) => text.includes('embedded:v1')), 'and shows neither');
    const requestId = String(refused.headers['x-request-id']);
    let [entry] = await entriesOf(it_.owner, requestId);
    for (; entry === undefined; [entry] = await entriesOf(it_.owner, requestId)) await sleep(50);
    assert.deepEqual([entry['outcome'], entry['code'], entry['output']], ['failed', 'internal', undefined]);
    assert.ok(!(await mirroredIn(it_, 'acme')).includes('hr'));
    assert.equal((await encryptFor(it_, 'crm', 1)).status, 200, 'other targets go on');
    assert.equal((await decryptIn(it_, undefined, 1, own.body['envelope'])).status, 200);
    await hr.owner.query('delete from fieldkeep.wrapped_keys');
    forget();
    assert.equal((await encryptFor(it_, 'hr', 1)).status, 200, 'a person has looked');
  });

  it('is asked of a worker, mirror and all, by a process that is connected to no target', async () => {
    const worker = await start({ role: 'worker' });
    const api = await startApi();
    const replies = await Promise.all(
      Array.from({ length: 30 }, (_, i) => encryptFor(api, i % 2 === 0 ? 'hr' : undefined, 1, { tenant: `t${i % 3}` })),
    );
    for (const reply of replies) assert.equal(reply.status, 200, reply.text);
    assert.deepEqual(await listKept(hr), ['t0/bank/1 active', 't1/bank/1 active', 't2/bank/1 active']);
    goAway(crm);
    const began = performance.now();
    const refused = await encryptFor(api, 'crm', 1, { tenant: 't0' });
    assert.equal(refused.body['code'], 'keys_not_ready', refused.text);
    assert.match(
      String(refused.body['detail']),
      /has not been stored in the mirror of crm.* Target crm cannot be reached/,
    );
    assert.ok(performance.now() - began < 3_500);
    comeBack(crm);
    forget();
    assert.equal((await encryptFor(api, 'crm', 1, { tenant: 't0' })).status, 200);
    await worker.close();
    open.splice(open.indexOf(worker), 1);
    assert.equal((await encryptFor(api, 'crm', 2, { tenant: 't0' })).status, 200, 'it knows what is mirrored');
    assert.equal((await encryptFor(api, 'crm', 1, { tenant: 't1' })).status, 503, 'and what is not');
  });

  it('is not sealed under where the owner has not run the new target.sql, and the answer says so', async () => {
    const it_ = await start();
    await hr.owner.query('drop table fieldkeep.wrapped_keys');
    try {
      const refused = await encryptFor(it_, 'hr', 1);
      assert.equal(refused.status, 503);
      assert.match(String(refused.body['detail']), /Target hr has no mirror .* runs npm run target:setup -- hr\.$/);
    } finally {
      await prepare(hr); // again, over what is there of it
    }
    forget();
    assert.equal((await encryptFor(it_, 'hr', 1)).status, 200);
    await it_.owner.query('update fieldkeep.data_keys set mirrored = default');
    it_.service.keyring.close();
    await hr.owner.query(`revoke insert on fieldkeep.wrapped_keys from public, ${new URL(hr.url).username}`);
    try {
      assert.match(String((await encryptFor(it_, 'hr', 1)).body['detail']), /may not use the mirror of hr/);
    } finally {
      await hr.owner.query(`grant insert on fieldkeep.wrapped_keys to ${new URL(hr.url).username}`);
    }
  });

  it('that a mirror lacks is told to whoever looks at keys, also by a process that is connected to no target', async () => {
    const worker = await start({ role: 'worker' });
    const api = await startApi();
    await worker.close();
    open.splice(open.indexOf(worker), 1);
    await start({ role: 'worker', targets: new Map() });
    await api.owner.query(
      `update fieldkeep.mirrors set behind = 3, problem = 'Target hr cannot be reached.' where target = 'hr'`,
    );
    const { body } = await api.call('operator', 'GET', '/v1/keys/bank');
    const told = (body['warnings'] as string[]).filter((each) => /mirror|reached/.test(each));
    assert.deepEqual(told, ['The mirror of hr is behind by 3 keys.', 'Target hr cannot be reached.']);
    const other = await api.call('operator', 'GET', '/v1/keys/ssn');
    assert.ok(!other.text.includes('mirror'), 'families without columns there are not concerned');
    assert.ok((await examine(api.service)).warnings.includes(told[0]!));
  });
});
