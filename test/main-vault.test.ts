/** Whole processes on a real Vault, as a platform engineer starts them: a worker and an api, each with its own login. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openIssuer } from '../src/embedded/issuer.ts';
import { createDatabase, type TestDatabase } from './support/database.ts';
import { describeVault, loginAs, openVaultServer, setUp, wrapSecretId, type VaultServer } from './support/vault.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

interface Started {
  readonly child: ChildProcess;
  readonly home: string;
  output(): string;
  until(pattern: RegExp): Promise<void>;
}

describeVault(
  'processes on Vault',
  function () {
    this.timeout(60_000);
    let server: VaultServer;
    let database: TestDatabase;
    let folder: string;
    const children: ChildProcess[] = [];

    before(async () => {
      server = await openVaultServer({ own: true });
      await setUp(server, 'transit', ['ssn', 'bank', 'salary']);
      database = await createDatabase();
      folder = mkdtempSync(join(tmpdir(), 'fieldkeep processes '));
      writeFileSync(join(folder, 'vault-ca.pem'), server.ca!);
    });
    after(async () => {
      for (const child of children.filter((each) => each.exitCode === null && each.signalCode === null)) {
        child.kill('SIGTERM');
        await once(child, 'exit');
      }
      await database.drop();
      await server.close();
      rmSync(folder, { recursive: true, force: true });
    });

    function start(name: string, env: Record<string, string>): Started {
      const home = join(folder, name);
      const child = spawn(process.execPath, ['src/main.ts'], {
        cwd: root,
        env: {
          ...process.env,
          ...{ FIELDKEEP_HOME: home, PORT: '0', NODE_ENV: 'production', VAULT_TOKEN: '' },
          ...(env['ROLE'] === 'api'
            ? { DATABASE_URL: database.apiUrl }
            : {
                DATABASE_URL: database.workerUrl,
                DATABASE_ROWS_URL: database.rowsUrl,
                DATABASE_OWNER_URL: database.ownerUrl,
              }),
          ...{ VAULT_ADDR: server.address, VAULT_CACERT: join(folder, 'vault-ca.pem') },
          ...env,
        },
      });
      children.push(child);
      let output = '';
      for (const stream of [child.stdout, child.stderr])
        stream.on('data', (chunk: Buffer) => (output += String(chunk)));
      const until = async (pattern: RegExp) => {
        while (!pattern.test(output)) {
          assert.equal(child.exitCode, null, output);
          await new Promise((resolve) => setTimeout(resolve, 25));
        }
      };
      return { child, home, output: () => output, until };
    }

    async function appRole(role: string): Promise<Record<string, string>> {
      const { data } = await server.call('GET', `auth/approle/role/${role}/role-id`);
      const file = join(folder, `${role}.wrapped`);
      writeFileSync(file, await wrapSecretId(server, `auth/approle/role/${role}/secret-id`));
      return { VAULT_AUTH: 'approle', VAULT_ROLE: data!['role_id'] as string, VAULT_WRAPPED_SECRET_ID_FILE: file };
    }

    const runtimeOf = ({ home }: Started) =>
      JSON.parse(readFileSync(join(home, 'runtime.json'), 'utf8')) as { url?: string; metricsUrl: string };

    async function encrypt({ home, ...started }: Started): Promise<{ status: number; text: string }> {
      const { url } = runtimeOf({ home, ...started });
      const issuer = await openIssuer(home);
      const token = await issuer.issueToken({
        ...{ audience: 'fieldkeep', subject: 'payroll-agent', tenant: 'acme', ttlSeconds: 60 },
      });
      const context = { table: 'demo.employees', column: 'bank', row: '1' };
      const body = JSON.stringify({ class: 'bank', value: 'GB29 NWBK', context });
      const agent = new Agent({ ca: readFileSync(join(home, 'tls', 'ca.pem')) });
      const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
      return await new Promise((resolve, reject) => {
        const call = request(`${url}/v1/encrypt`, { method: 'POST', headers, agent }, (answer) => {
          let text = '';
          answer.on('data', (chunk: Buffer) => (text += String(chunk)));
          answer.on('end', () => resolve({ status: answer.statusCode!, text }));
        });
        call.on('error', reject);
        call.end(body);
      });
    }

    it('start with wrapped secret ids and serve, and a wrapping that was used is a security event', async () => {
      const worker = start('worker', { ROLE: 'worker', ...(await appRole('fieldkeep-worker')) });
      await worker.until(/Fieldkeep works: it makes data keys/);
      assert.equal(runtimeOf(worker).url, undefined, 'a worker faces nobody');
      const login = await appRole('fieldkeep-api');
      const api = start('api', { ROLE: 'api', ...login });
      await api.until(/Stop: Ctrl-C/);
      const reply = await encrypt(api);
      assert.equal(reply.status, 200, reply.text + api.output());
      for (const each of [worker, api]) {
        const { metricsUrl } = runtimeOf(each);
        assert.equal((await fetch(metricsUrl.replace('/metrics', '/readyz'))).status, 200);
        const metrics = await (await fetch(metricsUrl)).text();
        assert.match(metrics, /fieldkeep_vault_up 1\n/);
        assert.match(metrics, /fieldkeep_vault_logins_total 1\n/);
        assert.match(metrics, /fieldkeep_vault_token_expiry_timestamp_seconds 1\d{9}/);
        assert.ok(!each.output().includes('more than it should'), each.output());
      }
      const thief = start('thief', { ROLE: 'api', ...login });
      await thief.until(/SECURITY EVENT/);
      assert.match(thief.output(), /wrapped_secret_id_already_used/);
      await thief.until(/Stop: Ctrl-C/);
      const { metricsUrl } = runtimeOf(thief);
      assert.equal((await fetch(metricsUrl.replace('/metrics', '/readyz'))).status, 503);
      assert.match(await (await fetch(metricsUrl)).text(), /fieldkeep_vault_security_events_total 1\n/);
      assert.equal((await encrypt(thief)).status, 503);
      assert.equal((await encrypt(api)).status, 200);
    });

    it('an api process whose token may do more than it should says so', async () => {
      const file = join(folder, 'token');
      writeFileSync(file, await loginAs(server, 'fieldkeep-worker'));
      const greedy = start('greedy', { ROLE: 'api', VAULT_TOKEN_FILE: file });
      await greedy.until(/may do more than it should/);
      assert.match(greedy.output(), /transit\/datakey\/wrapped\/fk-ssn \(update\)/);
      assert.ok(!greedy.output().includes('transit/keys/fk-ssn/trim'));
    });
  },
  true,
);
