/**
 * A shop in which external writes fail: statements that write, commits, audit entries, calls to the keeper of root keys.
 *
 *     lost      failed, and nothing was stored
 *     unheard   failed, but stored: the write is made, and whoever made it is told that the connection broke
 *
 * Writes are counted in the order in which they are made, and those that were named fail.
 */
import type { AuditLog } from '../../src/audit/log.ts';
import type { Client, Pool } from '../../src/db.ts';
import { FieldkeepError } from '../../src/errors.ts';
import { Keyring } from '../../src/keys/keyring.ts';
import { RootKeyError, type RootKeys } from '../../src/keys/root-keys.ts';
import type { Service } from '../../src/service.ts';

export type Mode = 'lost' | 'unheard';

/** Which write fails, counted from 1 since `arm`, and how. */
export interface Fault {
  readonly at: number;
  readonly mode: Mode;
}

export class Faults {
  /** What failed since `arm`, in words. */
  fired: string[] = [];
  #made = 0;
  #faults: readonly Fault[] = [];

  arm(...faults: readonly Fault[]): void {
    this.fired = [];
    this.#made = 0;
    this.#faults = faults;
  }

  async write<T>(what: string, error: () => Error, run: () => Promise<T>): Promise<T> {
    this.#made += 1;
    const made = this.#made;
    const fault = this.#faults.find(({ at }) => at === made);
    if (fault === undefined) return await run();
    this.fired.push(`${fault.mode} write ${made}: ${what}`);
    if (fault.mode === 'unheard') await run();
    throw error();
  }
}

const writing = /^\s*(insert|update|delete|commit|with\b[^]*\b(insert|update|delete))\b/i;

function broken(): Error {
  return Object.assign(new Error('Connection terminated unexpectedly'), { code: '08006' });
}

/** `target` with other members in the place of its own; what stays is called on `target` itself, private fields and all. */
function replace<T extends object>(target: T, members: Partial<Record<keyof T, unknown>>): T {
  return new Proxy(target, {
    get(_, name) {
      if (name in members) return members[name as keyof T];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}

/** What answers `query` as a pool or a client does. */
function breakQueries<T extends Pool | Client>(db: T, faults: Faults, members: Partial<Record<keyof T, unknown>>): T {
  const query = (...args: unknown[]): Promise<unknown> => {
    const run = () => (db as { query(...args: unknown[]): Promise<unknown> }).query(...args);
    const [first] = args;
    const text = typeof first === 'string' ? first : (first as { text: string }).text;
    if (!writing.test(text)) return run();
    return faults.write(text.replace(/\s+/g, ' ').trim().slice(0, 90), broken, run);
  };
  return replace(db, { ...members, query });
}

export function breakPool(pool: Pool, faults: Faults): Pool {
  const connect = async () => breakQueries(await pool.connect(), faults, {});
  return breakQueries(pool, faults, { connect });
}

function breakKeeper(rootKeys: RootKeys, faults: Faults): RootKeys {
  const away = () => new RootKeyError('The keeper of root keys is away.', { refused: false });
  return replace(rootKeys, {
    rotate: (family: string) => faults.write('keeper: rotate', away, () => rootKeys.rotate(family)),
    makeDataKey: (family: string, version: number, context: Buffer) =>
      faults.write('keeper: make a data key', away, () => rootKeys.makeDataKey(family, version, context)),
  });
}

function breakAudit(audit: AuditLog, faults: Faults): AuditLog {
  const unavailable = () => new FieldkeepError('audit_unavailable', 'The audit entry could not be made durable.');
  const append: AuditLog['append'] = (records, epoch, writes) => {
    const statements = writes && ((tx: Client) => writes(breakQueries(tx, faults, {})));
    return faults.write('audit: append', unavailable, () => audit.append(records, epoch, statements));
  };
  return replace(audit, { append });
}

/** A shop of the service's own instance; `close` ends what it opened. */
export async function openFaultyShop(service: Service, faults: Faults): Promise<{ shop: Service; close: () => void }> {
  const pool = breakPool(service.pool, faults);
  const rootKeys = breakKeeper(service.rootKeys, faults);
  const keyring = await Keyring.open({ pool, rootKeys, onError: () => undefined });
  const targetPool = breakPool(service.targetPool, faults);
  const shop = { ...service, pool, targetPool, rootKeys, keyring, audit: breakAudit(service.audit, faults) };
  return { shop, close: () => keyring.close() };
}
