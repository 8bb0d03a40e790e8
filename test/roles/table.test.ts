/** docs/roles.md as it stands: its SQL makes the logins, and each tries everything with every object of a real database. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readConfig } from '../../src/config.ts';
import { connect } from '../../src/db.ts';
import { readerRole } from '../../src/embedded/postgres.ts';
import { policyText } from '../rotation/support.ts';
import { createDatabase, migrateAll, type TestDatabase } from '../support/database.ts';
import { runSetup } from '../targets/support.ts';
import {
  attemptTable,
  findDifferences,
  listAttempts,
  otherRightsSql,
  ours,
  powersSql,
  read,
  relationsSql,
  type Relation,
} from './attempts.ts';
import { readCells, readSetup, readStatements, readTable, type Cell, type Table } from './table.ts';

const suffix = randomBytes(4).toString('hex');
const roleOf = (login: string) => `roles_${login}_${suffix}`;
const rename = (text: string) => text.replaceAll(/\bfieldkeep_(\w+)/g, (_, login: string) => roleOf(login));
const logins = ['owner', 'api', 'worker', 'rows', 'reader'];

async function tryAll(table: Table, urlOf: (login: string) => string): Promise<number> {
  const attempts = await listAttempts(urlOf('owner'), table);
  for (const [login, list] of attempts) {
    assert.deepEqual(await findDifferences(urlOf(login), list), [], `what the page does not say of ${login}`);
  }
  assert.deepEqual(await read(urlOf('owner'), otherRightsSql, [ours]), []);
  const served = logins.filter((login) => login !== 'owner').map(roleOf);
  assert.deepEqual(await read(urlOf('owner'), powersSql, [served]), []);
  return [...attempts.values()].flat().length;
}

describe('the tables of docs/roles.md', function () {
  this.timeout(60_000);
  let cluster: TestDatabase;
  let folder: string;
  const names = { own: `roles_own_${suffix}`, target: `roles_target_${suffix}` };
  const urlAs = (role: string, database: string) =>
    Object.assign(new URL(cluster.ownerUrl), { username: role, password: suffix, pathname: `/${database}` }).href;
  const inOwn = (login: string) => urlAs(roleOf(login), names.own);
  const inTarget = (login: string) => urlAs(roleOf(login), names.target);

  async function run(url: string, statements: readonly string[]): Promise<void> {
    const client = await connect(url, { name: 'tests', statementTimeoutMs: 60_000 });
    try {
      for (const statement of statements) await client.query(statement);
    } finally {
      await client.end();
    }
  }

  /** Gives the rights by the command of the page. */
  async function setUp(database: string, env: Readonly<Record<string, string>>): Promise<void> {
    const ran = await runSetup(folder, readSetup(database).map(rename), env);
    assert.equal(ran.code, 0, ran.err);
  }

  before(async () => {
    cluster = await createDatabase();
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-roles-'));
    const admin = roleOf('admin');
    await run(cluster.ownerUrl, [`create role ${admin} login createrole createdb password '${suffix}'`]);
    const asAdmin = urlAs(admin, 'postgres');
    const own = readStatements().map((each) => rename(each).replace(/\bfieldkeep\b/, names.own));
    await run(asAdmin, own);
    await run(asAdmin, [
      ...logins.map((login) => `alter role ${roleOf(login)} password '${suffix}'`),
      `create database ${names.target} owner ${roleOf('owner')}`,
    ]);
    await migrateAll({
      ...{ ownerUrl: inOwn('owner'), apiUrl: inOwn('api'), workerUrl: inOwn('worker'), rowsUrl: inOwn('rows') },
    });
    await run(inTarget('owner'), [
      'create schema app',
      `create table app.people (id bigint primary key, company text not null, plain text, ssn text, ssn_eq text, note text)`,
      'create table app.notes (id bigint primary key, note text)',
    ]);
    const policy = JSON.parse(policyText) as { columns: object[] };
    policy.columns.push({
      ...{ database: 'hr', table: 'app.people', key: ['id'], tenant: { column: 'company' }, column: 'ssn' },
      ...{ class: 'ssn', from: 'plain', adopt: true, index: [{ name: 'eq', column: 'ssn_eq', bits: 8 }] },
    });
    writeFileSync(join(folder, 'policy.json'), JSON.stringify(policy));
    await Promise.all([
      setUp('own', { DATABASE_URL: inOwn('api'), DATABASE_OWNER_URL: inOwn('owner') }),
      setUp('hr', { TARGET_HR_OWNER_URL: inTarget('owner') }),
    ]);
  });

  after(async () => {
    await run(cluster.ownerUrl, [
      ...Object.values(names).map((name) => `drop database if exists ${name} with (force)`),
      ...[...logins, 'admin'].map((login) => `drop role if exists ${roleOf(login)}`),
    ]);
    await cluster.drop();
    rmSync(folder, { recursive: true });
  });

  it("every cell of Fieldkeep's own database is what that login gets, and every object has a row", async () => {
    assert.ok((await tryAll(readTable("Fieldkeep's own database"), inOwn)) > 2_000);
  });

  it('every cell of a target is what that login gets, and every object has a row', async () => {
    assert.ok((await tryAll(readTable('A target'), inTarget)) > 100);
  });

  it('the reader of embedded Postgres reads every table and changes none', async function () {
    if (process.env.TEST_DATABASE_URL !== undefined) return this.skip();
    const reading: Cell = new Map([['select', undefined]]);
    const tables = (await read<Relation>(cluster.ownerUrl, relationsSql, [ours])).filter(
      ({ kind }) => kind === 'table',
    );
    const attempts = tables.flatMap((each) => attemptTable(each, reading));
    assert.deepEqual(await findDifferences(cluster.ownerUrl, attempts, readerRole), []);
  });
});

describe('the variables of docs/roles.md', () => {
  const url = 'postgresql://a@b/c';
  const base = { VAULT_ADDR: 'https://vault:8200', VAULT_TOKEN: 't', DATABASE_URL: url };
  const [[, ...roles] = [], ...lines] = readCells('Which process gets which variable');

  for (const [cell = '', ...cells] of lines) {
    const variable = cell.replaceAll('`', '').replace('<NAME>', 'HR');
    it(`${variable} is refused, taken and required as the page says`, () => {
      for (const [i, words] of cells.entries()) {
        const role = /ROLE=(\w+)/.exec(roles[i]!)![1]!;
        const whole = { ...base, ROLE: role, ...(role === 'all' && { DATABASE_WORKER_URL: url }) };
        const target = role !== 'api' &&
          variable.startsWith('TARGET_') && { TARGET_HR_URL: url, TARGET_HR_ROWS_URL: url };
        const tell = new RegExp(`[ :]${variable}\\b`);
        const start = (env: object) => () => readConfig({ ...whole, ...target, [variable]: url, ...env });
        if (words.startsWith('refused')) assert.throws(start({}), tell, role);
        else assert.doesNotThrow(start({ NODE_ENV: 'production' }), role);
        if (/requires|as for/.test(words)) {
          assert.throws(start({ NODE_ENV: 'production', [variable]: '' }), tell, role);
        }
      }
    });
  }
});
