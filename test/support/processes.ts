/**
 * The service as a platform engineer runs it: api and worker processes, a Postgres and a Vault, each a process of its own
 * that can be killed, stopped and started again.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { openPool, type Pool } from '../../src/db.ts';
import { isRunning } from '../../src/embedded/home.ts';
import { openIssuer, type Issuer } from '../../src/embedded/issuer.ts';
import { startPostgres, type EmbeddedPostgres } from '../../src/embedded/postgres.ts';
import { Keyring } from '../../src/keys/keyring.ts';
import { migrateAll } from './database.ts';
import { loginAs, openAt, openVaultServer, setUp, type VaultServer } from './vault.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const startMaxMs = 30_000;
const outputMax = 20_000;
const systemPrincipals = new Set(['operator', 'security-auditor', 'security-lead']);
/** Processes are killed here, not machines: what was written is there, synced or not. */
const postgresSettings = { fsync: 'off', max_connections: '60' };

export interface Answer {
  readonly status: number;
  readonly body: Record<string, unknown>;
}

/** One process of the service. */
export class Process {
  readonly name: string;
  readonly role: 'api' | 'worker';
  readonly home: string;
  child: ChildProcess | undefined;
  /** As it calls itself in the database. */
  instance = '';
  url: string | undefined;
  output = '';
  #agent: Agent | undefined;
  #issuer: Issuer | undefined;
  readonly #tokens = new Map<string, string>();

  constructor(name: string, role: 'api' | 'worker', home: string) {
    this.name = name;
    this.role = role;
    this.home = home;
  }

  get isRunning(): boolean {
    return this.child !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Connections are kept and used again, at most `sockets` at a time. */
  reach(url: string | undefined, sockets = 32): void {
    this.#agent?.destroy();
    this.url = url;
    if (url === undefined) return;
    this.#agent = new Agent({
      keepAlive: true,
      maxSockets: sockets,
      ca: readFileSync(join(this.home, 'tls', 'ca.pem')),
    });
  }

  async #tokenFor(name: string, tenant: string): Promise<string> {
    const id = `${name} ${tenant}`;
    const known = this.#tokens.get(id);
    if (known !== undefined) return known;
    this.#issuer ??= await openIssuer(this.home);
    const own = systemPrincipals.has(name) ? {} : { tenant };
    const token = await this.#issuer.issueToken({
      ...{ audience: 'fieldkeep', subject: name, ttlSeconds: 24 * 3600, ...own },
    });
    this.#tokens.set(id, token);
    return token;
  }

  /** Errors: what the connection meets, an answer that does not come within `maxMs` included. */
  async call(
    who: string,
    method: string,
    path: string,
    body?: object,
    { tenant = 'acme', maxMs = 15_000, headers = {} } = {},
  ): Promise<Answer> {
    const token = await this.#tokenFor(who, tenant);
    const text = body === undefined ? undefined : JSON.stringify(body);
    const sent = {
      authorization: `Bearer ${token}`,
      ...(text !== undefined && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
      ...headers,
    };
    return await new Promise((resolve, reject) => {
      const options = { method, headers: sent, agent: this.#agent, signal: AbortSignal.timeout(maxMs) };
      const outgoing = request(`${this.url}${path}`, options, (incoming) => {
        let answer = '';
        incoming.on('data', (chunk: Buffer) => (answer += chunk.toString()));
        incoming.on('error', reject);
        incoming.on('end', () => {
          resolve({ status: incoming.statusCode!, body: JSON.parse(answer) as Answer['body'] });
        });
      });
      outgoing.on('error', reject);
      outgoing.end(text);
    });
  }
}

export class Site {
  readonly vault: VaultServer;
  readonly owner: Pool;
  /** Opens what the service sealed, with the worker's rights at Vault. */
  readonly keyring: Keyring;
  readonly processes: Process[] = [];
  postgres: EmbeddedPostgres;
  readonly #folder: string;
  readonly #logins: Readonly<Record<'api' | 'worker', Record<string, string>>>;
  readonly #close: () => Promise<void>;

  private constructor(
    folder: string,
    parts: {
      vault: VaultServer;
      postgres: EmbeddedPostgres;
      owner: Pool;
      keyring: Keyring;
      logins: Record<'api' | 'worker', Record<string, string>>;
    },
    close: () => Promise<void>,
  ) {
    this.#folder = folder;
    this.vault = parts.vault;
    this.postgres = parts.postgres;
    this.owner = parts.owner;
    this.keyring = parts.keyring;
    this.#logins = parts.logins;
    this.#close = close;
  }

  static async open(): Promise<Site> {
    const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-site-'));
    chmodSync(folder, 0o711); // as root, Postgres runs as another user below it
    mkdirSync(join(folder, 'postgres'), { mode: 0o711 });
    const home = join(folder, 'postgres');
    const vault = await openVaultServer({ own: true });
    await setUp(vault, 'transit', ['ssn', 'bank', 'salary']);
    writeFileSync(join(folder, 'vault-ca.pem'), vault.ca!);
    const postgres = await startPostgres({ home, settings: postgresSettings });
    await migrateAll(postgres);
    const owner = openPool(postgres.ownerUrl, { max: 8, name: 'test', statementTimeoutMs: 60_000 });
    const pool = openPool(postgres.workerUrl, { max: 2, name: 'test keys' });
    const auth = { method: 'token', token: await loginAs(vault, 'fieldkeep-worker') } as const;
    const { rootKeys } = openAt(vault, { mount: 'transit', auth });
    const keyring = await Keyring.open({ pool, rootKeys, onError: () => undefined });
    const logins = { api: await login(vault, 'api', folder), worker: await login(vault, 'worker', folder) };
    return new Site(folder, { vault, postgres, owner, keyring, logins }, async () => {
      keyring.close();
      rootKeys.close();
      await pool.end();
      await owner.end();
      await vault.close();
    });
  }

  /** Starts a process that is new, or one that was killed, and waits until it is up. */
  async start(name: string, role: 'api' | 'worker', env: Record<string, string> = {}): Promise<Process> {
    let process_ = this.processes.find((each) => each.name === name);
    if (process_ === undefined) {
      process_ = new Process(name, role, join(this.#folder, name));
      this.processes.push(process_);
    }
    const known = await this.#listInstances();
    const runtime = join(process_.home, 'runtime.json');
    rmSync(runtime, { force: true });
    const child = spawn(process.execPath, ['src/main.ts'], {
      cwd: root,
      env: {
        ...process.env,
        ...{ FIELDKEEP_HOME: process_.home, PORT: '0', METRICS_PORT: '0', NODE_ENV: 'production', ROLE: role },
        ...(role === 'api'
          ? { DATABASE_URL: this.postgres.apiUrl }
          : { DATABASE_URL: this.postgres.workerUrl, DATABASE_ROWS_URL: this.postgres.rowsUrl }),
        ...{ VAULT_ADDR: this.vault.address, VAULT_CACERT: join(this.#folder, 'vault-ca.pem'), VAULT_TOKEN: '' },
        ...this.#logins[role],
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    process_.child = child;
    process_.output = '';
    const keep = process_;
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (chunk: Buffer) => (keep.output = (keep.output + chunk.toString()).slice(-outputMax)));
    }
    const deadline = performance.now() + startMaxMs;
    while (!existsSync(runtime)) {
      if (!keep.isRunning) throw new Error(`${name} does not start: ${keep.output}`);
      if (performance.now() > deadline) throw new Error(`${name} is not up in time: ${keep.output}`);
      await sleep(25);
    }
    const { url } = JSON.parse(readFileSync(runtime, 'utf8')) as { url?: string };
    keep.reach(url);
    keep.instance = (await this.#listInstances()).find((id) => !known.includes(id)) ?? '';
    return keep;
  }

  async #listInstances(): Promise<string[]> {
    const { rows } = await this.owner.query<{ id: string }>('select id from fieldkeep.instances order by started_at');
    return rows.map((row) => row.id);
  }

  async kill(process_: Process): Promise<void> {
    const ended = once(process_.child!, 'exit');
    process_.child!.kill('SIGKILL');
    await ended;
  }

  /** What ten seconds without a heartbeat bring about: nobody waits for it, and its leases are free. */
  async forget({ instance }: Process): Promise<void> {
    await this.owner.query('delete from fieldkeep.instances where id::text = $1', [instance]);
  }

  async killPostgres(): Promise<void> {
    process.kill(this.postgres.pid, 'SIGKILL');
    while (isRunning(this.postgres.pid)) await sleep(10);
  }

  /** On the port that it had: the others look for it there. */
  async startPostgres(): Promise<void> {
    const { ownerUrl } = this.postgres;
    this.postgres = await startPostgres({ home: join(this.#folder, 'postgres'), settings: postgresSettings });
    if (this.postgres.ownerUrl !== ownerUrl) throw new Error('Postgres came back on another port.');
  }

  async close(): Promise<void> {
    for (const each of this.processes) each.reach(undefined);
    const running = this.processes.filter((each) => each.isRunning);
    await Promise.all(running.map((each) => this.kill(each)));
    await this.#close();
    await this.postgres.stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** A login of its own for each duty, with which a process can start as often as it likes. */
async function login(vault: VaultServer, duty: 'api' | 'worker', folder: string): Promise<Record<string, string>> {
  const role = `auth/approle/role/fieldkeep-${duty}`;
  const id = await vault.call('GET', `${role}/role-id`);
  const secret = await vault.call('POST', `${role}/secret-id`, {});
  const file = join(folder, `${duty}.secret-id`);
  writeFileSync(file, secret.data!['secret_id'] as string, { mode: 0o600 });
  return { VAULT_AUTH: 'approle', VAULT_ROLE: id.data!['role_id'] as string, VAULT_SECRET_ID_FILE: file };
}
