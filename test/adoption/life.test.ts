/** `npm run adopt` and `npm run decrypt-column` as people run them, from plaintext to envelopes and back. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parsePolicy } from '../../src/policy/policy.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { policyText } from '../rotation/support.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const name = 'demo.employees.pay_enc';
const rows = 40;
const column = {
  ...{ table: 'demo.employees', key: ['id'], tenant: { column: 'tenant' } },
  ...{ column: 'pay_enc', class: 'salary', from: 'pay', adopt: true },
};
const text = JSON.stringify({ ...(JSON.parse(policyText) as object), columns: [column] });

describe('npm run adopt, to the end and back', function () {
  this.timeout(90_000);
  let it_: TestService;
  let folder: string;
  let env: Record<string, string | undefined>;
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep life '));
    writeFileSync(join(folder, 'policy.json'), text);
    it_ = await openTestService({ policy: parsePolicy(text) });
    writeFileSync(join(it_.home, 'runtime.json'), JSON.stringify({ pid: process.pid, url: it_.url }));
    const { ownerUrl } = it_.database;
    env = { ...process.env, FIELDKEEP_HOME: it_.home, FIELDKEEP_POLICY: join(folder, 'policy.json') };
    const { workerUrl, rowsUrl } = it_.database;
    env = { ...env, DATABASE_URL: workerUrl, DATABASE_ROWS_URL: rowsUrl, DATABASE_OWNER_URL: ownerUrl };
    await it_.owner.query(`
      alter table demo.employees add pay numeric(12,2);
      insert into demo.employees (tenant, name, pay)
      select 'acme', 'n', case when n % 4 > 0 then 47110000 / n end from generate_series(1, ${rows}) n`);
  });
  after(async () => {
    await it_.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function command(script: string, ...args: readonly string[]) {
    const child = spawn(process.execPath, [`scripts/${script}.ts`, ...args], { cwd: root, env });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    assert.doesNotMatch(out + err, /4711|fe1\./, 'nothing that is stored is told');
    return { code: child.exitCode, out, err };
  }
  async function run(script: string, ...args: readonly string[]): Promise<string> {
    const { code, out, err } = await command(script, ...args);
    assert.equal(code, 0, out + err);
    return out;
  }
  /** As `psql` would: statements end at a semicolon that ends a line and is not inside a function. */
  async function psql(sql: string): Promise<void> {
    for (const statement of sql.split(/;\n(?=\n|--|create|set|begin|commit|alter|update|drop|analyze|$)/)) {
      if (statement.replaceAll(/^--.*$/gm, '').trim() !== '') await it_.owner.query(statement);
    }
  }
  const read = async () =>
    (await it_.owner.query<Record<string, string | null>>('select * from demo.employees order by id')).rows;
  /** The approval that was asked for, agreed to as the output says. */
  async function agree(told: string): Promise<string> {
    const [, id = ''] = /--approval ([0-9a-f-]{36})/.exec(told) ?? [];
    for (const [, person = ''] of told.matchAll(/--as (\S+)/g)) {
      await run('rotate', '--approve', id, '--as', person, '--reason', 'agreed');
    }
    return id;
  }

  it('says how it is used', async () => {
    for (const args of [
      ['start'],
      ['undo', name],
      ['start', name, '--to', 'x'],
      ['plan', name, '--wait'],
      ['x', name],
    ]) {
      const { code, err } = await command('adopt', ...args);
      assert.equal(code, 1);
      assert.match(err, /^Usage: npm run adopt -- plan/);
    }
    for (const args of [[], [name], [name, '--to', 'x'], [name, '--to', 'x', '--sql', '--leave']]) {
      assert.match((await command('decrypt-column', ...args)).err, /^Usage: npm run decrypt-column -- TABLE/);
    }
  });

  it('goes there', async () => {
    const shadow = await read();
    assert.match((await command('adopt', 'start', name)).err, /has no column|lacks the triggers/);
    await psql(await run('adopt', 'sql', name));
    await psql(await run('target-setup', 'own'));
    assert.match(await run('adopt', 'start', name, '--wait'), /demo\.employees\.pay_enc is filled\./);
    assert.match(
      await run('adopt', 'status', name),
      /: filled · 30 values stand in pay, 0 of them without an envelope/,
    );
    assert.match(await run('adopt', 'verify', name, '--wait'), /30 of 30 values/);
    assert.match(await run('adopt', 'finish', name, '--wait'), /finished · 0 values .*Plaintext is left elsewhere:/s);
    assert.ok((await read()).every(({ pay }) => pay === null));

    await psql(await run('adopt', 'sql', name, '--finish'));
    assert.doesNotMatch(await run('adopt', 'status', name), /triggers/);
    await psql(await run('adopt', 'sql', name));

    const asked = await run('adopt', 'undo', name, '--reason', 'a trial');
    assert.match(asked, /is about making demo\.employees\.pay_enc plaintext again\.\nIt has 0 of 2 approvals/);
    const id = await agree(asked);
    const back = await run('adopt', 'undo', name, '--reason', 'a trial', '--approval', id, '--wait');
    assert.match(back, /Plaintext stands beside every envelope/);
    assert.match(await run('adopt', 'undo', name, '--leave', '--wait'), /No envelope is left/);
    const strip = (all: Record<string, string | null>[]) => all.map(({ pay_enc: _, ...rest }) => rest);
    assert.deepEqual(strip(await read()), shadow);
  });

  it('leaves for another column', async () => {
    await run('adopt', 'start', name, '--wait');
    await run('adopt', 'finish', name, '--wait');
    const args = [name, '--to', 'shown'];
    const refusal = async () => (await command('decrypt-column', ...args, '--reason', 'out')).err;
    assert.match(await refusal(), /has no column shown/);
    await it_.owner.query('alter table demo.employees add shown text');
    assert.match(await refusal(), /may not read and update column shown/);
    await it_.owner.query('alter table demo.employees drop shown');
    await psql(await run('adopt', 'sql', name, '--undo'));
    await psql(await run('decrypt-column', ...args, '--sql'));
    const id = await agree(await run('decrypt-column', ...args, '--reason', 'out'));
    await run('decrypt-column', ...args, '--reason', 'out', '--approval', id, '--wait');
    await run('decrypt-column', ...args, '--leave', '--wait');
    for (const { id: row, pay, shown, pay_enc: envelope } of await read()) {
      assert.deepEqual([pay, envelope], [null, null]);
      const n = Number(row);
      assert.equal(shown, n % 4 === 0 ? null : String(Math.trunc(47110000 / n)) + '.00');
    }
  });

  it('leaves in place', async () => {
    await psql(await run('adopt', 'sql', name));
    await it_.owner.query('update demo.employees set pay = 5 where id = 1');
    await run('adopt', 'start', name, '--wait');
    const args = [name, '--to', 'pay_enc', '--reason', 'out'];
    const id = await agree(await run('decrypt-column', ...args));
    const told = await run('decrypt-column', ...args, '--approval', id, '--wait');
    assert.match(told, /pay_enc holds plaintext, and is not encrypted again/);
    assert.equal((await read())[0]!['pay_enc'], '5.00');
  });
});
