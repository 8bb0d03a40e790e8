/** What counts when values are compared: nothing left is never a yes, and what is outside ASCII is never lost unsaid. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { seal } from '../../src/crypto/aead.ts';
import { formatEnvelope } from '../../src/crypto/envelope.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { encodePlace } from '../../src/values/place.ts';
import { openTestService, type Reply, type TestService } from '../support/service.ts';

const table = 'demo.employees';
const file = JSON.parse(readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8')) as {
  classes: Record<string, object>;
};
const tester = {
  tenants: ['*'],
  grants: [
    'encrypt:*',
    'match:*',
    'search:*',
    'reencrypt:*',
    'decrypt:ssn:full',
    'decrypt:bank:full',
    'decrypt:salary:full',
  ],
};
const withClasses = (more: Record<string, object>) => {
  const classes = Object.fromEntries(
    Object.entries(file.classes).map(([name, each]) => [name, { ...each, ...more[name] }]),
  );
  return parsePolicy(JSON.stringify({ ...file, classes, agents: { tester } }));
};

describe('comparing values', () => {
  for (const fold of [false, true]) {
    describe(fold ? 'of classes that fold' : 'of classes that say nothing of what is outside ASCII', () => {
      let it_: TestService;
      before(async () => {
        const nonAscii = { nonAscii: 'fold' };
        it_ = await openTestService({ policy: withClasses(fold ? { ssn: nonAscii, bank: nonAscii } : {}) });
      });
      after(() => it_.close());

      const at = (column: string, row = '1') => ({ table, column, row });
      const post = (path: string, body: object) => it_.call('tester', 'POST', `/v1/${path}`, body);
      const encrypt = (column: string, value: string) => post('encrypt', { class: column, value, context: at(column) });
      /** As a release stored it that took any text; so are the rows that stand there. */
      async function store(column: string, value: string): Promise<string> {
        const version = it_.service.keyring.state.families.get(column)!.versions.get(1)!;
        const key = await it_.service.keyring.getOrMake('acme', column, 1);
        const ctx = encodePlace(version, { tenant: 'acme', ...at(column) });
        return formatEnvelope(seal(key, column, 1, ctx, value, 64));
      }
      const match = async (column: string, envelope: string, candidate: string) =>
        (await post('match', { envelope, context: at(column), candidate })).body['match'];
      function isRefused(answer: Reply, column: string, value: string): void {
        assert.equal(answer.status, 400, answer.text);
        assert.match(answer.body['detail'] as string, new RegExp(`outside ASCII, which class ${column} would lose`));
        assert.ok(!answer.text.includes(value));
      }

      it('says no where nothing is left of a side, in batches too', async () => {
        for (const stored of ['unknown', '', 'N/A', '–']) {
          const envelope = await store('ssn', stored);
          const candidates = ['', 'N/A', 'unknown', ' ', '—', '1'];
          const items = candidates.map((candidate) => ({ envelope, context: at('ssn'), candidate }));
          for (const candidate of candidates) assert.equal(await match('ssn', envelope, candidate), false, candidate);
          const { items: answers } = (await post('match', { items })).body;
          assert.deepEqual(
            answers,
            candidates.map(() => ({ match: false })),
          );
        }
        const bank = await store('bank', '--');
        assert.equal(await match('bank', bank, '??'), false);
      });

      it('calls two empty texts equal where the class does not normalise', async () => {
        const envelope = (await encrypt('salary', '')).body['envelope'] as string;
        assert.equal(await match('salary', envelope, ''), true);
        assert.equal(await match('salary', envelope, ' '), false);
        assert.equal(await match('salary', (await encrypt('salary', '１')).body['envelope'] as string, '１'), true);
      });

      it('takes what is outside ASCII by the rule of the class', async () => {
        for (const [column, value, plain, other] of [
          ['ssn', '１２３-４５', '12345', '45'],
          ['ssn', '٣٤', '34', ''],
          ['bank', 'ＧＢ２９', 'gb 29', '29'],
          ['bank', 'Ж12', 'ж-12', '12'],
        ] as const) {
          const answer = await encrypt(column, value);
          const searched = await post('search-tokens', { class: 'ssn', value, context: { table, column: 'ssn' } });
          const stored = await store(column, value);
          assert.equal(await match(column, stored, other), false, `${value} is not ${other}`);
          if (!fold) {
            isRefused(answer, column, value);
            isRefused(await post('match', { envelope: stored, context: at(column), candidate: value }), column, value);
            if (column === 'ssn') isRefused(searched, 'ssn', value);
            continue;
          }
          assert.equal(answer.status, 200, answer.text);
          assert.equal(await match(column, stored, plain), true, `${value} is ${plain}`);
          if (column === 'bank') continue;
          const { eq } = answer.body['indexes'] as { eq: string };
          assert.deepEqual(searched.body['tokens'], [eq]);
          assert.equal(((await encrypt('ssn', plain)).body['indexes'] as { eq: string }).eq, eq);
        }
        isRefused(await encrypt('ssn', '12½'), 'ssn', '12½');
      });

      it('opens and re-encrypts what stands there for ever, without a token where something of it would be lost', async () => {
        for (const value of ['12½', '3三', '１２']) {
          const envelope = await store('ssn', value);
          const opened = await post('decrypt', { envelope, context: at('ssn'), view: 'full' });
          assert.equal(opened.body['value'], value);
          const renewed = await post('reencrypt', { envelope, context: at('ssn') });
          assert.equal(renewed.status, 200, renewed.text);
          const { eq } = renewed.body['indexes'] as { eq: string | null };
          assert.equal(eq === null, !(fold && value === '１２'), value);
        }
        const long = await store('ssn', '1'.repeat(600));
        const renewed = await post('reencrypt', { envelope: long, context: at('ssn') });
        assert.deepEqual([renewed.status, renewed.body['indexes']], [200, { eq: null }]);
        assert.equal((await encrypt('ssn', '1'.repeat(600))).status, 400);
      });
    });
  }
});
