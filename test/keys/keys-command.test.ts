/**
 * `npm run keys` as a person runs it: a backup into a new database, and a version destroyed: by the service, whose root keys
 * are a file, and with an operator's login at a real Vault, whose worker may not. And its certificate, verified offline.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect, openPool } from '../../src/db.ts';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { describeVault, loginAs, openAt, openVaultServer, setUp, type VaultServer } from '../support/vault.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const context = { table: 'demo.employees', column: 'bank', row: '1' };

describe('npm run keys', function () {
  this.timeout(60_000);
  let it_: TestService;
  let database: TestDatabase;
  let folder: string;

  before(async () => {
    database = await createDatabase();
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep keys '));
  });
  after(async () => {
    await database.drop();
    rmSync(folder, { recursive: true, force: true });
  });
  afterEach(() => it_.close());

  async function keys(args: readonly string[], on: TestDatabase, env: Record<string, string> = {}) {
    const child = spawn(process.execPath, ['scripts/keys.ts', ...args], {
      cwd: root,
      env: {
        ...process.env,
        ...{
          DATABASE_URL: on.workerUrl,
          DATABASE_ROWS_URL: on.rowsUrl,
          DATABASE_OWNER_URL: on.ownerUrl,
          VAULT_ADDR: '',
          NODE_ENV: '',
          ...env,
        },
      },
    });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    return { code: child.exitCode, out, err };
  }

  it('exports, imports into an empty server, and says in a sentence what is wrong', async () => {
    it_ = await openTestService({ database });
    await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: 'x', context });
    const file = join(folder, 'keys.ndjson');
    const exported = await keys(['export', file], database);
    assert.equal(exported.code, 0, exported.err);
    assert.match(exported.out, /3 wrapped data keys\. They open nothing without the root keys/);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    const empty = await createDatabase();
    try {
      // Not even a schema: the import makes it.
      const owner = await connect(empty.ownerUrl, { name: 'test' });
      await owner.query('drop schema fieldkeep cascade; drop schema demo cascade');
      await owner.end();
      const imported = await keys(['import', file], empty);
      assert.equal(imported.out, 'Added 4 families, 4 versions and 3 wrapped data keys.\n', imported.err);
      assert.equal(
        (await keys(['import', file], empty)).out,
        'Added 0 families, 0 versions and 0 wrapped data keys.\n',
      );
      const told = async () => {
        const pool = openPool(empty.ownerUrl, { max: 1, name: 'test' });
        try {
          await unfoldAcknowledged(pool);
          const { rows } = await pool.query<{ line: string }>(
            'select line from fieldkeep.audit_entries order by index',
          );
          return rows.map(({ line }) => JSON.parse(line) as Record<string, unknown>);
        } finally {
          await pool.end();
        }
      };
      const [first, again] = await told();
      assert.deepEqual([first!['action'], first!['person'], first!['count']], ['import', userInfo().username, 3]);
      assert.equal(first!['purpose'], 'import of wrapped keys from the file: 4 families, 4 versions added');
      assert.equal(again!['count'], 0);
      writeFileSync(file, readFileSync(file, 'utf8').replaceAll('"transitVersion":1', '"transitVersion":7'));
      assert.match((await keys(['import', file], empty)).err, /^Version 1 of family \S+ is another one here/);
      const refused = (await told())[2]!;
      assert.deepEqual([refused['outcome'], refused['code']], ['failed', 'conflict']);
      writeFileSync(file, 'nonsense');
      for (const [args, pattern] of [
        [['import', file], /^Line 1 is not JSON[^\n]*\n$/],
        [['import', join(folder, 'none')], /none cannot be read\.\n$/],
        [['destroy', 'bank', '1', '--reason', 'x'], /^A service with an API must be running here[^\n]*\n$/],
        [['destroy', 'bank', '1', '--call-off'], /^Calling it off wants a --reason[^\n]*\n$/],
        [['destroy', 'bank'], /^Usage: npm run keys/],
        [['certificate', 'bank', '1'], /^No service is running/],
        [[], /^Usage: npm run keys/],
      ] as const) {
        const failed = await keys(args, empty);
        assert.equal(failed.code, 1);
        assert.match(failed.err, pattern);
      }
    } finally {
      await empty.drop();
    }
  });

  /** The shipped policy without waits, as a file too: commands read it. */
  function makePolicy() {
    const file = JSON.parse(readFileSync(join(root, 'keys-policy.json'), 'utf8')) as {
      classes: Record<string, object>;
    };
    const retire = { handoffMax: 'P0D', unreadFor: 'P0D', backupHorizon: 'P0D', vaultBackupHorizon: 'P1D' };
    for (const name of Object.keys(file.classes)) file.classes[name] = { ...file.classes[name], retire };
    const path = join(folder, 'policy.json');
    writeFileSync(path, JSON.stringify(file));
    return { path, policy: parsePolicy(JSON.stringify(file)) };
  }

  async function sealAndRotate(): Promise<string> {
    const body = { class: 'bank', value: 'x', context };
    const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', body);
    await it_.owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'x', $1)`, [
      sealed.body['envelope'],
    ]);
    writeFileSync(join(it_.home, 'runtime.json'), JSON.stringify({ pid: process.pid, url: it_.url }));
    return sealed.body['envelope'] as string;
  }

  /** Rotates bank and waits for the guard. */
  async function rotateBank(): Promise<void> {
    const rotation = await it_.call('operator', 'POST', '/v1/keys/bank/rotate', {});
    const path = `/v1/rotations/${String(rotation.body['id'])}`;
    for (;;) {
      const { body } = await it_.call('operator', 'GET', path);
      const [version] = (body['retirement'] ?? []) as { missing: { what: string }[] }[];
      // Nobody reads the whole database here: that search stays missing, and is waived.
      const isReady = version?.missing.every(({ what }) => what.startsWith('a search of what is not registered'));
      if (body['phase'] === 'done' && isReady === true) return;
      await it_.owner.query(`update fieldkeep.watches set looked_at = 'epoch'`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  async function approve(id: string): Promise<void> {
    for (const name of ['security-auditor', 'security-lead']) {
      const body = { decision: 'approve', reason: 'looked at it' };
      const reply = await it_.call(name, 'POST', `/v1/approvals/${id}/decisions`, body);
      assert.equal(reply.status, 200, reply.text);
    }
  }

  const openBoth = async (sealed: string) => {
    const { rows } = await it_.owner.query<{ bank: string }>('select bank from demo.employees');
    const decrypt = { envelope: rows[0]!.bank, context, view: 'full' };
    assert.equal((await it_.call('payroll-agent', 'POST', '/v1/decrypt', decrypt)).body['value'], 'x');
    const old = await it_.call('payroll-agent', 'POST', '/v1/decrypt', { ...decrypt, envelope: sealed });
    return old.body['code'] ?? old.status;
  };

  async function verify(...args: readonly string[]) {
    const child = spawn(process.execPath, ['scripts/verify-certificate.ts', ...args], { cwd: root });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    return { code: child.exitCode, out, err };
  }

  it('asks, has the service destroy, and fetches a certificate that a changed word breaks', async () => {
    const { path, policy } = makePolicy();
    const own = await createDatabase();
    it_ = await openTestService({ database: own, policy });
    try {
      const sealed = await sealAndRotate();
      const env = { FIELDKEEP_HOME: it_.home, FIELDKEEP_POLICY: path };
      const destroy = (...more: string[]) => keys(['destroy', 'bank', '1', '--reason', 'test', ...more], own, env);
      assert.match((await destroy()).err, /^The service answered 409 conflict: Version 1 of family bank is active/);
      await rotateBank();
      assert.match(
        (await destroy()).err,
        /lacks a search of what is not registered .* "withoutGuards": true asks for it/,
      );
      const asked = await destroy('--without-guards');
      assert.match(
        asked.out,
        /^Approval \S+ is about destroying version 1 of bank for good:\n {2}demo\.employees\.bank: gua/,
      );
      assert.match(asked.out, /goes without a search of what is not registered/);
      assert.match(
        asked.out,
        /It has 0 of 2 approvals[^]*--approve \S+ --as security-auditor[^]*Then:\n {2}npm run keys -- d/,
      );
      const id = /^Approval (\S+) is/.exec(asked.out)![1]!;
      await approve(id);
      assert.match((await destroy('--without-guards')).out, /It has what it needs/);
      const done = await destroy('--without-guards', '--approval', id);
      assert.equal(done.code, 0, done.err);
      assert.match(done.out, /^Version 1 of family bank is destroyed: the keeper of root keys has confirmed/);
      assert.equal(await openBoth(sealed), 'version_destroyed');

      const file = join(folder, 'certificate.json');
      assert.match((await keys(['certificate', 'bank', '1', file], own, env)).out, /verify it with/);
      const { publicKey } = await it_.service.rootKeys.getSigningKey();
      const trusted = publicKey.toString('base64');
      const valid = await verify(file, trusted);
      assert.match(valid.out, /^VALID: version 1 of family "bank" was destroyed at "20/, valid.err);
      assert.match(valid.out, /\n {2}rootKey: \{"keeper":"embedded","key":"bank","oldestAfter":2/);
      assert.match((await verify(file)).out, /make sure that this is the key/);
      assert.match((await verify(file, Buffer.alloc(32).toString('base64'))).err, /another key than the one you gave/);
      const text = readFileSync(file, 'utf8');
      const whole = JSON.parse(text) as { certificate: string; signature: string };
      const change = (from: string | RegExp, to: string) => {
        const certificate = whole.certificate.replace(from, to);
        assert.notEqual(certificate, whole.certificate);
        writeFileSync(file, JSON.stringify({ ...whole, certificate }));
        return verify(file, trusted);
      };
      for (const [from, to, where] of [
        ['"person":"security-lead"', '"person":"security-boss"', 'approval'],
        [/"validatedAt":"20/, '"validatedAt":"19', 'guards'],
        [/"version":1}?,?/, '"version":2,', 'head'],
        ['"searched":false', '"searched":true', 'undeclared'],
        ['"oldestAfter":2', '"oldestAfter":3', 'rootKey'],
        [/"waived":\[[^\]]*\]/, '"waived":[]', 'waived'],
      ] as const) {
        const refused = await change(from, to);
        assert.deepEqual([refused.code, refused.out], [1, ''], where);
        assert.match(refused.err, new RegExp(`^NOT VALID: the signature does not fit\\. Changed: ${where}\\.`));
      }
      assert.match((await change(/"guards":"[^"]*"/, '"guards":"x"')).err, /Changed: guards/);
      writeFileSync(file, JSON.stringify({ ...whole, signature: Buffer.alloc(64).toString('base64') }));
      assert.match((await verify(file, trusted)).err, /its sections agree with their digests/);
      const respelled = await change(/^\{("[^"]*":)/, '{ $1');
      assert.match(respelled.err, /^NOT VALID: the signature does not fit\. Its text was put in another order/);
      assert.match((await change(/^\{/, '{"family":"ssn",')).err, /or says something twice/);
      writeFileSync(file, JSON.stringify({ ...whole, signature: `${whole.signature}!` }));
      assert.match((await verify(file, trusted)).err, /^NOT VALID: the signature is not 64 bytes/);
      const deep = `{"format":"fieldkeep-certificate/1","a":${'['.repeat(50_000)}${']'.repeat(50_000)}}`;
      writeFileSync(file, JSON.stringify({ ...whole, certificate: deep }));
      assert.match((await verify(file, trusted)).err, /^NOT VALID: the certificate is not a JSON object/);
      writeFileSync(file, text.slice(0, 40));
      assert.match((await verify(file)).err, /is not a JSON object/);
    } finally {
      await own.drop();
    }
  });

  describeVault('with a Vault', () => {
    let server: VaultServer;
    before(async () => {
      server = await openVaultServer();
    });
    after(() => server.close());

    it('carries out with an operator’s login what was agreed to, and says why it will not', async () => {
      const mount = `fk-keys-${process.pid}`;
      await setUp(server, mount, ['ssn', 'bank', 'salary']);
      const { path, policy } = makePolicy();
      const own = await createDatabase();
      const auth = { method: 'token', token: await loginAs(server, 'fieldkeep-worker') } as const;
      it_ = await openTestService({ database: own, rootKeys: openAt(server, { mount, auth }).rootKeys, policy });
      const ca = join(folder, 'ca.pem');
      if (server.ca !== undefined) writeFileSync(ca, server.ca);
      const made = await server.call('POST', 'auth/token/create', { policies: ['fieldkeep-operator'], ttl: '1h' });
      const token = made.auth!['client_token'] as string;
      const login = {
        ...{ VAULT_ADDR: server.address, VAULT_TOKEN: token, VAULT_TRANSIT_MOUNT: mount, FIELDKEEP_POLICY: path },
        ...{ VAULT_CACERT: server.ca === undefined ? '' : ca },
      };
      const sealed = await sealAndRotate();
      await rotateBank();
      const carry = () => keys(['destroy', 'bank', '1'], own, login);
      const early = await carry();
      assert.equal(early.code, 1);
      assert.match(
        early.err,
        /^Nobody has agreed to destroying version 1 of family bank\. Where the service runs, ask wi/,
      );
      assert.equal(await openBoth(sealed), 200);
      // That use is written down with the next heartbeat; after it, what people agree to does not change any more.
      const body = { reason: 'quarterly', withoutGuards: true };
      const destroy = (headers = {}) =>
        it_.call('operator', 'POST', '/v1/keys/bank/versions/1/destroy', body, { headers });
      const beginIt = async () => {
        const asked = await destroy();
        assert.equal(asked.status, 202, asked.text);
        const id = asked.body['approvalId'] as string;
        await approve(id);
        const begun = await destroy({ 'approval-id': id });
        assert.deepEqual([begun.status, begun.body['status']], [202, 'destroying'], begun.text);
      };
      await beginIt();
      const told = async () => {
        const { body: keyed } = await it_.call('operator', 'GET', '/v1/keys/bank');
        return (keyed['versions'] as { destruction?: { status: string; problem?: string } }[])[0]!.destruction!;
      };
      while ((await told()).problem === undefined) await new Promise((resolve) => setTimeout(resolve, 50));
      assert.match(
        (await told()).problem!,
        /an operator finishes it with their own login: npm run keys -- destroy bank 1/,
      );
      const flags = ['--call-off', '--reason', 'not this quarter'];
      const called = await keys(['destroy', 'bank', '1', ...flags], own, { ...login, FIELDKEEP_HOME: it_.home });
      assert.match(called.out, /^Version 1 of family bank stays as it was\. It was called off by operator: not this q/);
      assert.match((await carry()).err, /^Nobody has agreed to destroying version 1/);
      await beginIt();
      while ((await told()).problem === undefined) await new Promise((resolve) => setTimeout(resolve, 50));
      assert.equal(await openBoth(sealed), 200, 'the worker has destroyed nothing');
      const done = await carry();
      assert.equal(done.code, 0, done.err);
      assert.match(done.out, /^Version 1 of family bank is destroyed: the keeper of root keys has confirmed/);
      assert.match(done.out, /Its certificate: npm run keys -- certificate bank 1 FILE\n$/);
      assert.equal(await openBoth(sealed), 'version_destroyed');
      assert.deepEqual((await carry()).out, done.out, 'again changes nothing');
      const certificate = await it_.call('security-auditor', 'GET', '/v1/keys/bank/versions/1/certificate');
      const file = join(folder, 'vault.json');
      writeFileSync(file, certificate.text);
      assert.match((await verify(file)).out, /^VALID/);
      for (const text of [done.out, done.err, early.err, certificate.text, it_.logged()])
        assert.ok(!text.includes(token));
      await own.drop();
    });
  });
});
