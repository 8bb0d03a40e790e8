/** Places and values as people make them, to the API and to the job: what the one refuses, the other never seals. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { readFileSync } from 'node:fs';
import { isCanonicalRow, formatRow } from '../../src/targets/catalog.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { Renewer, layOut } from '../../src/rotation/renew.ts';
import { roleOf } from '../../src/db.ts';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { entriesOf, openTestService, type TestService } from '../support/service.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { openPool } from '../../src/db.ts';

const file = JSON.parse(readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8')) as {
  classes: Record<string, object>;
};
const index = [{ name: 'eq', column: 'v_eq', bits: 16 }];
const of = { tenant: { column: 'tenant' }, column: 'v', adopt: true, index };
const plain = {
  views: ['full', 'masked', 'exists'],
  defaultView: 'masked',
  mask: '****',
  rotateEvery: 'P3M',
  padTo: 16,
};
const grants = ['encrypt:*', 'reencrypt:*', 'match:*', 'decrypt:note:full', 'decrypt:free:full', 'decrypt:ssn:full'];
const policy = parsePolicy(
  JSON.stringify({
    ...file,
    classes: { ...file.classes, note: { ...plain, bind: 'row' }, free: { ...plain, bind: 'column' } },
    agents: { tester: { tenants: ['*'], grants } },
    columns: [
      { table: 'public.one', key: ['id'], class: 'note', ...of },
      { table: 'public.two', key: ['a', 'b'], class: 'ssn', ...of },
      { table: 'public.three', key: ['id'], class: 'free', ...of },
    ],
  }),
);

describe('values/place', () => {
  let database: TestDatabase;
  let it_: TestService;
  before(async () => {
    database = await createDatabase();
    const owner = openPool(database.ownerUrl, { max: 1, name: 'owner' });
    await owner.query(`
      create table public.one (id text primary key, tenant text, v text, v_eq text);
      create table public.two (a text, b text, tenant text, v text, v_eq text, primary key (a, b));
      create table public.three (id text primary key, tenant text, v text, v_eq text);
      grant usage on schema public to ${roleOf(database.rowsUrl)};
      grant select, update on public.one, public.two, public.three to ${roleOf(database.rowsUrl)}`);
    await owner.end();
    it_ = await openTestService({ policy, database, workers: false });
  });
  after(async () => {
    await it_.close();
    await database.drop();
  });

  interface Given {
    readonly table: string;
    readonly key: readonly string[];
    readonly tenant: string;
    readonly value: string;
  }

  /** Undefined where the job records a failure: its code is answered instead. */
  async function byJob({ table: address, key, tenant, value }: Given): Promise<{ envelope?: string; code?: string }> {
    const { service } = it_;
    const shape = service.catalog.tables.get(address)!;
    const layout = layOut('adoption', shape.columns, (name) => service.policy.classes.get(name)!);
    const renewer = new Renewer(service.keyring, service.keyring.state, shape, 'adoption', layout.slots);
    const { next, failures } = await renewer.renew({ key, tenant, values: [value, null] });
    assert.equal(failures.length + (next === undefined ? 0 : 1), 1);
    return next === undefined ? { code: failures[0]!.code } : { envelope: next[0]! };
  }
  const classOf = (table: string) => policy.columns.find((column) => column.table === table)!.class;

  async function compare(given: Given): Promise<void> {
    const { table, key, tenant, value } = given;
    const context = { table, column: 'v', row: formatRow(key) };
    const body = { class: classOf(table), value, context };
    const byApi = await it_.call('tester', 'POST', '/v1/encrypt', body, { tenant });
    const job = await byJob(given);
    const what = JSON.stringify({ ...given, status: byApi.status, code: job.code });
    assert.equal(job.envelope !== undefined, byApi.status === 200, what);
    if (job.envelope === undefined) {
      assert.match(job.code!, /^request_invalid:[a-z_]+$/, what);
      return;
    }
    const asked = { envelope: job.envelope, context, view: 'full' };
    const opened = await it_.call('tester', 'POST', '/v1/decrypt', asked, { tenant });
    assert.deepEqual([opened.status, opened.body['value']], [200, value], what);
  }

  const long = (n: number) => 'x'.repeat(n);
  const places: [string, Partial<Given>][] = [
    ['an ordinary row', {}],
    ['an empty key', { key: [''] }],
    ['an empty key of a class that is bound to its column', { table: 'public.three', key: [''] }],
    ['empty parts of a key', { table: 'public.two', key: ['', ''], value: '1' }],
    ['a key of 512 bytes', { key: [long(512)] }],
    ['a key of 513 bytes', { key: [long(513)] }],
    ['a key of 512 bytes in fewer characters', { key: ['é'.repeat(256)] }],
    ['a key of 514 bytes in fewer characters', { key: ['é'.repeat(257)] }],
    ['such a key of a class that is bound to its column', { table: 'public.three', key: ['é'.repeat(257)] }],
    ['a key that is long only as an array', { table: 'public.two', key: [long(254), '"'.repeat(127)], value: '1' }],
    ['a key of odd characters', { key: [' \t\u{1f511}"\\'] }],
    ['a tenant of 128 characters', { tenant: '\u{1f511}'.repeat(128) }],
    ['a tenant of 129 characters', { tenant: long(129) }],
    ['a tenant with a control character', { tenant: 'a\nb' }],
    ['a tenant with a blank', { tenant: ' acme' }],
    ['an empty value', { value: '' }],
    ['a value of 16,384 bytes', { table: 'public.three', value: '!'.repeat(16_384) }],
    ['a value of 16,386 bytes in fewer characters', { table: 'public.three', value: 'é'.repeat(8_193) }],
    ['a value too long for its index', { value: long(513) }],
    [
      'a value that is long, with little that counts',
      { table: 'public.two', key: ['a', 'b'], value: `1${'-'.repeat(600)}` },
    ],
    ['digits of another script', { table: 'public.two', key: ['a', 'b'], value: '12３' }],
    ['letters where only digits count', { table: 'public.two', key: ['a', 'b'], value: '12é' }],
  ];
  for (const [what, more] of places) {
    it(`${what}: the job seals it if the API does`, () =>
      compare({ table: 'public.one', key: ['7'], tenant: 'acme', value: 'v', ...more }));
  }

  it('whatever the place and the value are, the job seals what the API does and nothing else', async () => {
    const part = fc.oneof(
      fc.string({ maxLength: 4 }),
      fc.string({ unit: 'grapheme', maxLength: 300 }),
      fc.constantFrom('', long(200), 'é'.repeat(130)),
    );
    const text = part.map((each) => each.replaceAll('\0', '').toWellFormed());
    const given = fc.oneof(
      fc.record({ table: fc.constantFrom('public.one', 'public.three'), key: fc.tuple(text) }),
      fc.record({ table: fc.constant('public.two'), key: fc.tuple(text, text) }),
    );
    await fc.assert(
      fc.asyncProperty(given, text, text, async (place, tenant, value) => {
        fc.pre(tenant !== '');
        await compare({ ...place, tenant, value });
      }),
      { numRuns: 150 },
    );
  }).timeout(60_000);

  it('writes an entry also for a row that no digest can be made of', async () => {
    const row = 'é'.repeat(300);
    assert.ok(isCanonicalRow(['text'], row));
    const body = { class: 'note', value: 'v', context: { table: 'public.one', column: 'v', row } };
    const answer = await it_.call('tester', 'POST', '/v1/encrypt', body);
    assert.equal(answer.status, 400, answer.text);
    await unfoldAcknowledged(it_.service.pool);
    const [entry] = await entriesOf(it_.owner, answer.headers['x-request-id'] as string);
    assert.deepEqual([entry!['code'], entry!['rowDigest']], ['request_invalid', undefined]);
  });
});
