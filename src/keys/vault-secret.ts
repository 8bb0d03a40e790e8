/** Reads one field of a secret in Vault's KV engine, version 1 or 2. */
import { FieldkeepError } from '../errors.ts';
import { callWithSession, type VaultCaller } from './vault-session.ts';

export interface SecretPlace {
  /** As the API has it: secret/data/hr in version 2 of the engine, secret/hr in version 1. */
  readonly path: string;
  readonly field: string;
}

/** Version 2 answers the fields in a `data` of their own, beside `metadata`. */
function fieldsOf(data: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const { data: inner, metadata } = data;
  const isSecond = typeof inner === 'object' && inner !== null && typeof metadata === 'object' && metadata !== null;
  return isSecond ? (inner as Readonly<Record<string, unknown>>) : data;
}

/** Errors: `vault_unavailable`, also when there is no such field or it is no text. */
export async function readSecret(caller: VaultCaller, { path, field }: SecretPlace): Promise<string> {
  const { data = {} } = await callWithSession(caller, 'GET', path);
  const value = fieldsOf(data)[field];
  if (typeof value === 'string' && value !== '') return value;
  throw new FieldkeepError('vault_unavailable', `Vault has no text ${field} at ${path}.`, { retryAfterSeconds: 30 });
}
