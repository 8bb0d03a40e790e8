/**
 * A state folder that the release before left, in which one login had the rights of every duty, killed while it rotated: it is
 * started by this release. test/fixtures/former has the rows that the release before wrote, its grants and its root keys.
 */
import assert from 'node:assert/strict';
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect, roleOf, type Pool } from '../src/db.ts';
import { startPostgres, type EmbeddedPostgres } from '../src/embedded/postgres.ts';
import { openEmbeddedRootKeys } from '../src/keys/embedded.ts';
import { parsePolicy, type Policy } from '../src/policy/policy.ts';
import { makeFolder, makeHome } from './embedded/support.ts';
import { waitUntil } from './operations/support.ts';
import { replace } from './rotation/intercept.ts';
import { migrateAll } from './support/database.ts';
import { openTestService, type TestService } from './support/service.ts';

const fixture = (name: string) => new URL(`./fixtures/former/${name}`, import.meta.url);
const read = (name: string) => readFileSync(fixture(name), 'utf8');
const migrations = new URL('../migrations/', import.meta.url);
/** The last migration of the release before. */
const last = '0013_call_off.sql';
const settings = { fsync: 'off' };
const password = 'former';
const table = 'demo.employees';
const used = '0ab48e8d-4675-4a64-a1ae-afc2653258f1';
const open = 'e2a038ee-bdc4-4673-8491-292f2fd7814c';

interface Row {
  readonly id: string;
  readonly tenant: string;
  readonly ssn: string | null;
  readonly bank: string;
  readonly salary: string;
}
const classes = ['ssn', 'bank', 'salary'] as const;

/** What was encrypted, by the number of the row. */
const valueOf = {
  ssn: (n: number) => (n % 10 === 0 ? null : String(n * 7919).padStart(9, '0')),
  bank: (n: number) => `GB${String(n).padStart(20, '0')}`,
  salary: (n: number) => String(30_000 + n),
};

/** No rotation begins by its date, however old the rows are. */
function readPolicy(): Policy {
  const file = JSON.parse(readFileSync(new URL('../keys-policy.json', import.meta.url), 'utf8')) as {
    classes: Record<string, { rotateEvery: string }>;
    agents: Record<string, { grants: unknown[] }>;
  };
  for (const each of Object.values(file.classes)) each.rotateEvery = 'P900Y';
  file.agents['payroll-agent']!.grants.push('decrypt:ssn:full');
  return parsePolicy(JSON.stringify(file));
}

/** Makes the database as the release before made it, and fills it. */
async function fill(ownerUrl: string): Promise<void> {
  const client = await connect(ownerUrl, { name: 'test', statementTimeoutMs: 60_000 });
  try {
    await client.query(`create schema fieldkeep;
      create table fieldkeep.migrations (id serial primary key, name varchar(255) not null, run_on timestamp not null)`);
    for (const name of readdirSync(migrations).sort()) {
      if (!/^\d{4}_/.test(name) || name > last) continue;
      await client.query(readFileSync(new URL(name, migrations), 'utf8'));
      await client.query('insert into fieldkeep.migrations (name, run_on) values ($1, now())', [
        name.replace('.sql', ''),
      ]);
    }
    await client.query(read('rows.sql'));
    // The one that nobody used yet stays open, however old the rows are.
    await client.query(`update fieldkeep.approvals set decide_by = now() + interval '1 hour' where used_at is null`);
    await client.query('drop role fieldkeep_api, fieldkeep_worker, fieldkeep_rows');
    await client.query(`create role fieldkeep_service login password '${password}'`);
    await client.query(read('grants.sql').replaceAll(':service', 'fieldkeep_service'));
    await client.query(`create schema app;
      create table app.people (id bigint primary key, tenant text, name text, bank text);
      grant usage on schema app to fieldkeep_service;
      grant select (id, tenant, bank), update (bank) on app.people to fieldkeep_service;
      create table app.notes as select 1 as n;
      alter table app.notes owner to fieldkeep_service`);
  } finally {
    await client.end();
  }
}

describe('a database of the release before', function () {
  this.timeout(60_000);
  const folder = makeFolder();
  const home = makeHome(folder.path);
  const policy = readPolicy();
  let postgres: EmbeddedPostgres;
  let owner: Pool;
  let worker: TestService;
  let api: TestService;

  before(async () => {
    const first = await startPostgres({ home, settings });
    await fill(first.ownerUrl);
    await first.stop();
    // The file of passwords as the release before wrote it.
    const file = join(home, 'postgres.json');
    const kept = JSON.parse(readFileSync(file, 'utf8')) as { id: string; passwords: Record<string, string> };
    const { owner: ownerPassword, reader: readerPassword } = kept.passwords;
    writeFileSync(
      file,
      JSON.stringify({ id: kept.id, port: 0, ownerPassword, servicePassword: password, readerPassword }),
    );
    const keys = join(home, 'root-keys.json');
    copyFileSync(fixture('root-keys.json'), keys);

    postgres = await startPostgres({ home, settings });
    await migrateAll(postgres);
    await migrateAll(postgres); // as every later start does
    const database = { ...postgres, drop: () => Promise.resolve() };
    const rootKeys = await openEmbeddedRootKeys(keys);
    worker = await openTestService({ role: 'worker', database, policy, rootKeys });
    // The same keys, as in one process; the worker closes them.
    const shared = replace(rootKeys, { close: () => undefined });
    api = await openTestService({ role: 'api', database, policy, rootKeys: shared });
    owner = api.owner;
  });
  after(async () => {
    await api?.close();
    await worker?.close();
    await postgres?.stop();
    folder.remove();
  });

  const listRows = async () =>
    (await owner.query<Row>(`select id, tenant, ssn, bank, salary from ${table} order by id`)).rows;
  const openValue = (tenant: string, column: string, row: string, envelope: string) =>
    api.call(
      'payroll-agent',
      'POST',
      '/v1/decrypt',
      { envelope, context: { table, column, row }, view: 'full' },
      { tenant },
    );

  it('goes on with the rotation that was killed, and opens every value of every version', async () => {
    const isDone = async () =>
      (await owner.query('select from fieldkeep.rotations where done_at is null')).rowCount === 0;
    await waitUntil(isDone, 'the rotation is done');
    const { rows: versions } = await owner.query<{ version: string }>(
      `select family || ' ' || version || ' ' || state as version from fieldkeep.key_versions order by 1`,
    );
    assert.deepEqual(
      versions.map((each) => each.version),
      [
        ...['audit 1 active', 'bank 1 decrypt-only', 'bank 2 active', 'salary 1 decrypt-only', 'salary 2 active'],
        ...['ssn 1 destroyed', 'ssn 2 active'],
      ],
    );
    const rows = await listRows();
    assert.equal(rows.length, 40);
    for (const row of rows) {
      for (const column of classes) {
        const expected = valueOf[column](Number(row.id));
        if (expected === null) {
          assert.equal(row[column], null);
          continue;
        }
        assert.match(row[column]!, new RegExp(`^fe1\\.${column}\\.2\\.`));
        const { body, text } = await openValue(row.tenant, column, row.id, row[column]!);
        assert.equal(body['value'], expected, text);
      }
    }
  });

  it('opens what applications still hold of the versions before, and nothing of one that was destroyed', async () => {
    for (const row of JSON.parse(read('hand.json')) as Row[]) {
      for (const column of classes) {
        const { body, text } = await openValue(row.tenant, column, row.id, row[column]!);
        if (column === 'ssn') assert.equal(body['code'], 'version_destroyed', text);
        else assert.equal(body['value'], valueOf[column](Number(row.id)), text);
      }
    }
    const certificate = await api.call('operator', 'GET', '/v1/keys/ssn/versions/1/certificate');
    assert.equal(certificate.status, 200, certificate.text);
  });

  it('reads old and new entries in one dense order, those too that nobody had put in order', async () => {
    const denied = await api.call('recruit-agent', 'GET', '/v1/audit/entries');
    assert.equal(denied.status, 403);
    const seen: { index: number; entry: { requestId?: string } }[] = [];
    for (let before = ''; ;) {
      const page = await api.call('security-auditor', 'GET', `/v1/audit/entries?limit=50${before}`);
      assert.equal(page.status, 200, page.text);
      seen.push(...(page.body.items as unknown as typeof seen));
      if (page.body['nextCursor'] === undefined) break;
      before = `&cursor=${page.body['nextCursor'] as string}`;
    }
    assert.deepEqual(
      seen.map(({ index }) => index),
      seen.map((_, n) => seen.length - 1 - n),
    );
    const { rows: waiting } = await owner.query(
      `select from fieldkeep.audit_intake i join fieldkeep.audit_streams using (stream)
       where instance <> all ($1) and not exists
         (select from fieldkeep.audit_unfolded u where (u.stream, u.seq) = (i.stream, i.seq))`,
      [[api.service.instanceId, worker.service.instanceId]],
    );
    assert.equal(waiting.length, 0);
    assert.ok(seen.some(({ entry }) => entry.requestId === denied.headers['x-request-id']));
    const { rows: lost } = await owner.query('select from fieldkeep.audit_lost');
    assert.equal(lost.length, 0);
  });

  it('keeps approvals: one that was used stays used, one that is open takes the decisions that it lacks', async () => {
    const { body } = await api.call('security-lead', 'GET', '/v1/approvals');
    const stand: Record<string, unknown> = Object.fromEntries(
      body.items!.map(({ id, status, received }) => [id as string, [status, received]]),
    );
    assert.deepEqual(stand, { [used]: ['used', 2], [open]: ['pending', 1] });
    const again = await api.call(
      ...(['operator', 'POST', '/v1/keys/ssn/versions/1/destroy', { reason: 'quarterly' }] as const),
      { headers: { 'approval-id': used } },
    );
    assert.equal(again.body['code'], 'approval_used', again.text);
    const decide = (who: string) =>
      api.call(who, 'POST', `/v1/approvals/${open}/decisions`, { decision: 'approve', reason: 'fine' });
    assert.equal((await decide('security-auditor')).status, 409, 'who agreed before agrees once');
    assert.equal((await decide('security-lead')).body['status'], 'approved');
  });

  it('keeps an approval used that a process of the release before uses after the migration', async () => {
    await owner.query('update fieldkeep.approvals set used_at = now() where id = $1', [open]);
    const { body } = await api.call('security-lead', 'GET', `/v1/approvals/${open}`);
    assert.equal(body['status'], 'used');
    await owner.query('update fieldkeep.approvals set used_at = null where id = $1', [open]);
  });

  it('encrypts and rotates on', async () => {
    const context = { table, column: 'bank', row: '41' };
    const sealed = await api.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: 'GB1', context });
    assert.equal(sealed.body['version'], 2, sealed.text);
    const begun = await api.call('operator', 'POST', '/v1/keys/bank/rotate', {});
    assert.equal(begun.status, 202, begun.text);
    const isDone = async () => (await listRows()).every(({ bank }) => bank.startsWith('fe1.bank.3.'));
    await waitUntil(isDone, 'the next rotation is done', 30_000);
  });

  it('leaves the former login nothing, and drops nothing that it owned', async () => {
    const former = new URL(postgres.ownerUrl);
    former.username = 'fieldkeep_service';
    former.password = password;
    await assert.rejects(connect(former.href, { name: 'test' }), { code: /^28/ });
    const { rows: kept } = await owner.query<{ what: string }>(
      `select a.what from (select relname::text, relacl from pg_class union all select proname, proacl from pg_proc
         union all select nspname, nspacl from pg_namespace union all select attname, attacl from pg_attribute) a (what, acl),
         aclexplode(a.acl) where grantee = 'fieldkeep_service'::regrole`,
    );
    assert.deepEqual(kept, []);
    assert.deepEqual((await owner.query('select n from app.notes')).rows, [{ n: 1 }]);
  });

  it('gives its rights on the rows of others to the login for rows, and to no other', async () => {
    const asked = `select has_column_privilege(r, 'app.people', 'bank', 'select, update') as bank,
        has_column_privilege(r, 'app.people', 'name', 'select, update') as name, has_schema_privilege(r, 'app', 'usage') as app
      from unnest($1::text[]) r`;
    const logins = [postgres.rowsUrl, postgres.workerUrl, postgres.apiUrl].map(roleOf);
    assert.deepEqual((await owner.query(asked, [logins])).rows, [
      { bank: true, name: false, app: true },
      { bank: false, name: false, app: false },
      { bank: false, name: false, app: false },
    ]);
  });
});
