/**
 * What stands between us and Postgres on many platforms, and changes what a session is like: a proxy that leaves out the
 * settings that a session starts with, and a real PgBouncer where one is installed.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export interface Pooler {
  /** `url` with this one in its host's place. */
  through(url: string): string;
  close(): Promise<void>;
}

function through(url: string, port: number): string {
  const changed = new URL(url);
  changed.host = `127.0.0.1:${port}`;
  return changed.href;
}

/** A startup message is: u32 length | u32 protocol | name 00 value 00 … | 00 */
function leaveOut(startup: Buffer, name: string): Buffer {
  const words = startup.toString('latin1', 8).split('\0');
  const kept: string[] = [];
  for (let i = 0; i + 1 < words.length && words[i] !== ''; i += 2) {
    if (words[i] !== name) kept.push(words[i]!, words[i + 1]!);
  }
  const body = Buffer.from(`${kept.join('\0')}\0\0`, 'latin1');
  const head = Buffer.alloc(8);
  head.writeUInt32BE(8 + body.length, 0);
  head.writeUInt32BE(startup.readUInt32BE(4), 4);
  return Buffer.concat([head, body]);
}

/** Passes everything on but the `options` of a startup message, as PgBouncer does when it is told to ignore them. */
export async function openForgetful(url: string): Promise<Pooler> {
  const { hostname, port: targetPort } = new URL(url);
  const server = createServer((client) => {
    const upstream = connect({ port: Number(targetPort), host: hostname });
    for (const [from, to] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      from.on('error', () => to.destroy()).on('close', () => to.destroy());
    }
    let startup = Buffer.alloc(0);
    const read = (chunk: Buffer) => {
      startup = Buffer.concat([startup, chunk]);
      if (startup.length < 4 || startup.length < startup.readUInt32BE(0)) return;
      client.off('data', read);
      upstream.write(leaveOut(startup, 'options'));
      client.pipe(upstream);
      upstream.pipe(client);
    };
    client.on('data', read);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    through: (each) => through(each, port),
    async close() {
      server.close();
      await once(server, 'close');
    },
  };
}

export const hasPgBouncer = spawnSync('pgbouncer', ['--version']).status === 0;

async function findPort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

async function accepts(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** Debian's PgBouncer in front of the database of `url`, with these settings over its own. */
export async function startPgBouncer(url: string, settings: Readonly<Record<string, string>>): Promise<Pooler> {
  const { hostname, port: serverPort, username, password, pathname } = new URL(url);
  const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-pgbouncer-'));
  const port = await findPort();
  const name = pathname.slice(1);
  const all = {
    ...{ listen_addr: '127.0.0.1', listen_port: String(port), unix_socket_dir: '' },
    ...{ auth_type: 'trust', auth_file: join(folder, 'users.txt'), server_login_retry: '1', ...settings },
  };
  const lines = Object.entries(all).map(([key, value]) => `${key} = ${value}`);
  const database = `${name} = host=${hostname} port=${serverPort} dbname=${name}`;
  writeFileSync(join(folder, 'pgbouncer.ini'), `[databases]\n${database}\n[pgbouncer]\n${lines.join('\n')}\n`);
  writeFileSync(all.auth_file, `"${decodeURIComponent(username)}" "${decodeURIComponent(password)}"\n`);
  // It does not run as root.
  const user = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
  chmodSync(folder, 0o755);
  const child = spawn('pgbouncer', [...user, join(folder, 'pgbouncer.ini')], { stdio: ['ignore', 'ignore', 'pipe'] });
  let told = '';
  child.stderr.on('data', (chunk: Buffer) => (told += String(chunk)));
  const ended = once(child, 'exit');
  for (let tries = 0; tries < 200 && child.exitCode === null; tries += 1) {
    if (await accepts(port)) break;
    await sleep(50);
  }
  if (child.exitCode !== null) throw new Error(`PgBouncer did not start: ${told}`);
  return {
    through: (each) => through(each, port),
    async close() {
      child.kill('SIGKILL');
      await ended;
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
