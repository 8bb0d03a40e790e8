/** Puts client, login, session and transit together: root keys at a Vault, from what the environment says of it. */
import { readFileSync } from 'node:fs';
import { describeError, StartupError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { RootKeys } from './root-keys.ts';
import { openTransit } from './transit.ts';
import { openVault, type Vault } from './vault.ts';
import { createLogin, type VaultAuth } from './vault-login.ts';
import { VaultSession } from './vault-session.ts';

export interface VaultSettings {
  /** https://host:port */
  readonly address: string;
  readonly namespace?: string;
  /** PEM of a private authority. */
  readonly caFile?: string;
  /** Where transit is mounted. */
  readonly mount: string;
  readonly auth: VaultAuth;
}

/** A client for the server that `settings` name. Errors: StartupError when the authority's file cannot be read. */
export function openClient({ address, namespace, caFile }: Omit<VaultSettings, 'auth' | 'mount'>): Vault {
  let ca: string | undefined;
  try {
    ca = caFile === undefined ? undefined : readFileSync(caFile, 'utf8');
  } catch {
    throw new StartupError('The file of VAULT_CACERT cannot be read.');
  }
  return openVault({ address, ...(namespace !== undefined && { namespace }), ...(ca !== undefined && { ca }) });
}

export interface VaultRootKeys {
  readonly rootKeys: RootKeys;
  readonly vault: Vault;
  readonly session: VaultSession;
}

/** Asks Vault nothing yet: a service starts also while it is away. */
export function openVaultRootKeys(settings: VaultSettings, log: Pick<Log, 'warn' | 'error'>): VaultRootKeys {
  const vault = openClient(settings);
  const session = new VaultSession({
    vault,
    login: createLogin(vault, settings.auth),
    onError: (error) => log.warn({ error: describeError(error) }, 'The token for Vault could not be renewed.'),
    onSecurityEvent: (event, detail) => log.error({ securityEvent: event, detail }, 'A SECURITY EVENT at Vault.'),
  });
  return { vault, session, rootKeys: openTransit({ vault, session, mount: settings.mount }) };
}
