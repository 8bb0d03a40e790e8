/**
 * Connections to the databases whose columns are registered: Fieldkeep's own, and those that the policy calls by a name
 * and the environment connects by TARGET_<NAME>_URL. Sessions see every row or none (`row_security = off`), wait for no
 * lock longer than a quarter of a second, which is less than any deadlock_timeout in use, and say who they are, so that a
 * trigger of the customer's can tell re-encryption from a change:
 *
 *     if current_setting('fieldkeep.reencrypting', true) = 'on' then return new; end if;
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { openPool, type Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { proofOf, settingsToHave } from '../session.ts';

const connections = 8;
const closeMaxMs = 2_000;

/** What a session for rows has beside what every session has. */
export const workerSettings = { lock_timeout: '250ms', 'fieldkeep.reencrypting': 'on' };

/** A condition that every statement on the customer's rows has. */
export const sessionProof = proofOf(settingsToHave(workerSettings));

/** Names a target: undefined for Fieldkeep's own database. */
export type TargetName = string | undefined;

/** Sessions by database. */
interface Databases {
  /** Undefined when the environment does not connect a database of this name. */
  find(name: TargetName): Pool | undefined;
  close(): Promise<void>;
}

/**
 * `find` has the worker's own sessions: mirrors and guards. `findRows` has those of the login for rows: every statement on
 * a table of the customer's, because its triggers, casts, domains, rules, generated columns, index expressions and checks
 * run with the rights of whoever writes. What they do there reaches the registered columns and nothing else.
 */
export interface Targets extends Databases {
  findRows(name: TargetName): Pool | undefined;
}

/** Databases as roles see them that may read everything and change nothing. */
export interface Readers extends Databases {
  /** Aborted when the process ends: a search, which may take an hour, is not waited for. */
  readonly ending: AbortSignal;
  end(): void;
}

/** The variable that connects a target, as one of its roles. */
export function variableOf(name: string, role: '' | '_READER' | '_OWNER' | '_ROWS' = ''): string {
  return `TARGET_${name.toUpperCase()}${role}_URL`;
}

/** The variable that connects the reader of a database. */
export function readerVariableOf(name: TargetName): string {
  return name === undefined ? 'DATABASE_READER_URL' : variableOf(name, '_READER');
}

/** The variable that connects the login for rows of a database. */
export function rowsVariableOf(name: TargetName): string {
  return name === undefined ? 'DATABASE_ROWS_URL' : variableOf(name, '_ROWS');
}

/** What a database is called in a sentence. */
function describeDatabase(name: TargetName): string {
  return name === undefined ? "Fieldkeep's own database" : `Target ${name}`;
}

interface Connected {
  readonly targets: Targets;
}

/** For statements on the rows of a table. Errors: `conflict` when its database has no such sessions. */
export function rowsOf({ targets }: Connected, { database }: { readonly database?: string }): Pool {
  const pool = targets.findRows(database);
  if (pool !== undefined) return pool;
  const lacking = `${describeDatabase(database)} has no login for rows`;
  const variable = targets.find(database) === undefined ? variableOf(database!) : rowsVariableOf(database);
  throw new FieldkeepError('conflict', `${lacking}: set ${variable}.`);
}

/** For the guards of a table. Errors: `conflict` when its database is not connected. */
export function guardsOf({ targets }: Connected, { database }: { readonly database?: string }): Pool {
  const pool = targets.find(database);
  if (pool !== undefined) return pool;
  throw new FieldkeepError('conflict', `Target ${database} is not connected: set ${variableOf(database!)}.`);
}

interface TargetOptions {
  /** By name; undefined names our own database. A target that is not here is worked on with its own login. */
  readonly rows?: ReadonlyMap<TargetName, string> | undefined;
  /** A census of a large table without a version index reads all of it. */
  readonly statementTimeoutMs?: number;
}

export function openTargets(
  ownUrl: string,
  urls: ReadonlyMap<string, string> = new Map(),
  { rows = new Map(), statementTimeoutMs = 300_000 }: TargetOptions = {},
): Targets {
  const open = (url: string, name: string) =>
    openPool(url, {
      max: connections,
      name,
      statementTimeoutMs,
      settings: workerSettings,
    });
  const own = new Map([[undefined, ownUrl], ...urls].map(([name, url]) => [name, open(url!, 'worker')]));
  const rowUrls = new Map<TargetName, string>([...urls, ...rows]);
  const forRows = new Map([...rowUrls].map(([name, url]) => [name, open(url, 'rows')]));
  return {
    find: (name) => own.get(name),
    findRows: (name) => forRows.get(name),
    async close() {
      await endPools([...own.values(), ...forRows.values()]);
    },
  };
}

/** Of a process that faces agents: it is connected to no database with rows. */
export const noTargets: Targets = {
  find: () => undefined,
  findRows: () => undefined,
  close: () => Promise.resolve(),
};

/** A server that does not answer keeps no process from its end. */
async function endPools(pools: readonly Pool[]): Promise<void> {
  const ended = Promise.all(pools.map((pool) => pool.end()));
  await Promise.race([ended, sleep(closeMaxMs, undefined, { ref: false })]);
}

/**
 * Connects the roles that only read. A statement may take long, for it reads a whole table; a lock that it waits for may
 * not: somebody changes that table.
 */
export function openReaders(urls: ReadonlyMap<TargetName, string>, statementTimeoutMs = 3_600_000): Readers {
  const settings = { lock_timeout: '10s', default_transaction_read_only: 'on' };
  const open = (url: string) => openPool(url, { max: 3, name: 'reader', statementTimeoutMs, settings });
  const pools = new Map([...urls].map(([name, url]) => [name, open(url)]));
  const ending = new AbortController();
  return {
    find: (name) => pools.get(name),
    ending: ending.signal,
    end: () => ending.abort(),
    async close() {
      ending.abort();
      await endPools([...pools.values()]);
    },
  };
}
