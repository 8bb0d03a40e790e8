/** What the documents tell application developers to write, as it stands there, run against a guard and against rivals. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { watchDone } from '../../src/retirement/watch.ts';
import { rotate } from '../rotation/support.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { policyOf } from './retiring.ts';

type Run = (...values: unknown[]) => Promise<void>;
// eslint-disable-next-line @typescript-eslint/require-await -- only its constructor is wanted
const AsyncFunction = (async () => undefined).constructor as new (...text: string[]) => Run;

/** The document's lines for Node, as a function of the names that they take for granted. */
function linesOf(file: string, ...names: string[]): Run {
  const text = readFileSync(fileURLToPath(new URL(`../../${file}`, import.meta.url)), 'utf8');
  const [, lines] = /```js\n([^]*?)```/.exec(text)!;
  return new AsyncFunction(...names, lines!.replaceAll('app.people', 'demo.employees'));
}

describe('the lines for Node', () => {
  let it_: TestService;
  before(async () => {
    it_ = await openTestService({ policy: policyOf(), workers: false });
    await it_.owner.query(`alter table demo.employees alter name set default 'n'`);
  });
  after(() => it_.close());

  async function post(path: string, body: object) {
    const reply = await it_.call(path.endsWith('tokens') ? 'hr-agent' : 'payroll-agent', 'POST', path, body);
    assert.equal(reply.status, 200, reply.text);
    return reply.body as { envelope: string; indexes: { eq: string }; tokens: string[]; expiresAt: string };
  }
  const seal = (row: string, value: string) =>
    post('/v1/encrypt', { class: 'ssn', value, context: { table: 'demo.employees', column: 'ssn', row } });
  const tokensOf = (value: string) =>
    post('/v1/search-tokens', { class: 'ssn', value, context: { table: 'demo.employees', column: 'ssn' } });

  it('in RETIRE.md renew a late envelope and its tokens', async () => {
    const sealed = await seal('1', '536-22-1234');
    await it_.owner.query(`insert into demo.employees (id, tenant) values (1, 'acme')`);
    await rotate(it_, 'ssn');
    await watchDone(it_.service, { now: true });
    await linesOf('RETIRE.md', 'db', 'post', 'sealed', 'id')(it_.owner, post, sealed, '1');
    const { rows } = await it_.owner.query<{ ssn: string; eq: string }>('select ssn, ssn_eq as eq from demo.employees');
    assert.match(rows[0]!.ssn, /^fe1\.ssn\.2\./);
    assert.match(rows[0]!.eq, /^b2\./);
    assert.ok((await tokensOf('536-22-1234')).tokens.includes(rows[0]!.eq));
  });

  it('in UNIQUE.md let one of two have a value', async () => {
    const save = linesOf('UNIQUE.md', 'pool', 'tokens', 'expiresAt', 'tenant', 'id', 'envelope', 'indexes');
    const writers = ['7', '8'].map(async (id) => {
      const { envelope, indexes } = await seal(id, '999-99-0001');
      const { tokens, expiresAt } = await tokensOf('999-99-0001');
      await save(it_.owner, tokens, expiresAt, 'acme', id, envelope, indexes);
    });
    const outcomes = (await Promise.allSettled(writers)).map((each) =>
      each.status === 'fulfilled' ? 'stored' : (each.reason as Error).message,
    );
    assert.deepEqual(outcomes.sort(), ['There is a person with this number.', 'stored']);
  });
});
