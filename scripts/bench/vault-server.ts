/**
 * A Vault to measure with: the server of VAULT_ADDR and VAULT_TOKEN, else `bao` or `vault` from PATH as a development
 * server with TLS on loopback, which keeps everything in memory. Either way transit is mounted for the benchmark alone.
 */
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { readConfig } from '../../src/config.ts';
import { findPort } from '../../src/embedded/postgres.ts';
import { StartupError } from '../../src/errors.ts';
import { openClient, type VaultSettings } from '../../src/keys/vault-open.ts';
import type { VaultAnswer } from '../../src/keys/vault.ts';
import { atExit, removeFolder } from './ending.ts';

export interface BenchVault {
  readonly settings: VaultSettings;
  readonly token: string;
  /** What a process of ours needs in its environment to have its root keys there. */
  readonly environment: Readonly<Record<string, string>>;
  call(method: 'GET' | 'POST' | 'DELETE', path: string, body?: object): Promise<VaultAnswer>;
  close(): Promise<void>;
}

interface Server {
  readonly settings: Omit<VaultSettings, 'mount'>;
  readonly token: string;
  stop(): Promise<void>;
}

const startMaxMs = 15_000;

function findGiven(): Server | undefined {
  if (!process.env.VAULT_ADDR) return undefined;
  const settings = readConfig(process.env).vault;
  if (settings === undefined || settings.auth.method !== 'token' || !('token' in settings.auth)) {
    throw new StartupError('The benchmark needs VAULT_TOKEN, of a server that may be written to, beside VAULT_ADDR.');
  }
  return { settings, token: settings.auth.token, stop: () => Promise.resolve() };
}

async function startOwn(): Promise<Server | undefined> {
  const program = ['bao', 'vault'].find((name) => spawnSync(name, ['version']).status === 0);
  if (program === undefined) return undefined;
  const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-bench-vault-'));
  const address = `127.0.0.1:${await findPort(0)}`;
  const token = randomBytes(16).toString('hex');
  const flags = ['-dev-no-store-token', '-dev-tls', `-dev-tls-cert-dir=${folder}`, `-dev-listen-address=${address}`];
  const child = spawn(program, ['server', '-dev', `-dev-root-token-id=${token}`, ...flags], {
    ...{ stdio: 'ignore', detached: true, cwd: folder },
  });
  // What PATH has may be a script around the server: both end, as a group.
  const kill = () => {
    process.kill(-child.pid!, 'SIGKILL');
    removeFolder(folder);
  };
  const forget = atExit(kill);
  const settings = {
    address: `https://${address}`,
    caFile: join(folder, 'vault-ca.pem'),
    auth: { method: 'token', token } as const,
  };
  return {
    settings,
    token,
    async stop() {
      forget();
      const ended = once(child, 'exit');
      kill();
      await ended;
    },
  };
}

/** Asks until the server answers; its certificate is not there from the first moment. */
async function untilAnswering({ settings, token }: Server): Promise<ReturnType<typeof openClient>> {
  const deadline = performance.now() + startMaxMs;
  for (;;) {
    try {
      const client = openClient(settings);
      await client.call('GET', 'auth/token/lookup-self', token);
      return client;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await sleep(100);
    }
  }
}

/** Undefined where there is neither. */
export async function openBenchVault(): Promise<BenchVault | undefined> {
  const server = findGiven() ?? (await startOwn());
  if (server === undefined) return undefined;
  const { token } = server;
  const settings = { ...server.settings, mount: `fk-bench-${randomBytes(3).toString('hex')}` };
  const client = await untilAnswering(server);
  await client.call('POST', `sys/mounts/${settings.mount}`, token, { type: 'transit' });
  return {
    settings,
    token,
    environment: {
      VAULT_ADDR: settings.address,
      VAULT_TOKEN: token,
      VAULT_TRANSIT_MOUNT: settings.mount,
      ...(settings.caFile !== undefined && { VAULT_CACERT: settings.caFile }),
    },
    call: (method, path, body) => client.call(method, path, token, body),
    async close() {
      await client.call('DELETE', `sys/mounts/${settings.mount}`, token);
      client.close();
      await server.stop();
    },
  };
}
