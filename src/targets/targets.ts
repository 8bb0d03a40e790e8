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

/** Beside what every session has. */
const settings = { lock_timeout: '250ms', 'fieldkeep.reencrypting': 'on' };

/** A condition that every statement on the customer's rows has. */
export const sessionProof = proofOf(settingsToHave(settings));

/** Names a target: undefined for Fieldkeep's own database. */
export type TargetName = string | undefined;

export interface Targets {
  /** Undefined when the environment does not connect a target of this name. */
  find(name: TargetName): Pool | undefined;
  close(): Promise<void>;
}

/** Databases as roles see them that may read everything and change nothing. */
export interface Readers extends Targets {
  /** Aborted when the process ends: a search, which may take an hour, is not waited for. */
  readonly ending: AbortSignal;
  end(): void;
}

/** The variable that connects a target, as one of its roles. */
export function variableOf(name: string, role: '' | '_READER' | '_OWNER' = ''): string {
  return `TARGET_${name.toUpperCase()}${role}_URL`;
}

/** The variable that connects the reader of a database. */
export function readerVariableOf(name: TargetName): string {
  return name === undefined ? 'DATABASE_READER_URL' : variableOf(name, '_READER');
}

/** The database of a table. Errors: `conflict` when it is not connected. */
export function databaseOf({ targets }: { readonly targets: Targets }, table: { readonly database?: string }): Pool {
  const pool = targets.find(table.database);
  if (pool !== undefined) return pool;
  throw new FieldkeepError(
    'conflict',
    `Target ${table.database} is not connected: set ${variableOf(table.database!)}.`,
  );
}

/** `statementTimeoutMs`: a census of a large table without a version index reads all of it. */
export function openTargets(
  ownUrl: string,
  urls: ReadonlyMap<string, string> = new Map(),
  statementTimeoutMs = 300_000,
): Targets {
  const open = (url: string) =>
    openPool(url, {
      max: connections,
      name: 'worker',
      statementTimeoutMs,
      settings,
    });
  const own = open(ownUrl);
  const others = new Map([...urls].map(([name, url]) => [name, open(url)]));
  return {
    find: (name) => (name === undefined ? own : others.get(name)),
    async close() {
      await Promise.all([own, ...others.values()].map((pool) => pool.end()));
    },
  };
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
      const ended = Promise.all([...pools.values()].map((pool) => pool.end()));
      await Promise.race([ended, sleep(closeMaxMs, undefined, { ref: false })]); // a server may not hear that its statement is cancelled
    },
  };
}
