/**
 * A shop in which external writes fail: statements that write, commits, audit entries, calls to the keeper of root keys.
 *
 *     lost      failed, and nothing was stored
 *     unheard   failed, but stored: the write is made, and whoever made it is told that the connection broke
 *
 * Writes are counted in the order in which they are made, and those that were named fail.
 */
import type { AuditLog } from '../../src/audit/log.ts';
import type { Client } from '../../src/db.ts';
import { FieldkeepError } from '../../src/errors.ts';
import { Keyring } from '../../src/keys/keyring.ts';
import { RootKeyError, type RootKeys } from '../../src/keys/root-keys.ts';
import type { Service } from '../../src/service.ts';
import { interceptClient, interceptPool, interceptTargets, replace } from './intercept.ts';

export type Mode = 'lost' | 'unheard';

/** Which write fails, counted from 1 since `arm`, and how. */
export interface Fault {
  readonly at: number;
  readonly mode: Mode;
}

export class Faults {
  /** What is done instead of telling of a failure; a process may end itself here. */
  strike: (() => void) | undefined;
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
    this.strike?.();
    throw error();
  }
}

const writing =
  /^\s*(insert|update|delete|commit|with\b[^]*\b(insert|update|delete)|select fieldkeep\.fe_guard_\w+)\b/i;

function broken(): Error {
  return Object.assign(new Error('Connection terminated unexpectedly'), { code: '08006' });
}

/** Runs a statement; one that writes may fail. */
function breaking(faults: Faults): (text: string, run: () => Promise<unknown>) => Promise<unknown> {
  return (text, run) =>
    writing.test(text) ? faults.write(text.replace(/\s+/g, ' ').trim().slice(0, 90), broken, run) : run();
}

function breakKeeper(rootKeys: RootKeys, faults: Faults): RootKeys {
  const away = () => new RootKeyError('The keeper of root keys is away.', { refused: false });
  return replace(rootKeys, {
    rotate: (family: string) => faults.write('keeper: rotate', away, () => rootKeys.rotate(family)),
    makeDataKey: (family: string, version: number, context: Buffer) =>
      faults.write('keeper: make a data key', away, () => rootKeys.makeDataKey(family, version, context)),
    destroyBelow: (family: string, version: number, mayGoOn?: () => Promise<void>) =>
      faults.write('keeper: destroy', away, () => rootKeys.destroyBelow(family, version, mayGoOn)),
    sign: (message: Buffer) => faults.write('keeper: sign', away, () => rootKeys.sign(message)),
  });
}

function breakAudit(audit: AuditLog, faults: Faults): AuditLog {
  const unavailable = () => new FieldkeepError('audit_unavailable', 'The audit entry could not be made durable.');
  const append: AuditLog['append'] = (records, epoch, writes) => {
    const statements = writes && ((tx: Client) => writes(interceptClient(tx, breaking(faults))));
    return faults.write('audit: append', unavailable, () => audit.append(records, epoch, statements));
  };
  return replace(audit, { append });
}

/** A shop of the service's own instance; `close` ends what it opened. */
export async function openFaultyShop(service: Service, faults: Faults): Promise<{ shop: Service; close: () => void }> {
  const pool = interceptPool(service.pool, breaking(faults));
  const rootKeys = breakKeeper(service.rootKeys, faults);
  const keyring = await Keyring.open({ pool, rootKeys, onError: () => undefined });
  const targets = interceptTargets(service.targets, breaking(faults));
  const shop = { ...service, pool, targets, rootKeys, keyring, audit: breakAudit(service.audit, faults) };
  return { shop, close: () => keyring.close() };
}
