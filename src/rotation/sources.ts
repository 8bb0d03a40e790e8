/**
 * Opens values that others sealed, so that they can be adopted: by Vault's transit engine, or by pgcrypto with a
 * passphrase. It happens in this process: the database never sees a passphrase, in no statement, no log and no
 * pg_stat_activity. Nothing is ever sealed that way here.
 *
 *     transit    vault:v<version>:<base64>                         opened by Vault, in batches
 *     pgcrypto   \x<hex> of pgp_sym_encrypt, or its armor() text   opened with a passphrase of the environment or of Vault's KV
 */
import { openPgp } from '../crypto/pgp.ts';
import { FieldkeepError } from '../errors.ts';
import { openTransitTexts } from '../keys/transit-source.ts';
import { readSecret, type SecretPlace } from '../keys/vault-secret.ts';
import type { VaultCaller } from '../keys/vault-session.ts';
import type { VaultNeed } from '../keys/vault-plan.ts';
import type { RegisteredColumn, SealedBy } from '../policy/policy.ts';

/** Where the passphrase of a source is: here, or in Vault. */
export type SourceSecret = { readonly passphrase: string } | SecretPlace;

export interface SourceOptions {
  /** The client and the session of the process; absent without Vault. */
  readonly vault?: VaultCaller;
  /** By the key that the policy calls them by: SOURCE_<KEY>_SECRET or SOURCE_<KEY>_VAULT. */
  readonly secrets?: ReadonlyMap<string, SourceSecret>;
}

interface Opener {
  /**
   * What each text says, in order. A text that does not open is an error in its place: `envelope_malformed` when it is
   * nothing that was sealed that way, else `decryption_failed` (also when it is not UTF-8 inside).
   *
   * Errors: `vault_unavailable`, when nothing can be said of any of them.
   */
  open(texts: readonly string[]): Promise<(string | FieldkeepError)[]>;
}

export interface Sources {
  /** Errors: `conflict` when what is needed to open them is not configured, in a sentence that says what. */
  get(sealed: SealedBy): Opener;
}

/** A passphrase from Vault is asked for again after this: it may have been replaced. */
const secretTtlMs = 300_000;

/** The variable that has the passphrase, and the one that says where Vault has it. */
const secretVariables = (key: string) => [`SOURCE_${key.toUpperCase()}_SECRET`, `SOURCE_${key.toUpperCase()}_VAULT`];

/** One after the other: they are all work of this process, and a batch must not hold up what else it does. */
async function openAll(texts: readonly string[], passphrase: string): Promise<(string | FieldkeepError)[]> {
  const opened: (string | FieldkeepError)[] = [];
  for (const text of texts) {
    try {
      opened.push(await openPgp(text, passphrase));
    } catch (error) {
      if (!(error instanceof FieldkeepError)) throw error;
      opened.push(error);
    }
  }
  return opened;
}

/** The passphrase of a source, from wherever it is; from Vault every few minutes, and once however many ask. */
function keepSecret(secret: SourceSecret, vault: VaultCaller | undefined): () => Promise<string> {
  if ('passphrase' in secret) return () => Promise.resolve(secret.passphrase);
  let reading: { readonly value: Promise<string>; readonly until: number } | undefined;
  return () => {
    if (reading === undefined || performance.now() >= reading.until) {
      const mine = { value: readSecret(vault!, secret), until: performance.now() + secretTtlMs };
      reading = mine;
      mine.value.catch(() => {
        if (reading === mine) reading = undefined;
      });
    }
    return reading.value;
  };
}

/** Openers for what the policy says that others have sealed. Asks nobody for anything until texts are opened. */
export function openSources({ vault, secrets = new Map() }: SourceOptions = {}): Sources {
  const kept = new Map<string, () => Promise<string>>();

  function getPassphrase(key: string): () => Promise<string> {
    const known = kept.get(key);
    if (known !== undefined) return known;
    const secret = secrets.get(key);
    if (secret === undefined || (!('passphrase' in secret) && vault === undefined)) {
      const needs = secret === undefined ? secretVariables(key).join(' or ') : 'VAULT_ADDR';
      throw new FieldkeepError('conflict', `The passphrase of source ${key} is not known here: set ${needs}.`);
    }
    const passphrase = keepSecret(secret, vault);
    kept.set(key, passphrase);
    return passphrase;
  }

  return {
    get(sealed) {
      if (sealed.by === 'pgcrypto') {
        const passphrase = getPassphrase(sealed.key);
        return { open: async (texts) => await openAll(texts, await passphrase()) };
      }
      if (vault === undefined) {
        throw new FieldkeepError('conflict', `Values sealed by transit key ${sealed.key} need Vault: set VAULT_ADDR.`);
      }
      const { key, mount = 'transit' } = sealed;
      return { open: (texts) => openTransitTexts(vault, { key, mount }, texts) };
    },
  };
}

/** What workers need at Vault to open the sources of these columns, each once. */
export function listVaultNeeds(
  columns: readonly Pick<RegisteredColumn, 'class' | 'sealed'>[],
  secrets: ReadonlyMap<string, SourceSecret>,
): VaultNeed[] {
  const needs = columns.flatMap(({ class: family, sealed }): VaultNeed[] => {
    if (sealed === undefined) return [];
    if (sealed.by === 'transit') {
      return [{ family, path: `${sealed.mount ?? 'transit'}/decrypt/${sealed.key}`, capability: 'update' }];
    }
    const secret = secrets.get(sealed.key);
    if (secret === undefined || 'passphrase' in secret) return [];
    return [{ family, path: secret.path, capability: 'read' }];
  });
  return needs.filter(
    ({ family, path }, i) => i === needs.findIndex((other) => other.family === family && other.path === path),
  );
}
