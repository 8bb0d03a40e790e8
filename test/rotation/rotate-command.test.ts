/** `npm run rotate` as people run it: a rotation held and given up, and rows given up when two have agreed. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { openTestService, type TestService } from '../support/service.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const canary = 'CANARY7f3a';

describe('npm run rotate', function () {
  this.timeout(90_000);
  let it_: TestService;
  const told: string[] = [];

  before(async () => {
    it_ = await openTestService();
    writeFileSync(join(it_.home, 'runtime.json'), JSON.stringify({ pid: process.pid, url: it_.url }));
  });
  after(() => it_.close());

  async function rotate(...args: readonly string[]): Promise<{ code: number | null; out: string; err: string }> {
    const env = { ...process.env, FIELDKEEP_HOME: it_.home };
    const child = spawn(process.execPath, ['scripts/rotate.ts', ...args], { cwd: root, env });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    told.push(out, err);
    return { code: child.exitCode, out, err };
  }
  async function run(...args: readonly string[]): Promise<string> {
    const { code, out, err } = await rotate(...args);
    assert.equal(code, 0, err);
    return out;
  }
  async function newest(family: string): Promise<Record<string, unknown>> {
    const { body } = await it_.call('operator', 'GET', `/v1/rotations?family=${family}&limit=1`);
    return body.items![0]!;
  }

  it('says how it is used when arguments do not fit together', async () => {
    for (const args of [
      [],
      ['ssn', 'bank'],
      ['ssn', '--pause', '--cancel'],
      ['ssn', '--pause', '--wait'],
      ['ssn', '--waive'],
      ['ssn', '--approval', 'x', '--reason', 'x'],
      ['ssn', '--approve', 'x', '--as', 'y', '--reason', 'z'],
      ['--approve', 'x', '--as', 'y'],
      ['--pause'],
    ]) {
      const { code, out, err } = await rotate(...args);
      assert.deepEqual([code, out], [1, ''], args.join(' '));
      assert.match(err, /^Usage: npm run rotate -- FAMILY/);
    }
  });

  it('pauses, resumes and cancels the rotation that is under way', async () => {
    assert.match((await rotate('ssn', '--pause')).err, /^No rotation of ssn is under way\.\n$/);
    assert.match(await run('ssn', '--reason', 'test'), /^Rotation [0-9a-f-]{36} of ssn to version 2 has started/);
    const { id } = await newest('ssn');
    assert.match(
      await run('ssn', '--pause', '--reason', 'month end'),
      new RegExp(`^Rotation ${String(id)} of ssn is pau`),
    );
    assert.match(await run('ssn', '--resume'), /goes on\. Follow it: npm run status\n$/);
    const cancelled = JSON.parse(await run('ssn', '--cancel', '--json')) as Record<string, unknown>;
    assert.equal(cancelled['id'], id);
    assert.equal(typeof cancelled['doneAt'], 'string');
    assert.match((await rotate('ssn', '--cancel')).err, /^No rotation of ssn is under way\.\n$/);
  });

  it('gives up rows that do not open when two people have agreed', async () => {
    const context = { table: 'demo.employees', column: 'bank', row: '1' };
    const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: canary, context });
    await it_.owner.query(
      `insert into demo.employees (id, tenant, name, bank)
       values (1, 'acme', $2, $1), (2, 'acme', $2, $3), (3, 'acme', $2, $3)`,
      [sealed.body['envelope'], canary, `fe1.bank.1.${canary}`],
    );
    await run('bank');
    const follow = await rotate('bank', '--waive', '--reason', 'too early');
    assert.match(follow.err, /^The service answered 409 conflict: The rotation is not blocked/);
    while ((await newest('bank'))['phase'] !== 'blocked') await sleep(100);
    const { id, pass } = await newest('bank');

    const asked = await run('bank', '--waive', '--reason', "nobody's backup has them");
    const approval = /^Approval ([0-9a-f-]{36}) is about/.exec(asked)![1]!;
    assert.deepEqual(asked.split('\n').slice(1), [
      '  demo.employees.bank: 2',
      ...[/^It has 0 of 2 approvals\. Until \S+, by any of \(--deny ends it\):$/.exec(asked.split('\n')[2]!)![0]],
      `  npm run rotate -- --approve ${approval} --as security-auditor --reason "…"`,
      `  npm run rotate -- --approve ${approval} --as security-lead --reason "…"`,
      'Then:',
      `  npm run rotate -- bank --waive --reason 'nobody'\\''s backup has them' --approval ${approval}`,
      '',
    ]);
    const other = /^Approval (\S+) is/.exec(await run('bank', '--waive', '--reason', 'tidy up'))![1]!;
    assert.match(await run('--deny', other, '--as', 'security-lead', '--reason', 'no'), /is denied: 0 of 2 approvals/);
    const denied = await rotate('bank', '--waive', '--reason', 'tidy up', '--approval', other);
    assert.match(denied.err, /^The service answered 403 approval_denied/);
    const approve = (name: string) => rotate('--approve', approval, '--as', name, '--reason', 'looked at them');
    assert.match(
      (await approve('operator')).err,
      /^The service answered 403 forbidden: The principal lacks the scope ap/,
    );
    assert.match((await approve('security-lead')).out, /is pending: 1 of 2 approvals\.\n$/);
    assert.match((await approve('security-lead')).err, /^The service answered 409 conflict/);
    assert.match((await approve('security-auditor')).out, /is approved: 2 of 2 approvals\.\n$/);
    const again = await run('bank', '--waive', '--reason', "nobody's backup has them");
    assert.match(again, /It has what it needs\. Until \S+:\n {2}npm run rotate -- bank --waive/);
    const use = ['bank', '--waive', '--reason', "nobody's backup has them", '--approval', approval];
    assert.equal(await run(...use), '2 rows are given up. The rotation looks at what is left.\n');

    for (;;) {
      const run = await newest('bank');
      if (run['phase'] === 'done' || (run['phase'] === 'blocked' && run['pass'] !== pass)) break;
      await sleep(100);
    }
    const { items } = (await it_.call('operator', 'GET', `/v1/rotations/${String(id)}/failures`)).body;
    assert.deepEqual(
      items!.map((each) => [each['row'], typeof each['waivedAt']]),
      [
        ['2', 'string'],
        ['3', 'string'],
      ],
      'they are still waived after the next pass',
    );
  });

  it('shows no value of a row anywhere', async () => {
    const { rows } = await it_.owner.query<{ text: string }>(
      `select a::text as text from fieldkeep.approvals a union all select d::text from fieldkeep.approval_decisions d
       union all select f::text from fieldkeep.rotation_failures f union all select r::text from fieldkeep.rotations r
       union all select i.lines from fieldkeep.audit_intake i`,
    );
    const shown = [...told, it_.logged(), ...rows.map(({ text }) => text)];
    for (const list of ['approvals', 'rotations']) shown.push((await it_.call('operator', 'GET', `/v1/${list}`)).text);
    assert.ok(shown.some((text) => text.includes('looked at them')) && rows.length > 5);
    for (const text of shown) assert.ok(!text.includes(canary), text.slice(0, 300));
  });
});
