import assert from 'node:assert/strict';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { encodeContext, lengthPrefixed } from '../../src/crypto/context.ts';
import { valueDigest } from '../../src/crypto/data-key.ts';
import { parseEnvelope } from '../../src/crypto/envelope.ts';
import { entriesOf, openTestService, type Reply, type TestService } from '../support/service.ts';

const at = (column: string, row: string) => ({ table: 'demo.employees', column, row });
const iban = 'GB29 NWBK 6016 1331 9268 19';

describe('calls on fields', () => {
  let it_: TestService;
  before(async () => {
    it_ = await openTestService();
  });
  after(() => it_.close());

  async function seal(column: string, row: string, value: string, tenant = 'acme'): Promise<string> {
    const answer = await it_.call(
      'payroll-agent',
      'POST',
      '/v1/encrypt',
      { class: column, value, context: at(column, row) },
      { tenant },
    );
    assert.equal(answer.status, 200, answer.text);
    return answer.body['envelope'] as string;
  }

  function is(answer: Reply, status: number, code: string): void {
    assert.equal(answer.status, status, answer.text);
    assert.equal(answer.body['code'], code);
    assert.equal(answer.headers['content-type'], 'application/problem+json');
  }

  it('encrypts with version, mask and index tokens', async () => {
    const body = { class: 'ssn', value: '536-22-1234', context: at('ssn', '1') };
    const { body: answer } = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body);
    assert.match(answer['envelope'] as string, /^fe1\.ssn\.1\./);
    assert.equal(answer['version'], 1);
    assert.equal(answer['masked'], '***-**-****');
    assert.match((answer['indexes'] as { eq: string }).eq, /^b1\.[\w-]{3}$/);
    const bank = await it_.call('invoice-agent', 'POST', '/v1/encrypt', {
      class: 'bank',
      value: iban,
      context: at('bank', '1'),
    });
    assert.equal(bank.body['indexes'], undefined);
  });

  it('reveals what the policy says, and no more', async () => {
    const bank = await seal('bank', '1', iban);
    const salary = await seal('salary', '1', '61500');
    const ssn = await seal('ssn', '1', '536-22-1234');
    const table: [string, string, string, string | undefined, string | undefined, string | true | number][] = [
      ['payroll-agent', 'bank', bank, 'full', undefined, iban],
      ['payroll-agent', 'bank', bank, undefined, undefined, '****'],
      ['payroll-agent', 'bank', bank, 'last4', undefined, '6819'],
      ['payroll-agent', 'salary', salary, 'full', undefined, '61500'],
      ['payroll-agent', 'salary', salary, 'bucket', undefined, '50000-100000'],
      ['payroll-agent', 'ssn', ssn, undefined, undefined, 403],
      ['invoice-agent', 'bank', bank, 'last4', undefined, '6819'],
      ['invoice-agent', 'bank', bank, undefined, undefined, '****'],
      ['invoice-agent', 'bank', bank, 'exists', undefined, true],
      ['invoice-agent', 'bank', bank, 'full', undefined, 403],
      ['invoice-agent', 'salary', salary, undefined, undefined, 403],
      ['recruit-agent', 'ssn', ssn, undefined, undefined, true],
      ['recruit-agent', 'ssn', ssn, 'masked', undefined, 403],
      ['recruit-agent', 'bank', bank, 'exists', undefined, 403],
      ['cx-agent', 'ssn', ssn, 'last4', undefined, '1234'],
      ['cx-agent', 'ssn', ssn, 'full', undefined, 403],
      ['hr-agent', 'ssn', ssn, 'full', 'onboarding', '536-22-1234'],
      ['hr-agent', 'ssn', ssn, 'full', undefined, 403],
      ['hr-agent', 'ssn', ssn, 'full', 'curiosity', 403],
      ['operator', 'ssn', ssn, undefined, undefined, 403],
      ['payroll-agent', 'bank', bank, 'bucket', undefined, 400],
    ];
    for (const [agent, column, envelope, view, purpose, want] of table) {
      const body = { envelope, context: at(column, '1'), ...(view && { view }), ...(purpose && { purpose }) };
      const answer = await it_.call(agent, 'POST', '/v1/decrypt', body);
      const what = `${agent} ${column} ${view ?? ''}`;
      if (typeof want === 'number') assert.equal(answer.status, want, what);
      else assert.deepEqual([answer.status, answer.body['value']], [200, want], what);
    }
  });

  it('opens an envelope only where it was sealed', async () => {
    const one = await seal('bank', '1', iban);
    const open = (envelope: string, context: object, tenant = 'acme') =>
      it_.call('payroll-agent', 'POST', '/v1/decrypt', { envelope, context, view: 'full' }, { tenant });
    is(await open(one, at('bank', '2')), 422, 'decryption_failed');
    is(await open(one, at('salary', '1')), 422, 'decryption_failed');
    is(await open(one, { ...at('bank', '1'), table: 'demo.other' }), 422, 'decryption_failed');
    await seal('bank', '1', iban, 'globex');
    is(await open(one, at('bank', '1'), 'globex'), 422, 'decryption_failed');
    is(await open(one, at('bank', '1'), 'nobody-yet'), 422, 'decryption_failed');
    const [head, body] = [one.slice(0, 11), one.slice(11)];
    is(await open(one.slice(0, -1), at('bank', '1')), 400, 'envelope_malformed');
    is(await open(`${one}=`, at('bank', '1')), 400, 'envelope_malformed');
    is(await open(one.slice(0, one.length / 2), at('bank', '1')), 400, 'envelope_malformed');
    is(
      await open(`${head}${body.startsWith('A') ? 'B' : 'A'}${body.slice(1)}`, at('bank', '1')),
      422,
      'decryption_failed',
    );
    is(await open(one.replace('fe1.bank.1.', 'fe1.bank.7.'), at('bank', '1')), 404, 'version_unknown');
    is(await open(one.replace('fe1.bank.', 'fe1.ssn.'), at('bank', '1')), 403, 'forbidden');
    is(await open(one.replace('fe1.bank.', 'fe1.nothing.'), at('bank', '1')), 403, 'forbidden');
  });

  it('takes values for registered columns only, spelled as Postgres spells their rows', async () => {
    const encrypt = (name: string, value: string, context: object) =>
      it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: name, value, context });
    is(await encrypt('bank', iban, { table: 'demo.other', column: 'bank', row: '1' }), 404, 'column_unknown');
    is(await encrypt('nothing', iban, at('nothing', '1')), 404, 'class_unknown');
    is(await encrypt('salary', '1', at('bank', '1')), 400, 'request_invalid');
    for (const row of ['01', '+1', '1.0', ' 1', 'one', ''])
      is(await encrypt('bank', iban, at('bank', row)), 400, 'request_invalid');
    is(await encrypt('salary', 'ä'.repeat(8193), at('salary', '1')), 400, 'request_invalid');
    assert.equal((await encrypt('salary', 'ä'.repeat(8192), at('salary', '1'))).status, 200);
    assert.equal((await encrypt('bank', '', at('bank', '1'))).status, 200);
  });

  it('matches normalised values and says nothing else', async () => {
    const envelope = await seal('ssn', '3', '536-22-1234');
    const match = async (candidate: string) =>
      (await it_.call('cx-agent', 'POST', '/v1/match', { envelope, context: at('ssn', '3'), candidate })).body['match'];
    assert.equal(await match('536 22 1234'), true);
    assert.equal(await match('536-22-1235'), false);
    for (const candidate of ['', 'N/A', ' ', '-']) assert.equal(await match(candidate), false, candidate);
    is(
      await it_.call('invoice-agent', 'POST', '/v1/match', { envelope, context: at('ssn', '3'), candidate: '1' }),
      403,
      'forbidden',
    );
  });

  it('answers search tokens that encrypt stored, and until when they hold', async () => {
    const stored = (
      await it_.call('payroll-agent', 'POST', '/v1/encrypt', {
        class: 'ssn',
        value: '536-22-1234',
        context: at('ssn', '6'),
      })
    ).body;
    const body = { class: 'ssn', value: '536 22 1234', context: { table: 'demo.employees', column: 'ssn' } };
    const found = await it_.call('hr-agent', 'POST', '/v1/search-tokens', body);
    assert.deepEqual(found.body['tokens'], [(stored['indexes'] as { eq: string }).eq]);
    const ms = Date.parse(found.body['expiresAt'] as string) - Date.now();
    assert.ok(ms > 5_000 && ms <= 10_000, `they hold ${ms} ms`);
    is(await it_.call('hr-agent', 'POST', '/v1/search-tokens', { ...body, index: 'other' }), 400, 'request_invalid');
    is(await it_.call('cx-agent', 'POST', '/v1/search-tokens', body), 403, 'forbidden');
  });

  it('answers batches in order, each item for itself', async () => {
    const good = await seal('bank', '7', iban);
    const items = [
      { ref: 'a', envelope: good, context: at('bank', '7') },
      { ref: 'b', envelope: good, context: at('bank', '8') },
      { envelope: 'fe1.bank.1.AAAA', context: at('bank', '7') },
      { ref: 'd', envelope: await seal('ssn', '7', '536-22-1234'), context: at('ssn', '7') },
      { ref: 'e', envelope: good, context: at('bank', '7'), view: 'full' },
    ];
    const answer = await it_.call('payroll-agent', 'POST', '/v1/decrypt', { items, view: 'last4' });
    assert.equal(answer.status, 200);
    const seen = answer.body.items!.map((item) => [
      item['ref'],
      item['value'] ?? (item['error'] as { code: string }).code,
    ]);
    assert.deepEqual(seen, [
      ['a', '6819'],
      ['b', 'decryption_failed'],
      [undefined, 'envelope_malformed'],
      ['d', 'forbidden'],
      ['e', iban],
    ]);
    await unfoldAcknowledged(it_.service.pool);
    const [entry] = await entriesOf(it_.owner, answer.headers['x-request-id'] as string);
    assert.deepEqual([entry!['count'], entry!['outcome'], entry!['decision']], [5, 'partial', 'allow']);
    assert.equal(typeof entry!['itemsRoot'], 'string');
  });

  it('writes digests that a candidate can be tested against, and nothing of the value', async () => {
    const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', {
      class: 'bank',
      value: iban,
      context: at('bank', '9'),
    });
    const requestId = sealed.headers['x-request-id'] as string;
    await unfoldAcknowledged(it_.service.pool);
    const [entry] = await entriesOf(it_.owner, requestId);
    const key = await it_.service.keyring.getOrMake('acme', 'bank', 1);
    const ctx = encodeContext('bank', 1, { tenant: 'acme', ...at('bank', '9') });
    assert.equal(entry!['input'], valueDigest(key, requestId, 0, ctx, iban));
    const { commitment } = parseEnvelope(sealed.body['envelope'] as string);
    assert.equal(entry!['output'], `envelope:${commitment.toString('base64url', 0, 16)}`);
    const digestKey = await it_.service.keyring.getOrMake('acme', 'audit', 1);
    const place = Buffer.concat(['demo.employees', 'bank', '9'].map((text) => lengthPrefixed(text, 'part')));
    const digest = digestKey.hmac(Buffer.from('fe1/row\0'), place).toString('base64url', 0, 16);
    assert.equal(entry!['rowDigest'], `1.${digest}`);
    const byRow = await it_.call(
      'security-auditor',
      'GET',
      `/v1/audit/entries?rowDigest=${encodeURIComponent(`1.${digest}`)}`,
    );
    assert.deepEqual(
      byRow.body.items!.map((item) => (item['entry'] as { requestId: string }).requestId),
      [requestId],
    );
  });

  it('makes one data key a family when two hundred calls of a new tenant come at once', async () => {
    const calls = Array.from({ length: 200 }, (_, i) => {
      const column = ['bank', 'salary', 'ssn'][i % 3]!;
      return it_.call(
        'payroll-agent',
        'POST',
        '/v1/encrypt',
        { class: column, value: '1', context: at(column, String(i)) },
        { tenant: 'fresh' },
      );
    });
    for (const answer of await Promise.all(calls)) assert.equal(answer.status, 200, answer.text);
    const { rows } = await it_.owner.query(
      `select family, count(*)::int as n from fieldkeep.data_keys where tenant = 'fresh' group by 1 order by 1`,
    );
    assert.deepEqual(rows, [
      { family: 'audit', n: 1 },
      { family: 'bank', n: 1 },
      { family: 'salary', n: 1 },
      { family: 'ssn', n: 1 },
    ]);
  });
});
