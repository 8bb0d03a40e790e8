/** `npm run adopt -- plan | sql` as a person runs it. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect } from '../../src/db.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { policyText } from '../rotation/support.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));

describe('npm run adopt', function () {
  this.timeout(60_000);
  let target: TestDatabase;
  let folder: string;
  before(async () => {
    target = await createTarget();
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep adopt '));
    const column = {
      ...{ database: 'hr', table: 'app.people', key: ['id'], tenant: { value: 'acme' }, column: 'pay_enc' },
      ...{ class: 'salary', from: 'pay', adopt: true },
    };
    const own = { ...column, database: undefined, column: 'own_enc' };
    const policy = JSON.parse(policyText) as object;
    writeFileSync(join(folder, 'policy.json'), JSON.stringify({ ...policy, columns: [column, own] }));
    const db = await connect(target.ownerUrl, { name: 'adopt' });
    await db.query(`create schema app; create table app.people (id int primary key, pay numeric)`);
    await db.query(`insert into app.people values (1, 4711.11)`);
    await db.end();
  });
  after(async () => {
    await target.drop();
    rmSync(folder, { recursive: true, force: true });
  });

  async function adopt(args: readonly string[], env: Record<string, string> = {}) {
    const child = spawn(process.execPath, ['scripts/adopt.ts', ...args], {
      cwd: root,
      env: {
        ...{ PATH: process.env.PATH, FIELDKEEP_POLICY: join(folder, 'policy.json'), FIELDKEEP_HOME: folder },
        ...{ TARGET_HR_OWNER_URL: target.ownerUrl, TARGET_HR_URL: target.workerUrl, ...env },
      },
    });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    assert.doesNotMatch(out + err, /4711/);
    return { code: child.exitCode, out, err };
  }
  const name = 'hr:app.people.pay_enc';

  it('plans, prints what the owner runs, and plans once more when that was run', async () => {
    const first = await adopt(['plan', name, '--exact']);
    assert.equal(first.code, 0, first.err);
    assert.match(first.out, /^CHANGE Column pay_enc does not exist\.\n {7}Envelopes go there\.\n {7}→ alter table/m);
    assert.match(first.out, /hr:app\.people\.pay_enc can be adopted\. 3 things have to be changed on the way\.\n$/);
    const sql = await adopt(['sql', name]);
    assert.equal(sql.code, 0, sql.err);
    const db = await connect(target.ownerUrl, { name: 'adopt' });
    // psql sends each by itself; a function's body is the only one with semicolons inside.
    for (const statement of sql.out.split(/;\n(?=\n|--|create|set|begin|commit|alter|$)/)) {
      if (statement.replaceAll(/^--.*$/gm, '').trim() !== '') await db.query(statement);
    }
    await db.end();
    const second = JSON.parse((await adopt(['plan', name, '--json'])).out) as { findings: { level: string }[] };
    assert.deepEqual(
      second.findings.filter(({ level }) => level !== 'note'),
      [],
    );
    assert.match((await adopt(['sql', name, '--finish'])).out, /add constraint .* check \("pay" is null\) not valid/);
    assert.match((await adopt(['sql', name, '--undo'])).out, /drop trigger if exists/);
  });

  it('plans where the database reads backslashes in strings otherwise', async () => {
    const db = await connect(target.ownerUrl, { name: 'adopt' });
    const { rows } = await db.query<{ name: string }>('select current_database() as name');
    const set = (what: string) => db.query(`alter database ${rows[0]!.name} ${what}`);
    await set('set standard_conforming_strings = off');
    try {
      const { code, out, err } = await adopt(['plan', name, '--exact']);
      assert.equal(code, 0, err);
      assert.match(out, /can be adopted/);
    } finally {
      await set('reset standard_conforming_strings');
      await db.end();
    }
  });

  it('says in a sentence what the database refuses', async () => {
    const gone = new URL(target.ownerUrl);
    gone.pathname = '/no_such_database';
    const { code, out, err } = await adopt(['plan', name], { TARGET_HR_OWNER_URL: gone.href });
    assert.deepEqual([code, out, err], [1, '', 'The database of the URL does not exist.\n']);
    const db = await connect(target.ownerUrl, { name: 'adopt' });
    const { rows } = await db.query<{ name: string }>('select current_database() as name');
    await db.query(`alter database ${rows[0]!.name} set session_replication_role = replica`);
    try {
      const told = await adopt(['plan', name]);
      assert.equal(told.code, 1);
      assert.match(
        told.err,
        /^The database of the column answers in a session that .*session_replication_role is replica/,
      );
    } finally {
      await db.query(`alter database ${rows[0]!.name} reset session_replication_role`);
      await db.end();
    }
  });

  it('exits with 1 when something has to be mended first', async () => {
    const db = await connect(target.ownerUrl, { name: 'adopt' });
    await db.query('create table app.heir () inherits (app.people)');
    const { code, out } = await adopt(['plan', name]);
    await db.query('drop table app.heir');
    await db.end();
    assert.equal(code, 1);
    assert.match(out, /^STOP {3}Other tables inherit/m);
    assert.match(out, /1 of \d+ has to be mended before/);
  });

  it('looks at our own database by its own variables', async () => {
    const urls = { DATABASE_URL: target.workerUrl, DATABASE_OWNER_URL: target.ownerUrl };
    assert.equal((await adopt(['plan', 'app.people.own_enc'], urls)).code, 0);
    const { code, err } = await adopt(['plan', 'app.people.own_enc']);
    assert.equal(code, 1);
    assert.match(err, /^DATABASE_URL says which database/);
  });

  it('prints no triggers that would clear what is not theirs', async () => {
    for (const [to, words] of [
      ['id', /is its key or its tenant/],
      ['pay_enc', /In place there is nothing to prepare/],
    ] as const) {
      const { code, out, err } = await adopt(['sql', name, '--to', to]);
      assert.deepEqual([code, out], [1, '']);
      assert.match(err, words);
    }
  });

  it('says in a sentence what is wrong', async () => {
    const urls = { TARGET_HR_OWNER_URL: '', TARGET_HR_URL: '' };
    const away = 'postgresql://CANARY:CANARY@127.0.0.1:1/x';
    for (const [args, env, words] of [
      [['plan'], {}, /^Usage/],
      [['plan', name, '--finish'], {}, /^Usage/],
      [['sql', name, '--finish', '--undo'], {}, /^Usage/],
      [['constructor', name], {}, /^Usage/],
      [['plan', name, '--nothing'], {}, /^Usage/],
      [['plan', 'app.people.pay'], {}, /^The policy has no column app\.people\.pay\./],
      [['plan', 'people.pay_enc'], {}, /\[target:\]schema\.table\.column\. It has hr:app\.people\.pay_enc\.$/m],
      [['plan', name], urls, /^TARGET_HR_OWNER_URL or TARGET_HR_URL says where target hr is/],
      [['plan', name, '--exact'], { TARGET_HR_OWNER_URL: '' }, /^The role may not look at the table like this/],
      [['plan', name], { TARGET_HR_OWNER_URL: away }, /^The database of the column cannot be reached/],
    ] as const) {
      const { code, out, err } = await adopt(args, env);
      assert.equal(code, 1, args.join(' '));
      assert.equal(out, '');
      assert.match(err, words);
      assert.doesNotMatch(err, /CANARY|\n {4}at /);
    }
  });
});
