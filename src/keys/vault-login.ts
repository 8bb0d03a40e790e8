/**
 * The ways to a token of Vault. Files are read at every login, so that a rotated token, secret id or JWT is taken up
 * without a restart. Nothing read here is kept longer than the call, but for a secret id that came in a wrapping.
 */
import { readFileSync } from 'node:fs';
import { RootKeyError } from './root-keys.ts';
import { VaultError, type Vault, type VaultAnswer } from './vault.ts';

/** How to log in; `mount` is where the auth method is mounted, `auth/` left out. */
export type VaultAuth =
  | { readonly method: 'token'; readonly token: string }
  | { readonly method: 'token'; readonly file: string }
  | {
      readonly method: 'approle';
      readonly mount: string;
      readonly roleId: string;
      readonly secretIdFile: string;
      /** The file holds a response-wrapping token, good for one reading, instead of the secret id itself. */
      readonly wrapped: boolean;
    }
  | { readonly method: 'kubernetes' | 'jwt'; readonly mount: string; readonly role: string; readonly file: string };

export interface Login {
  readonly token: string;
  /** 0: it does not end. */
  readonly ttlSeconds: number;
  readonly renewable: boolean;
}

/** Something that an attacker may have caused, for the security team; `event` is from a closed list. */
export type SecurityEvent = 'wrapped_secret_id_already_used' | 'wrapped_secret_id_from_elsewhere';

export class LoginRefused extends RootKeyError {
  readonly event: SecurityEvent | undefined;

  constructor(detail: string, event?: SecurityEvent) {
    super(detail, { refused: true });
    this.event = event;
  }
}

/** A credential file's text, trimmed. Errors: LoginRefused naming the file. */
function readCredential(file: string): string {
  let text: string;
  try {
    text = readFileSync(file, 'utf8').trim();
  } catch {
    throw new LoginRefused(`The credential for Vault in ${file} cannot be read.`);
  }
  if (text === '') throw new LoginRefused(`The credential for Vault in ${file} is empty.`);
  return text;
}

function toLogin({ auth }: VaultAnswer): Login {
  const { client_token: token, lease_duration: ttl, renewable } = auth ?? {};
  if (typeof token !== 'string' || typeof ttl !== 'number')
    throw new VaultError('Vault answers a login without a token.');
  return { token, ttlSeconds: ttl, renewable: renewable === true };
}

/** A token that was given: Vault is asked how long it lives. */
async function inspect(vault: Vault, token: string): Promise<Login> {
  const { data = {} } = await vault.call('GET', 'auth/token/lookup-self', token);
  const { ttl, renewable, expire_time: expires } = data;
  if (typeof ttl !== 'number') throw new VaultError('Vault answers a lookup without a TTL.');
  // The last fraction of a second is no endless life.
  return { token, ttlSeconds: expires === null ? 0 : Math.max(1, ttl), renewable: renewable === true };
}

const alreadyUsed =
  'The wrapping token of the secret id is not good any more: it has expired, or somebody has used it before. ' +
  'If it was fresh, revoke the secret ids of this role and look for who read it.';
const fromElsewhere =
  'The wrapping token does not hold a secret id of this AppRole: somebody has put another in its place.';

/** Opens the wrapping once. Vault says what it was made for first: a token that was put in its place is not opened. */
async function unwrapSecretId(vault: Vault, mount: string, wrapping: string): Promise<string> {
  const spent = (error: unknown) => {
    if (error instanceof VaultError && error.refused)
      throw new LoginRefused(alreadyUsed, 'wrapped_secret_id_already_used');
    throw error;
  };
  const { data: info = {} } = await vault.call('POST', 'sys/wrapping/lookup', '', { token: wrapping }).catch(spent);
  const path = String(info.creation_path);
  const made = path.startsWith(`auth/${mount}/role/`) && path.endsWith('/secret-id');
  if (!made) throw new LoginRefused(fromElsewhere, 'wrapped_secret_id_from_elsewhere');
  const { data = {} } = await vault.call('POST', 'sys/wrapping/unwrap', wrapping).catch(spent);
  if (typeof data.secret_id !== 'string') throw new VaultError('Vault answers an unwrapping without a secret id.');
  return data.secret_id;
}

/** Answers a function that logs in, again and again. Its errors: LoginRefused, VaultError. */
export function createLogin(vault: Vault, auth: VaultAuth): () => Promise<Login> {
  /** A wrapping opens once; what was in it serves the logins after. */
  let secretId: string | undefined;

  async function loginAppRole({ mount, roleId, secretIdFile, wrapped }: VaultAuth & { method: 'approle' }) {
    const credential = wrapped && secretId !== undefined ? secretId : readCredential(secretIdFile);
    if (wrapped) secretId ??= await unwrapSecretId(vault, mount, credential);
    const body = { role_id: roleId, secret_id: secretId ?? credential };
    return toLogin(await vault.call('POST', `auth/${mount}/login`, '', body));
  }

  async function loginOnce(): Promise<Login> {
    if (auth.method === 'token') return await inspect(vault, 'token' in auth ? auth.token : readCredential(auth.file));
    if (auth.method === 'approle') return await loginAppRole(auth);
    const body = { role: auth.role, jwt: readCredential(auth.file) };
    return toLogin(await vault.call('POST', `auth/${auth.mount}/login`, '', body));
  }

  return async () => {
    try {
      return await loginOnce();
    } catch (error) {
      if (!(error instanceof VaultError && error.refused)) throw error;
      const what = auth.method === 'token' ? 'the token' : `the ${auth.method} login`;
      throw new LoginRefused(`Vault refuses ${what} (${error.status}).`);
    }
  };
}
