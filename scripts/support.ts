/** What the commands share: finding the running service, calling it as a principal of the policy, and telling errors. */
import { readFileSync } from 'node:fs';
import { Agent, request, type RequestOptions } from 'node:https';
import { join, resolve } from 'node:path';
import { parseArgs, type ParseArgsConfig } from 'node:util';
import { openIssuer } from '../src/embedded/issuer.ts';
import { findRefusal, isUnavailable, sqlState } from '../src/db.ts';
import { describeError, FieldkeepError, StartupError } from '../src/errors.ts';
import { refuseTaken, UsageError } from './npm-options.ts';

export interface RunningService {
  readonly home: string;
  readonly pid: number;
  readonly url: string;
  readonly metricsUrl: string;
  /** The owner's URL, with embedded Postgres only. */
  readonly databaseUrl?: string;
}

/** Kinds of options of a command. */
export const flag = { type: 'boolean', default: false } as const;
export const text = { type: 'string' } as const;

/**
 * The words of the command line. What does not fit is answered by `usage`: node's own words repeat what was given.
 * Errors: UsageError where npm kept an option that was meant for the command.
 */
export function readWords<T extends ParseArgsConfig>(usage: string, config: T): ReturnType<typeof parseArgs<T>> {
  refuseTaken(config.options ?? {}, process.env, process.argv);
  try {
    return parseArgs(config);
  } catch {
    throw new StartupError(usage);
  }
}

/** As a word for the shell. */
export const quote = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

export const formatCount = (n: number) => n.toLocaleString('en-US');

export const home = resolve(process.env.FIELDKEEP_HOME || '.fieldkeep');

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}

export function findService(): RunningService | undefined {
  let text: string;
  try {
    text = readFileSync(join(home, 'runtime.json'), 'utf8');
  } catch {
    return undefined;
  }
  const runtime = JSON.parse(text) as Omit<RunningService, 'home'>;
  return isAlive(runtime.pid) ? { ...runtime, home } : undefined;
}

function getService(): RunningService {
  const found = findService();
  if (found !== undefined && typeof found.url === 'string') return found;
  if (found !== undefined) throw new StartupError(`The process with its state in ${home} is a worker: it has no API.`);
  throw new StartupError(`No service is running with its state in ${home}. Start one with: npm start`);
}

/** Who calls: an agent with its tenant, or a system principal without. */
interface Caller {
  readonly name: string;
  readonly tenant?: string;
}

/** Whose calls the commands make. */
export const operator: Caller = { name: 'operator' };

export interface Answer {
  readonly status: number;
  readonly body: Record<string, unknown>;
}

export interface Api {
  call(
    caller: Caller,
    method: 'GET' | 'POST',
    path: string,
    body?: unknown,
    headers?: Readonly<Record<string, string>>,
  ): Promise<Answer>;
  close(): void;
}

const tokenTtlSeconds = 900;

/** A client of the service's API with tokens of the local issuer, renewed before they expire. */
export async function openApi(service: RunningService): Promise<Api> {
  const issuer = await openIssuer(service.home);
  const agent = new Agent({ keepAlive: true, maxSockets: 16, ca: readFileSync(join(service.home, 'tls', 'ca.pem')) });
  const tokens = new Map<string, { token: string; renewAt: number }>();

  async function tokenFor({ name, tenant }: Caller): Promise<string> {
    const known = tokens.get(`${name} ${tenant ?? ''}`);
    if (known !== undefined && Date.now() < known.renewAt) return known.token;
    const token = await issuer.issueToken({
      audience: 'fieldkeep',
      subject: name,
      ttlSeconds: tokenTtlSeconds,
      ...(tenant !== undefined && { tenant }),
    });
    tokens.set(`${name} ${tenant ?? ''}`, { token, renewAt: Date.now() + (tokenTtlSeconds * 1000) / 2 });
    return token;
  }

  return {
    async call(caller, method, path, body, headers = {}) {
      const token = await tokenFor(caller);
      const text = body === undefined ? undefined : JSON.stringify(body);
      const own = { ...headers, authorization: `Bearer ${token}` };
      return await send(new URL(path, service.url), { method, agent, headers: own }, text);
    },
    close: () => agent.destroy(),
  };
}

/** Lends a client of the service that runs here to `work`. Errors: StartupError where none does. */
export async function withApi<T>(work: (api: Api, service: RunningService) => Promise<T>): Promise<T> {
  const service = getService();
  const api = await openApi(service);
  try {
    return await work(api, service);
  } finally {
    api.close();
  }
}

function send(url: URL, options: RequestOptions, text: string | undefined): Promise<Answer> {
  const headers = {
    ...(options.headers as Record<string, string>),
    ...(text !== undefined && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
  };
  return new Promise((resolve, reject) => {
    const outgoing = request(url, { ...options, headers, timeout: 60_000 }, (incoming) => {
      const chunks: Buffer[] = [];
      incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
      incoming.on('error', reject);
      incoming.on('end', () => {
        const body = JSON.parse(Buffer.concat(chunks).toString('utf8')) as Record<string, unknown>;
        resolve({ status: incoming.statusCode ?? 0, body });
      });
    });
    outgoing.on('timeout', () => outgoing.destroy(new Error('The service did not answer within a minute.')));
    outgoing.on('error', reject);
    outgoing.end(text);
  });
}

/** The answer's body; a problem becomes an error that says what the service said. */
export function mustBeOk({ status, body }: Answer): Record<string, unknown> {
  if (status >= 200 && status < 300) return body;
  throw new StartupError(`The service answered ${status} ${String(body.code)}: ${String(body.detail)}`);
}

function isConnectionError(error: unknown): boolean {
  return error instanceof Error && 'code' in error && /^(ECONN|EPIPE|ENOTFOUND|ETIMEDOUT)/.test(String(error.code));
}

/** What a command failed by, in a sentence without values: a database quotes rows in its own words, so they are left out. */
function explain(error: unknown): string {
  if (error instanceof StartupError || error instanceof FieldkeepError) return error.message;
  const refused = findRefusal(error);
  if (refused !== undefined) return `The database answers in ${refused.phrase}`;
  if (isConnectionError(error)) return 'The service went away: it does not answer any more.';
  if (isUnavailable(error)) return 'The database went away: it does not answer any more.';
  const { name, code, at } = describeError(error);
  const where = at.length === 0 ? '' : ` (${at.join(', ')})`;
  const state = sqlState(error);
  const what =
    state === undefined
      ? `failed: ${[name, code].filter(Boolean).join(' ')}`
      : `was refused by the database, SQLSTATE ${state}`;
  return `The command ${what}${where}. If nothing there was changed by hand, that is a fault of Fieldkeep’s: report it with this line.`;
}

/** Runs a command: its errors become sentences on stderr and exit code 1, or 2 where it was called in the wrong way. */
export async function run(main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    process.exitCode = error instanceof UsageError ? 2 : 1;
    process.stderr.write(`${explain(error)}\n`);
  }
}

const barWidth = 28;

/** One line of progress, rewritten in place on a terminal; `done` and `total` are rows. */
export function progressLine(what: string, done: number, total: number, rest: string): string {
  const share = total === 0 ? 0 : Math.min(1, done / total);
  const filled = Math.round(share * barWidth);
  const percent = `${Math.floor(share * 100)}%`.padStart(4);
  return `${what} ${'█'.repeat(filled)}${'░'.repeat(barWidth - filled)} ${percent}  ${rest}`;
}

/** Writes progress: in place on a terminal, at most one line every two seconds elsewhere. */
export function openProgress(): { show: (line: string) => void; end: (line: string) => void } {
  const tty = process.stdout.isTTY;
  let printedAt = 0;
  return {
    show(line) {
      if (tty) process.stdout.write(`\r\x1b[K${line}`);
      else if (Date.now() - printedAt >= 2_000) {
        printedAt = Date.now();
        process.stdout.write(`${line}\n`);
      }
    },
    end(line) {
      process.stdout.write(tty ? `\r\x1b[K${line}\n` : `${line}\n`);
    },
  };
}

export function formatSeconds(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
