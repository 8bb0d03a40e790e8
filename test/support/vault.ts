/**
 * A real Vault for tests: `bao` or `vault` from PATH, with TLS, raft storage and a file audit device, on loopback; or
 * the server of VAULT_ADDR and VAULT_TOKEN, for what does not need to stop it. Without either the tests skip, and say so.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent, request } from 'undici';
import { findPort } from '../../src/embedded/postgres.ts';
import { ensureTls } from '../../src/embedded/tls.ts';
import { openTransit } from '../../src/keys/transit.ts';
import type { RootKeys } from '../../src/keys/root-keys.ts';
import { openVault, type Vault, type VaultAnswer } from '../../src/keys/vault.ts';
import { planVault } from '../../src/keys/vault-plan.ts';
import { createLogin, type VaultAuth } from '../../src/keys/vault-login.ts';
import { VaultSession, type SessionOptions } from '../../src/keys/vault-session.ts';

export const vaultProgram = ['bao', 'vault'].find((name) => spawnSync(name, ['version']).status === 0);
const given = process.env.VAULT_ADDR && process.env.VAULT_TOKEN ? process.env.VAULT_ADDR : undefined;

/** Whether there is a server at all, and one that tests may stop and start. */
export const hasVault = vaultProgram !== undefined || given !== undefined;
export const hasOwnVault = vaultProgram !== undefined;

if (!hasOwnVault && process.env.FIELDKEEP_REQUIRE_VAULT) {
  throw new Error(
    'FIELDKEEP_REQUIRE_VAULT is set, and there is no bao or vault on PATH: the Vault tests would be skipped.',
  );
}
if (!hasVault) {
  process.stderr.write(
    '\n*** No bao or vault on PATH and no VAULT_ADDR with VAULT_TOKEN: the Vault tests are SKIPPED. ***\n\n',
  );
}

/** `describe` where there is a server (`own`: one that may be stopped), `describe.skip` elsewhere. */
export function describeVault(title: string, body: (this: Mocha.Suite) => void, own = false): void {
  if (own ? hasOwnVault : hasVault) describe(title, body);
  else describe.skip(title, body);
}

export interface VaultServer {
  readonly address: string;
  readonly ca: string | undefined;
  readonly rootToken: string;
  /** All that its audit device has written; '' where it is not ours. */
  auditLog(): string;
  /** A call with the root token, or another. */
  call(method: 'GET' | 'POST' | 'DELETE', path: string, body?: object, token?: string): Promise<VaultAnswer>;
  /** Ends the process, at once. */
  stop(): Promise<void>;
  /** Starts it again on the same port, and unseals it. */
  start(): Promise<void>;
  seal(): Promise<void>;
  unseal(): Promise<void>;
  /** Of raft storage: all that the server knows, encrypted. */
  snapshot(): Promise<Buffer>;
  /** Takes over what another server knew, keys and tokens included. */
  restore(snapshot: Buffer, from: VaultServer): Promise<void>;
  close(): Promise<void>;
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what: string, check: () => Promise<boolean>): Promise<void> {
  for (let n = 0; n < 400; n += 1) {
    if (await check().catch(() => false)) return;
    await wait(25);
  }
  throw new Error(`Vault: ${what} did not come within ten seconds.`);
}

/** What PATH has may be a script around the server: both go, as a group. */
function killGroup(child: ChildProcess): void {
  running.delete(child);
  try {
    process.kill(-child.pid!, 'SIGKILL');
  } catch {
    // It had ended by itself.
  }
}

const running = new Set<ChildProcess>();
process.on('exit', () => running.forEach(killGroup));

class OwnServer implements VaultServer {
  readonly address: string;
  readonly ca: string;
  rootToken = '';
  unsealKey = '';
  readonly #folder: string;
  readonly #client: Vault;
  #child: ChildProcess | undefined;

  private constructor(
    folder: string,
    node: string,
    [port, clusterPort]: readonly [number, number],
    tls: { ca: string; cert: string; key: string },
  ) {
    this.#folder = folder;
    this.address = `https://127.0.0.1:${port}`;
    this.ca = tls.ca;
    this.#client = openVault({ address: this.address, ca: tls.ca, timeoutMs: 10_000 });
    mkdirSync(join(folder, 'data'));
    writeFileSync(join(folder, 'cert.pem'), tls.cert);
    writeFileSync(join(folder, 'key.pem'), tls.key, { mode: 0o600 });
    const path = (name: string) => JSON.stringify(join(folder, name));
    // The file is named without its folder: a snapshot can only be restored where the audit devices are the same.
    // OpenBao takes its audit devices from this file; HashiCorp's server has them enabled by a call (see `open`).
    const audit = vaultProgram === 'bao' ? `audit "file" "to-file" { options { file_path = "audit.log" } }` : '';
    const mlock = vaultProgram === 'bao' ? '' : 'disable_mlock = true';
    writeFileSync(
      join(folder, 'server.hcl'),
      `storage "raft" { path = ${path('data')} node_id = "${node}" performance_multiplier = 1 }
       listener "tcp" { address = "127.0.0.1:${port}" cluster_address = "127.0.0.1:${clusterPort}" tls_cert_file = ${path('cert.pem')} tls_key_file = ${path('key.pem')} }
       api_addr = "${this.address}"
       cluster_addr = "https://127.0.0.1:${clusterPort}"
       ${audit} ${mlock}`,
    );
  }

  static async #make(node: string): Promise<OwnServer> {
    const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-vault-'));
    const server = new OwnServer(folder, node, [await findPort(0), await findPort(0)], await ensureTls(folder));
    await server.#spawn();
    return server;
  }

  static async open(): Promise<OwnServer> {
    const server = await OwnServer.#make('one');
    const init = await server.#client.call('POST', 'sys/init', '', { secret_shares: 1, secret_threshold: 1 });
    server.unsealKey = (init['keys'] as string[])[0]!;
    server.rootToken = init['root_token'] as string;
    await server.unseal();
    if (vaultProgram === 'vault') {
      const device = { type: 'file', options: { file_path: 'audit.log' } };
      await server.call('POST', 'sys/audit/to-file', device);
    }
    return server;
  }

  /** A further server of `leader`'s cluster, a standby. */
  static async join(leader: OwnServer, node: string): Promise<OwnServer> {
    const server = await OwnServer.#make(node);
    const body = { leader_api_addr: leader.address, leader_ca_cert: leader.ca };
    await server.call('POST', 'sys/storage/raft/join', body, '');
    server.rootToken = leader.rootToken;
    server.unsealKey = leader.unsealKey;
    await server.unseal();
    return server;
  }

  auditLog(): string {
    return readFileSync(join(this.#folder, 'audit.log'), 'utf8');
  }

  call(method: 'GET' | 'POST' | 'DELETE', path: string, body?: object, token = this.rootToken) {
    return this.#client.call(method, path, token, body);
  }

  async stop(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined) return;
    killGroup(child);
    await until('its end', () =>
      this.call('GET', 'sys/seal-status', undefined, '').then(
        () => false,
        () => true,
      ),
    );
  }

  async start(): Promise<void> {
    await this.#spawn();
    await this.unseal();
  }

  async seal(): Promise<void> {
    await this.call('POST', 'sys/seal', {});
  }

  async unseal(): Promise<void> {
    await this.call('POST', 'sys/unseal', { key: this.unsealKey }, '');
    await until('unsealing', async () => (await this.call('GET', 'auth/token/lookup-self'))['data'] !== undefined);
  }

  async snapshot(): Promise<Buffer> {
    return await sendRaw(this, 'GET', 'sys/storage/raft/snapshot');
  }

  async restore(snapshot: Buffer, from: VaultServer): Promise<void> {
    await sendRaw(this, 'POST', 'sys/storage/raft/snapshot-force', snapshot);
    this.rootToken = from.rootToken;
    this.unsealKey = (from as OwnServer).unsealKey;
    // It seals itself once it has taken the snapshot in: its old unseal key opens nothing any more.
    await until(
      'its sealing',
      async () => (await this.call('GET', 'sys/seal-status', undefined, ''))['sealed'] === true,
    );
    await this.unseal();
  }

  async close(): Promise<void> {
    await this.stop();
    this.#client.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #spawn(): Promise<void> {
    const child = spawn(vaultProgram!, ['server', `-config=${join(this.#folder, 'server.hcl')}`], {
      ...{ stdio: 'ignore', detached: true, cwd: this.#folder },
    });
    this.#child = child;
    running.add(child);
    await until('its start', async () => {
      if (child.exitCode !== null) throw new Error('ended');
      return (await this.call('GET', 'sys/seal-status', undefined, ''))['type'] !== undefined;
    });
  }
}

/** The server that we were given: nobody stops it. */
function borrow(address: string): VaultServer {
  const rootToken = process.env.VAULT_TOKEN!;
  const ca = process.env.VAULT_CACERT ? readFileSync(process.env.VAULT_CACERT, 'utf8') : undefined;
  const client = openVault({ address, timeoutMs: 10_000, ...(ca !== undefined && { ca }) });
  const never = () => Promise.reject(new Error('This server is not ours to stop.'));
  return {
    address,
    ca,
    rootToken,
    auditLog: () => '',
    call: (method, path, body, token = rootToken) => client.call(method, path, token, body),
    stop: never,
    start: never,
    seal: never,
    unseal: never,
    snapshot: never,
    restore: never,
    close() {
      client.close();
      return Promise.resolve();
    },
  };
}

/** A server for one suite; with `own` one that may be stopped, also where another was given. */
export function openVaultServer({ own = false } = {}): Promise<VaultServer> {
  return given !== undefined && !own ? Promise.resolve(borrow(given)) : OwnServer.open();
}

/** Three servers of one cluster; the first one leads. */
export async function openVaultCluster(): Promise<VaultServer[]> {
  const leader = await OwnServer.open();
  return [leader, await OwnServer.join(leader, 'two'), await OwnServer.join(leader, 'three')];
}

/** A transit engine of a suite's own, so that suites on one server do not meet. Answers where it is mounted. */
export async function mountTransit(server: VaultServer): Promise<string> {
  const mount = `fk-test-${randomBytes(4).toString('hex')}`;
  await mountEngine(server, mount, { type: 'transit' });
  return mount;
}

/** A call that meets another write in the server's storage is answered with 500, and may have been carried out all the same. */
export async function mountEngine(server: VaultServer, path: string, engine: object): Promise<void> {
  await until(`an engine at ${path}`, async () => {
    await server.call('POST', `sys/mounts/${path}`, engine).catch(() => undefined);
    return (await server.call('GET', `sys/mounts/${path}`)).data !== undefined;
  });
}

/** What vault:setup makes for these classes, at `mount`; the auth methods are shared by all suites of a server. */
export async function setUp(server: VaultServer, mount: string, classes: readonly string[]): Promise<void> {
  for (const step of planVault({ mount, classes, kubernetes: { namespace: 'fieldkeep' } })) {
    const exists =
      step.what.startsWith('auth method') &&
      (await server.call('GET', step.read).then(
        () => true,
        () => false,
      ));
    if (!exists) await server.call('POST', step.path, step.body);
  }
}

/** Logs in as an AppRole that `setUp` made. Answers a client token. */
export async function loginAs(server: VaultServer, role: string): Promise<string> {
  const id = await server.call('GET', `auth/approle/role/${role}/role-id`);
  const secret = await server.call('POST', `auth/approle/role/${role}/secret-id`, {});
  const body = { role_id: id.data!['role_id'], secret_id: secret.data!['secret_id'] };
  return (await server.call('POST', 'auth/approle/login', body, '')).auth!['client_token'] as string;
}

/** A call whose body or answer is not JSON, or needs a header of its own: our client makes none of those. */
async function sendRaw(
  server: Pick<VaultServer, 'address' | 'ca' | 'rootToken'>,
  method: 'GET' | 'POST',
  path: string,
  body?: Buffer,
  headers: Readonly<Record<string, string>> = {},
): Promise<Buffer> {
  const dispatcher = new Agent({ connect: server.ca === undefined ? {} : { ca: server.ca } });
  try {
    const answer = await request(`${server.address}/v1/${path}`, {
      ...{ method, dispatcher, headers: { 'x-vault-token': server.rootToken, ...headers } },
      ...(body !== undefined && { body }),
    });
    const bytes = Buffer.from(await answer.body.arrayBuffer());
    if (answer.statusCode >= 300) throw new Error(`${path} answered ${answer.statusCode}: ${bytes.toString()}`);
    return bytes;
  } finally {
    await dispatcher.close();
  }
}

/** Asks for a response-wrapped answer. Answers the wrapping token. */
export async function wrapSecretId(server: VaultServer, path: string): Promise<string> {
  const method = path.endsWith('role-id') ? 'GET' : 'POST';
  const answer = await sendRaw(server, method, path, undefined, { 'x-vault-wrap-ttl': '5m' });
  return (JSON.parse(answer.toString()) as { wrap_info: { token: string } }).wrap_info.token;
}

export interface Opened {
  readonly rootKeys: RootKeys;
  readonly session: VaultSession;
  readonly vault: Vault;
}

/** Root keys at `server`, as the service opens them. */
export function openAt(
  server: Pick<VaultServer, 'address' | 'ca' | 'rootToken'>,
  options: {
    mount: string;
    auth?: VaultAuth;
    address?: string;
    namespace?: string;
    timeoutMs?: number;
  } & Partial<Pick<SessionOptions, 'onError' | 'onSecurityEvent'>>,
): Opened {
  const { mount, auth = { method: 'token', token: server.rootToken }, namespace, timeoutMs } = options;
  const vault = openVault({
    address: options.address ?? server.address,
    ...(server.ca !== undefined && { ca: server.ca }),
    ...(namespace !== undefined && { namespace }),
    ...(timeoutMs !== undefined && { timeoutMs }),
  });
  const session = new VaultSession({
    vault,
    login: createLogin(vault, auth),
    onError: options.onError ?? (() => undefined),
    onSecurityEvent: options.onSecurityEvent ?? (() => undefined),
  });
  return { vault, session, rootKeys: openTransit({ vault, session, mount }) };
}
