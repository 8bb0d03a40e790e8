/**
 * Connections to Postgres, and the only importer of `pg`.
 *
 * Every session is as session.ts says before anybody gets it, so that a statement means what it says: all our SQL names
 * its schema, and nobody who can create an object in `public` can stand in for one of ours.
 */
import pg from 'pg';
import { FieldkeepError } from './errors.ts';
import {
  findDifferences,
  findLost,
  readBackSql,
  SessionRefused,
  settingsToHave,
  settingsToSend,
  spellMs,
  startOptions,
  type Settings,
} from './session.ts';

export type Pool = pg.Pool;
/** One connection, as handed out by a pool or opened on its own. */
export type Client = pg.ClientBase;
export type Queryable = Pick<pg.ClientBase, 'query'>;

interface SessionOptions {
  /** Shows in pg_stat_activity. */
  readonly name: string;
  /** Of each statement; 0 for none. */
  readonly statementTimeoutMs?: number;
  /** Over those that every session has. */
  readonly settings?: Settings;
}

interface PoolOptions extends SessionOptions {
  /** Connections at most. */
  readonly max: number;
}

const connectTimeoutMs = 5_000;
const defaultStatementMs = 10_000;
/** A server that was stopped keeps no statement_timeout: then we give the connection up, this long after it was due. */
const silenceMs = 5_000;

/** How a session starts, and how it is looked at before its first statement: for pools that others open, too. */
export function sessionConfig({ statementTimeoutMs = defaultStatementMs, settings }: Omit<SessionOptions, 'name'>) {
  const more = { statement_timeout: spellMs(statementTimeoutMs), ...settings };
  const needed = settingsToHave(more);
  const text = readBackSql(needed);
  const verify = async (client: Client): Promise<void> => {
    // pg knows a limit of one query, its types do not.
    const question = { text, rowMode: 'array', query_timeout: connectTimeoutMs } as const;
    const { rows } = await client.query<(string | null)[]>(question);
    const differences = findDifferences(needed, rows[0]!);
    if (differences.length > 0) throw SessionRefused.onConnecting(differences);
  };
  return { options: startOptions(settingsToSend(more)), onConnect: verify as (client: Client) => void, verify };
}

function clientConfig(url: string, { name, ...session }: SessionOptions) {
  return {
    connectionString: url,
    application_name: `fieldkeep ${name}`,
    connectionTimeoutMillis: connectTimeoutMs,
    keepAlive: true,
    ...sessionConfig(session),
  };
}

const refusals = new WeakMap<Pool, { readonly refused: SessionRefused; readonly at: number }>();
const recentMs = 60_000;

/** Why the pool lately got no new session, though those that it has may still do. */
export function findRecentRefusal(pool: Pool): SessionRefused | undefined {
  const last = refusals.get(pool);
  return last !== undefined && performance.now() - last.at < recentMs ? last.refused : undefined;
}

/** A pool whose idle connections may die without taking the process along: the next query opens a new one. */
export function openPool(url: string, { max, ...session }: PoolOptions): Pool {
  const { verify, ...config } = clientConfig(url, session);
  const look = async (client: Client): Promise<void> => {
    try {
      await verify(client);
      refusals.delete(pool);
    } catch (error) {
      const refused = findRefusal(error);
      if (refused !== undefined) refusals.set(pool, { refused, at: performance.now() });
      throw error;
    }
  };
  const onConnect = look as (client: Client) => void;
  const query_timeout = (session.statementTimeoutMs ?? defaultStatementMs) + silenceMs;
  const pool = new pg.Pool({ ...config, onConnect, query_timeout, max, idleTimeoutMillis: 30_000 });
  // A connection that is lost, idle or between two statements of a transaction, says so here and again to whoever
  // queries it next; unheard it would end the process.
  pool.on('error', () => undefined);
  pool.on('connect', (client) => client.on('error', () => undefined));
  return pool;
}

/** One connection outside any pool, for LISTEN and for the audit stream. The caller handles its `error` and `end`. */
export async function connect(url: string, options: SessionOptions): Promise<pg.Client> {
  const { verify, ...config } = clientConfig(url, options);
  const client = new pg.Client(config);
  client.on('error', () => undefined); // before connect(): an unheard 'error' would end the process; 'end' still fires
  await client.connect();
  try {
    await verify(client);
  } catch (error) {
    await client.end().catch(() => undefined); // it may be gone already; the first error is the one to tell
    throw error;
  }
  return client;
}

/**
 * Lends one connection to `work`: what it sends goes one after the other, also after a statement that failed, whose locks
 * are gone only when the server is ready again. A broken connection leaves the pool.
 */
export async function withClient<T>(pool: Pool, work: (client: Client) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  let broken = false;
  try {
    return await work(client);
  } catch (error) {
    broken = isUnavailable(error);
    throw findRefusal(error) ?? error;
  } finally {
    client.release(broken);
  }
}

/** Like withClient; a connection on which `work` takes longer than `maxMs` is given up, whatever the server does. */
export async function withClientFor<T>(pool: Pool, maxMs: number, work: (client: Client) => Promise<T>): Promise<T> {
  return await withClient(pool, async (client) => {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error('timeout expired')), maxMs); // as pg says it: the connection is broken
    });
    try {
      return await Promise.race([work(client), late]);
    } finally {
      clearTimeout(timer);
    }
  });
}

/** Like withClient; when the signal comes the server is asked to cancel what it is doing there (57014). */
export async function withCancelling<T>(
  pool: Pool,
  signal: AbortSignal,
  work: (client: Client) => Promise<T>,
): Promise<T> {
  return await withClient(pool, async (client) => {
    const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
    const cancel = () => void pool.query('select pg_cancel_backend($1)', [rows[0]!.pid]).catch(() => undefined); // it ends
    signal.addEventListener('abort', cancel, { once: true });
    try {
      return await work(client);
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  });
}

/** Runs `work` between begin and commit; any error rolls back and is thrown on. A broken connection leaves the pool. */
export async function transaction<T>(pool: Pool, work: (tx: Client) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  let broken: Error | undefined;
  try {
    await client.query('begin');
    const result = await work(client);
    await client.query('commit');
    return result;
  } catch (error) {
    const refused = findRefusal(error);
    // On a connection that does not answer a rollback would wait once more; closing it rolls back, too.
    broken = refused ?? (error instanceof Error && isUnavailable(error) ? error : undefined);
    if (broken === undefined || refused !== undefined) {
      await client.query('rollback').catch((failure: Error) => {
        broken = failure;
      });
    }
    throw refused ?? error;
  } finally {
    client.release(broken);
  }
}

const queryCanceled = '57014';

/** What `ask` answers on a connection whose statements take `ms` at the most; undefined where one would take longer. */
export async function askWithin<T>(pool: Pool, ms: number, ask: (db: Client) => Promise<T>): Promise<T | undefined> {
  try {
    return await transaction(pool, async (tx) => {
      await tx.query(`set local statement_timeout = ${Math.max(1, Math.round(ms))}`);
      return await ask(tx);
    });
  } catch (error) {
    if (sqlState(error) === queryCanceled) return undefined;
    throw error;
  }
}

const socketCodes = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
]);
/** 08: connection exceptions · 57P01-3: shutdown, crash, starting up · 53300: too many connections · 25006: read only. */
const unavailableStates = /^(08...|57P0[123]|53300|25006)$/;

/** Says of an error whether it is a session that we do not work in, and why. */
export function findRefusal(error: unknown): SessionRefused | undefined {
  if (error instanceof SessionRefused) return error;
  if (!(error instanceof pg.DatabaseError)) return undefined;
  const name = error.code === '42704' ? findLost(error.message) : undefined;
  if (name !== undefined) return SessionRefused.later(name);
  const isPoolers = error.code === '08P01' && error.message.includes('startup parameter');
  return isPoolers ? SessionRefused.byPooler() : undefined;
}

/** Whether an error of `pg` says that the database cannot be reached or is going away, rather than that a statement is wrong. */
export function isUnavailable(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if (findRefusal(error) !== undefined) return true;
  const code: unknown = 'code' in error ? error.code : undefined;
  if (typeof code === 'string') return socketCodes.has(code) || unavailableStates.test(code);
  if (error instanceof AggregateError) return error.errors.some(isUnavailable);
  return /^(Connection terminated|Query read timeout|Client has encountered a connection error|timeout e|Client was closed)/.test(
    error.message,
  );
}

/** A connection failure becomes `database_unavailable`, without its cause: it may show the connection string. */
export function toUnavailable(error: unknown): unknown {
  if (!isUnavailable(error)) return error;
  return new FieldkeepError('database_unavailable', 'The database cannot be reached.', { retryAfterSeconds: 1 });
}

/** SQLSTATE of an error that Postgres answered. */
export function sqlState(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.code : undefined;
}

/** The user name in a connection URL: the role that grants go to. */
export function roleOf(url: string): string {
  return decodeURIComponent(new URL(url).username);
}

/** `name` as an SQL identifier. */
export function quoteIdentifier(name: string): string {
  return pg.escapeIdentifier(name);
}

/** `text` as an SQL string. */
export function quoteLiteral(text: string): string {
  return pg.escapeLiteral(text);
}
