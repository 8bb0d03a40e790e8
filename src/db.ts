/**
 * Connections to Postgres, and the only importer of `pg`.
 *
 * Every session starts with `search_path = pg_catalog`, so that a statement means what it says: all our SQL names its
 * schema, and nobody who can create an object in `public` can stand in for one of ours.
 */
import pg from 'pg';
import { FieldkeepError } from './errors.ts';

export type Pool = pg.Pool;
/** One connection, as handed out by a pool or opened on its own. */
export type Client = pg.ClientBase;
export type Queryable = Pick<pg.ClientBase, 'query'>;

interface PoolOptions {
  /** Connections at most. */
  readonly max: number;
  /** Shows in pg_stat_activity. */
  readonly name: string;
  readonly statementTimeoutMs?: number;
  /** Extra session settings, `row_security: 'off'` for instance: a filtered count is then an error, not a zero. */
  readonly settings?: Readonly<Record<string, string>>;
}

const connectTimeoutMs = 5_000;
const defaultStatementMs = 10_000;
/** A server that was stopped keeps no statement_timeout: then we give the connection up, this long after it was due. */
const silenceMs = 5_000;

function clientConfig(url: string, options: Omit<PoolOptions, 'max'>): pg.ClientConfig {
  const settings = { search_path: 'pg_catalog', ...options.settings };
  return {
    connectionString: url,
    application_name: `fieldkeep ${options.name}`,
    connectionTimeoutMillis: connectTimeoutMs,
    keepAlive: true,
    statement_timeout: options.statementTimeoutMs ?? defaultStatementMs,
    options: Object.entries(settings)
      .map(([name, value]) => `-c ${name}=${value}`)
      .join(' '),
  };
}

/** A pool whose idle connections may die without taking the process along: the next query opens a new one. */
export function openPool(url: string, options: PoolOptions): Pool {
  const pool = new pg.Pool({
    ...clientConfig(url, options),
    query_timeout: (options.statementTimeoutMs ?? defaultStatementMs) + silenceMs,
    max: options.max,
    idleTimeoutMillis: 30_000,
  });
  // A connection that is lost, idle or between two statements of a transaction, says so here and again to whoever
  // queries it next; unheard it would end the process.
  pool.on('error', () => undefined);
  pool.on('connect', (client) => client.on('error', () => undefined));
  return pool;
}

/** One connection outside any pool, for LISTEN and for the audit stream. The caller handles its `error` and `end`. */
export async function connect(url: string, options: Omit<PoolOptions, 'max'>): Promise<pg.Client> {
  const client = new pg.Client(clientConfig(url, options));
  client.on('error', () => undefined); // before connect(): an unheard 'error' would end the process; 'end' still fires
  await client.connect();
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
    throw error;
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
    // On a connection that does not answer a rollback would wait once more; closing it rolls back, too.
    if (error instanceof Error && isUnavailable(error)) broken = error;
    else {
      await client.query('rollback').catch((failure: Error) => {
        broken = failure;
      });
    }
    throw error;
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

/** Whether an error of `pg` says that the database cannot be reached or is going away, rather than that a statement is wrong. */
export function isUnavailable(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
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
