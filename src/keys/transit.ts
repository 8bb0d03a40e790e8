/**
 * Root keys in the transit engine of Vault or OpenBao:
 *
 *     fk-<family>            aes256-gcm96, derived, never exportable     the root key of a family
 *     fk-audit-digest        the same, of the internal family `audit`
 *     fk-audit-checkpoint    ed25519                                     signs checkpoints of the audit log
 *     wrapped data key:      vault:v<version>:<base64>
 *
 * Keys are only used here as vault:setup makes them: one whose settings would let the key leave Vault is refused. Unwraps
 * that are asked for at the same time go as one request.
 */
import { RootKeyError, type RootKeys } from './root-keys.ts';
import { VaultError, type VaultAnswer } from './vault.ts';
import { callWithSession, type VaultCaller } from './vault-session.ts';
import { auditFamily } from './version.ts';

export const signingKeyName = 'fk-audit-checkpoint';

/** The transit key of a family. No class is named `audit`, and no class name has a hyphen. */
export function transitKeyName(family: string): string {
  return family === auditFamily ? 'fk-audit-digest' : `fk-${family}`;
}

/** What a key that may never leave Vault is made with. Neither can be taken back once it was otherwise. */
const never = { exportable: false, allow_plaintext_backup: false } as const;
export const rootKeySettings = { type: 'aes256-gcm96', derived: true, ...never } as const;
export const signingKeySettings = { type: 'ed25519', ...never } as const;

/** OpenBao takes 1,000 JSON strings a request, names counted: 249 items of a ciphertext and a context. */
const batchItemsMax = 249;
/** Statuses of sys/health; a standby (429, 473) hands requests on to the active server and is as good. */
const healthFaults: Readonly<Record<number, string | undefined>> = {
  429: undefined,
  472: 'This Vault is a disaster recovery secondary and answers nobody.',
  473: undefined,
  501: 'Vault is not initialized.',
  503: 'Vault is sealed.',
};

interface TransitOptions extends VaultCaller {
  /** Where transit is mounted, without slashes at its ends. */
  readonly mount: string;
}

interface Unwrap {
  readonly wrapped: string;
  readonly context: Buffer;
  readonly resolve: (key: Buffer) => void;
  readonly reject: (error: unknown) => void;
}

interface KeySettings {
  readonly type: unknown;
  readonly latest: number;
  readonly minAvailable: number;
  readonly exportable: boolean;
}

function readSettings({ data = {} }: VaultAnswer): KeySettings {
  if (typeof data.latest_version !== 'number') throw new VaultError('Vault answers a key without its version.');
  return {
    type: data.type,
    latest: data.latest_version,
    minAvailable: Number(data.min_available_version ?? 0),
    exportable: data.exportable !== false || data.allow_plaintext_backup !== false,
  };
}

function checkSettings(name: string, answer: VaultAnswer): KeySettings {
  const settings = readSettings(answer);
  const { derived, auto_rotate_period: period } = answer.data!;
  const faults = [
    settings.type === rootKeySettings.type ? '' : `is not of type ${rootKeySettings.type}`,
    derived === true ? '' : 'is not derived',
    settings.exportable ? 'may leave Vault (exportable or allow_plaintext_backup)' : '',
    Number(period ?? 0) === 0 ? '' : 'rotates by itself (auto_rotate_period)',
  ].filter((fault) => fault !== '');
  if (faults.length === 0) return settings;
  throw new RootKeyError(`The transit key ${name} ${faults.join(' and ')}. npm run vault:setup -- --check says more.`, {
    refused: true,
  });
}

export function openTransit({ vault, session, mount }: TransitOptions): RootKeys {
  const waiting = new Map<string, Unwrap[]>();
  let unwrapRequests = 0;

  const call = (method: 'GET' | 'POST', path: string, body?: object): Promise<VaultAnswer> =>
    callWithSession({ vault, session }, method, `${mount}/${path}`, body);

  async function readKey(name: string): Promise<VaultAnswer | undefined> {
    try {
      return await call('GET', `keys/${name}`);
    } catch (error) {
      if (error instanceof VaultError && error.status === 404) return undefined;
      throw error;
    }
  }

  /** Reads the key; makes it where the token may, which only a development server's does. */
  async function ensureKey(name: string, settings: object): Promise<VaultAnswer> {
    const found = await readKey(name);
    if (found !== undefined) return found;
    try {
      await call('POST', `keys/${name}`, settings);
    } catch (error) {
      if (!(error instanceof VaultError && error.refused)) throw error;
      const how = 'An operator makes it with: npm run vault:setup';
      throw new RootKeyError(`Vault has no transit key ${name} in ${mount}/. ${how}`, { refused: true });
    }
    return await call('GET', `keys/${name}`);
  }

  async function sendUnwraps(name: string, batch: readonly Unwrap[]): Promise<void> {
    unwrapRequests += 1;
    const items = batch.map(({ wrapped, context }) => ({ ciphertext: wrapped, context: context.toString('base64') }));
    let results: readonly unknown[];
    try {
      const { data = {} } = await call('POST', `decrypt/${name}`, { batch_input: items });
      results = data.batch_results as unknown[];
    } catch (error) {
      // One item that does not open makes the whole answer a 400, with the results in it.
      if (!(error instanceof VaultError) || error.results === undefined) {
        for (const { reject } of batch) reject(error);
        return;
      }
      results = error.results;
    }
    batch.forEach((unwrap, i) => settle(name, unwrap, Array.isArray(results) ? results[i] : undefined));
  }

  function settle(name: string, { resolve, reject }: Unwrap, result: unknown): void {
    const { plaintext, error } = (result ?? {}) as { plaintext?: unknown; error?: unknown };
    if (typeof error === 'string' && error !== '') {
      reject(new RootKeyError(`Vault does not open a data key wrapped by ${name}.`, { refused: true }));
    } else if (typeof plaintext !== 'string') {
      reject(new VaultError('Vault answers an unwrap without a key.'));
    } else {
      resolve(Buffer.from(plaintext, 'base64'));
    }
  }

  /** Sends what gathered for a key while the event loop turned once. */
  function flush(name: string): void {
    const all = waiting.get(name) ?? [];
    waiting.delete(name);
    for (let i = 0; i < all.length; i += batchItemsMax) void sendUnwraps(name, all.slice(i, i + batchItemsMax));
  }

  /** Vault's own view of itself, by the status of its health page (200 where it is the active one). */
  async function findFault(): Promise<string | undefined> {
    try {
      await vault.call('GET', 'sys/health', '');
      return undefined;
    } catch (error) {
      if (!(error instanceof VaultError)) return 'Vault cannot be used.';
      return error.status !== undefined && error.status in healthFaults ? healthFaults[error.status] : error.message;
    }
  }

  async function findProblem(): Promise<string | undefined> {
    const fault = await findFault();
    if (fault !== undefined) return fault;
    try {
      await session.getToken();
      return undefined;
    } catch (error) {
      return error instanceof RootKeyError ? error.message : 'Vault cannot be used.';
    }
  }

  return {
    kind: 'vault',
    async ensureFamily(family) {
      const name = transitKeyName(family);
      return checkSettings(name, await ensureKey(name, rootKeySettings)).latest;
    },
    async rotate(family) {
      const name = transitKeyName(family);
      // From Vault's own answer: a version read afterwards might be another process's.
      return checkSettings(name, await call('POST', `keys/${name}/rotate`, {})).latest;
    },
    async makeDataKey(family, transitVersion, context) {
      const name = transitKeyName(family);
      const body = { bits: 512, context: context.toString('base64'), key_version: transitVersion };
      const { data = {} } = await call('POST', `datakey/wrapped/${name}`, body);
      const wrapped = data.ciphertext;
      if (typeof wrapped === 'string' && wrapped.startsWith(`vault:v${transitVersion}:`)) return wrapped;
      throw new RootKeyError(`Vault wrapped a data key under another version of ${name} than ${transitVersion}.`, {
        refused: true,
      });
    },
    unwrap(family, wrapped, context) {
      const name = transitKeyName(family);
      return new Promise((resolve, reject) => {
        const queue = waiting.get(name);
        const unwrap = { wrapped, context, resolve, reject };
        if (queue !== undefined) return void queue.push(unwrap);
        waiting.set(name, [unwrap]);
        setImmediate(flush, name);
      });
    },
    async findOldest(family) {
      return readSettings(await call('GET', `keys/${transitKeyName(family)}`)).minAvailable;
    },
    async destroyBelow(family, minVersion, mayGoOn) {
      const name = transitKeyName(family);
      const before = readSettings(await call('GET', `keys/${name}`));
      if (before.exportable) {
        throw new RootKeyError(
          `The transit key ${name} could be copied out of Vault (exportable or allow_plaintext_backup): destroying it here would prove nothing.`,
          { refused: true },
        );
      }
      if (before.minAvailable < minVersion) {
        const minimums = { min_decryption_version: minVersion, min_encryption_version: minVersion };
        await call('POST', `keys/${name}/config`, minimums);
        // The minimums could be lowered again, and then Vault does not trim; what is trimmed is gone.
        await mayGoOn?.();
        await call('POST', `keys/${name}/trim`, { min_available_version: minVersion });
      }
      const after = readSettings(await call('GET', `keys/${name}`));
      if (after.minAvailable >= minVersion) return;
      throw new RootKeyError(`Vault has not trimmed ${name} to version ${minVersion}.`, { refused: true });
    },
    async keepFrom(family, version) {
      const name = transitKeyName(family);
      const { data = {} } = await call('GET', `keys/${name}`);
      if (Number(data.min_decryption_version) <= version) return;
      // Encryption under an older version than the newest is not asked for anyway; 0 is what keys are made with.
      const minimums = { min_encryption_version: 0, min_decryption_version: version };
      await call('POST', `keys/${name}/config`, minimums);
    },
    async getSigningKey() {
      const { data = {} } = await ensureKey(signingKeyName, signingKeySettings);
      const version = Number(data.latest_version);
      const key = (data.keys as Record<string, { public_key?: unknown }> | undefined)?.[version]?.public_key;
      const publicKey = Buffer.from(typeof key === 'string' ? key : '', 'base64');
      if (publicKey.length === 32) return { version, publicKey };
      throw new RootKeyError(`The transit key ${signingKeyName} is not an ed25519 key.`, { refused: true });
    },
    async sign(message) {
      const { data = {} } = await call('POST', `sign/${signingKeyName}`, { input: message.toString('base64') });
      const signature = Buffer.from(String(data.signature).replace(/^vault:v[0-9]+:/, ''), 'base64');
      if (signature.length === 64) return signature;
      throw new VaultError('Vault answers a signature of another length than 64 bytes.');
    },
    findProblem,
    figures() {
      const { calls, connections } = vault.counters();
      const { authenticated, expiresAt, logins, renewals, failures, securityEvents } = session.state;
      return {
        vault_authenticated: authenticated ? 1 : 0,
        vault_token_expiry_timestamp_seconds: expiresAt === undefined ? 0 : expiresAt.getTime() / 1000,
        vault_requests_total: calls,
        vault_connections_total: connections,
        vault_unwrap_requests_total: unwrapRequests,
        vault_logins_total: logins,
        vault_token_renewals_total: renewals,
        vault_auth_failures_total: failures,
        vault_security_events_total: securityEvents,
      };
    },
    close() {
      session.stop();
      vault.close();
    },
  };
}
