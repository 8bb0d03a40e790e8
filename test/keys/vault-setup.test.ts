/** `npm run vault:setup` against a real, empty server, and what each duty's token may then do there. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openVault } from '../../src/keys/vault.ts';
import { VaultError } from '../../src/keys/vault.ts';
import { listExcessRights } from '../../src/keys/vault-rights.ts';
import {
  describeVault,
  loginAs,
  mountEngine,
  openVaultServer,
  vaultProgram,
  type VaultServer,
} from '../support/vault.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));

interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

async function runProgram(command: string, args: readonly string[], env: Record<string, string>): Promise<Ran> {
  const child = spawn(command, args, { cwd: root, env: { ...process.env, ...env } });
  let [out, err] = ['', ''];
  child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (err += chunk.toString()));
  await once(child, 'close');
  return { code: child.exitCode, out, err };
}

describeVault(
  'vault:setup',
  function () {
    this.timeout(60_000);
    let server: VaultServer;
    let folder: string;
    const setupWith = (env: Record<string, string>, ...args: string[]) =>
      runProgram(process.execPath, ['scripts/vault-setup.ts', ...args], {
        ...{ VAULT_ADDR: server.address, VAULT_TOKEN: server.rootToken, VAULT_CACERT: join(folder, 'ca.pem') },
        ...{ NODE_ENV: '', FIELDKEEP_POLICY: '', ...env },
      });
    const setup = (...args: string[]) => setupWith({}, ...args);

    before(async () => {
      server = await openVaultServer({ own: true });
      folder = mkdtempSync(join(tmpdir(), 'fieldkeep-setup-'));
      writeFileSync(join(folder, 'ca.pem'), server.ca!);
    });
    after(async () => {
      await server.close();
      rmSync(folder, { recursive: true, force: true });
    });

    it('says what is missing on an empty server, and makes it once', async () => {
      const empty = await setup('--check');
      assert.equal(empty.code, 1, empty.err);
      assert.match(empty.out, /- transit engine at transit\/ +missing/);
      assert.match(empty.out, /- policy fieldkeep-api-ssn +missing/);
      const cluster = ['--kubernetes-host', 'https://127.0.0.1:6443', '--kubernetes-ca', join(folder, 'ca.pem')];
      const first = await setup(...cluster);
      assert.equal(first.code, 0, first.out + first.err);
      assert.match(first.out, /\+ key fk-ssn +made/);
      assert.match(first.out, /\+ kubernetes role fieldkeep-worker +made/);
      const second = await setup(...cluster);
      assert.equal(second.code, 0);
      assert.ok(!/^[^=\n]/m.test(second.out.trim()), second.out);
      assert.equal((await setup('--check')).code, 0);
      for (const text of [empty, first, second]) assert.ok(!(text.out + text.err).includes(server.rootToken));
    });

    it('names what drifted, mends it, and says what cannot be mended', async () => {
      await server.call('POST', 'sys/policies/acl/fieldkeep-api-ssn', {
        policy: 'path "*" { capabilities = ["sudo"] }',
      });
      await server.call('POST', 'auth/approle/role/fieldkeep-api', { token_policies: ['root-of-all'] });
      await server.call('POST', 'transit/keys/fk-bank/config', { auto_rotate_period: '24h' });
      const drifted = await setup('--check');
      assert.equal(drifted.code, 1);
      assert.match(drifted.out, /! policy fieldkeep-api-ssn +drifted\n {4}its rules are others/);
      assert.match(drifted.out, /! approle role fieldkeep-api +drifted\n {4}token_policies is root-of-all instead of/);
      assert.match(drifted.out, /! key fk-bank +drifted\n {4}auto_rotate_period is 86400 instead of 0/);
      assert.match(drifted.err, /3 of \d+ are not as they should be/);
      assert.equal((await setup()).code, 0);
      assert.equal((await setup('--check')).code, 0);
      await server.call('POST', 'transit/keys/fk-salary/config', { exportable: true });
      const lasting = await setup();
      assert.equal(lasting.code, 1);
      assert.match(lasting.out, /! key fk-salary +cannot be mended\n {4}exportable is true instead of false/);
    });

    it('prints commands that do the same', async () => {
      const other = await openVaultServer({ own: true });
      try {
        const dry = await runProgram(process.execPath, ['scripts/vault-setup.ts', '--dry-run'], { VAULT_ADDR: '' });
        assert.equal(dry.code, 0, dry.err);
        const script = `set -e\nvault() { command ${vaultProgram} "$@" >&2; }\n${dry.out}`;
        writeFileSync(join(folder, 'other.pem'), other.ca!);
        const names = ['VAULT', 'BAO'].flatMap((prefix) => [
          [`${prefix}_ADDR`, other.address],
          [`${prefix}_TOKEN`, other.rootToken],
          [`${prefix}_CACERT`, join(folder, 'other.pem')],
        ]);
        const ran = await runProgram('sh', ['-c', script], Object.fromEntries(names) as Record<string, string>);
        assert.equal(ran.code, 0, ran.err);
        const checked = await runProgram(process.execPath, ['scripts/vault-setup.ts', '--check'], {
          ...{ VAULT_ADDR: other.address, VAULT_TOKEN: other.rootToken, VAULT_CACERT: join(folder, 'other.pem') },
        });
        assert.equal(checked.code, 0, checked.out);
      } finally {
        await other.close();
      }
    });

    it('gives each duty what it needs and nothing else', async () => {
      const context = Buffer.from('x').toString('base64');
      const made = await server.call('POST', 'transit/datakey/wrapped/fk-ssn', { context, bits: 512 });
      const wrapped = { ciphertext: made.data!['ciphertext'], context };
      type Call = [method: 'GET' | 'POST' | 'DELETE', path: string, body?: object];
      const calls: Record<string, Call> = {
        unwrap: ['POST', 'transit/decrypt/fk-ssn', wrapped],
        'make a data key': ['POST', 'transit/datakey/wrapped/fk-ssn', { context, bits: 512 }],
        'make one in plain': ['POST', 'transit/datakey/plaintext/fk-ssn', { context, bits: 512 }],
        encrypt: ['POST', 'transit/encrypt/fk-ssn', { context, plaintext: context }],
        rewrap: ['POST', 'transit/rewrap/fk-ssn', wrapped],
        rotate: ['POST', 'transit/keys/fk-ssn/rotate', {}],
        'raise minimums': ['POST', 'transit/keys/fk-ssn/config', { min_decryption_version: 1 }],
        'set exportable': ['POST', 'transit/keys/fk-ssn/config', { exportable: true }],
        'set plaintext backup': ['POST', 'transit/keys/fk-ssn/config', { allow_plaintext_backup: true }],
        'allow deletion': ['POST', 'transit/keys/fk-ssn/config', { deletion_allowed: true }],
        trim: ['POST', 'transit/keys/fk-ssn/trim', { min_available_version: 1 }],
        export: ['GET', 'transit/export/encryption-key/fk-ssn'],
        backup: ['GET', 'transit/backup/fk-ssn'],
        restore: ['POST', 'transit/restore/fk-ssn2', { backup: 'x' }],
        delete: ['DELETE', 'transit/keys/fk-ssn'],
        sign: ['POST', 'transit/sign/fk-audit-checkpoint', { input: context }],
        'read policies': ['GET', 'sys/policies/acl/fieldkeep-api-ssn'],
      };
      const may: Record<string, string[]> = {
        'fieldkeep-api': ['unwrap'],
        'fieldkeep-api-ssn': ['unwrap'],
        'fieldkeep-api-bank': [],
        'fieldkeep-worker': ['unwrap', 'make a data key', 'rotate'],
        'fieldkeep-audit': ['sign'],
        operator: ['raise minimums', 'trim', 'sign'],
      };
      const operator = await server.call('POST', 'auth/token/create', { policies: ['fieldkeep-operator'], ttl: '1h' });
      for (const [duty, rights] of Object.entries(may)) {
        const token = duty === 'operator' ? (operator.auth!['client_token'] as string) : await loginAs(server, duty);
        for (const [name, [method, path, body]] of Object.entries(calls)) {
          const refused = await server.call(method, path, body, token).then(
            () => false,
            (error: unknown) => error instanceof VaultError && error.status === 403,
          );
          // A trim to version 1 is allowed and says 400 for its own reasons.
          assert.equal(!refused, rights.includes(name), `${duty}: ${name}`);
        }
      }
      const settings = await server.call('GET', 'transit/keys/fk-ssn');
      assert.equal(settings.data!['exportable'], false);
      assert.equal(settings.data!['allow_plaintext_backup'], false);
    });

    it('tells what a token may do beyond its duty', async () => {
      const vault = openVault({ address: server.address, ca: server.ca! });
      const all = { mount: 'transit', families: ['ssn', 'bank', 'salary', 'audit'], otherFamilies: [] };
      const api = await loginAs(server, 'fieldkeep-api');
      const worker = await loginAs(server, 'fieldkeep-worker');
      assert.deepEqual(await listExcessRights(vault, api, { ...all, duty: 'api' }), []);
      assert.deepEqual(await listExcessRights(vault, worker, { ...all, duty: 'worker' }), []);
      const excess = await listExcessRights(vault, worker, { ...all, duty: 'api' });
      assert.ok(excess.includes('transit/datakey/wrapped/fk-ssn (update)'), excess.join());
      const bankOnly = { mount: 'transit', families: ['bank', 'audit'], otherFamilies: ['ssn', 'salary'] };
      const bank = await loginAs(server, 'fieldkeep-api-bank');
      assert.deepEqual(await listExcessRights(vault, bank, { ...bankOnly, duty: 'api' }), []);
      assert.deepEqual(await listExcessRights(vault, api, { ...bankOnly, duty: 'api' }), [
        'transit/decrypt/fk-ssn (update)',
        'transit/decrypt/fk-salary (update)',
      ]);
      assert.ok((await listExcessRights(vault, server.rootToken, { ...all, duty: 'worker' })).length > 30);
      vault.close();
    });

    it('lets workers open what others sealed, while the policy adopts it', async () => {
      const policy = JSON.parse(readFileSync(join(root, 'keys-policy.json'), 'utf8')) as { columns: object[] };
      const [ssn, ...rest] = policy.columns;
      const sealed = { by: 'transit', key: 'hr', mount: 'others' };
      const file = join(folder, 'policy.json');
      writeFileSync(file, JSON.stringify({ ...policy, columns: [{ ...ssn, sealed }, ...rest] }));
      await mountEngine(server, 'others', { type: 'transit' });
      await server.call('POST', 'others/keys/hr', {});
      const { data } = await server.call('POST', 'others/encrypt/hr', { plaintext: 'b25l' });
      const open = async () =>
        await server.call('POST', 'others/decrypt/hr', data, await loginAs(server, 'fieldkeep-worker'));
      await assert.rejects(open(), (error: unknown) => error instanceof VaultError && error.status === 403);
      await setupWith({ FIELDKEEP_POLICY: file });
      assert.equal((await open()).data!['plaintext'], 'b25l');
      await setup();
      await assert.rejects(open(), (error: unknown) => error instanceof VaultError && error.status === 403);
    });
  },
  true,
);
