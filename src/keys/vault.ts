/**
 * The client of Vault or OpenBao, on node-vault, and that library's only importer. What is done differently here, and why:
 *
 *   - its rejections hold the request or the answer, tokens and keys among them: each becomes a VaultError without `cause`
 *   - it prints requests when DEBUG names it, and takes tokens, prefixes and `VAULT_SKIP_VERIFY` from the environment: it
 *     is given none of these
 *   - its renewer overflows for long lives and gives up at the first failure: vault-session.ts renews
 *   - its transport is ours (vault-transport.ts)
 *
 * Every call says which token it uses; the client itself remembers none.
 */
import nodeVault from 'node-vault';
import { RootKeyError } from './root-keys.ts';
import { openTransport, VaultUnreachable, type VaultRequest } from './vault-transport.ts';

interface VaultOptions {
  /** https://host:port */
  readonly address: string;
  readonly namespace?: string;
  /** PEM of the authority that signed Vault's certificate, where that is a private one. */
  readonly ca?: string;
  readonly timeoutMs?: number;
}

/** Of a whole call: a request that waits for a key has ten seconds, and may need three calls. */
const timeoutMs = 3_000;

/** Answers that say no to this one call. Everything else (429, 5xx, 412, silence) is an outage and may pass. */
const refusals: ReadonlySet<number> = new Set([400, 403, 404, 405]);

export class VaultError extends RootKeyError {
  /** Absent when there was no answer. */
  readonly status: number | undefined;
  /** Vault's own words. They may repeat what was sent, so only a command that an operator runs may show them. */
  readonly said: string | undefined;
  /** Of a batch: its results, item by item. */
  readonly results: readonly unknown[] | undefined;

  constructor(detail: string, status?: number, said?: string, results?: readonly unknown[]) {
    super(detail, { refused: status !== undefined && refusals.has(status) });
    this.name = 'VaultError';
    this.status = status;
    this.said = said;
    this.results = results;
    // Not enumerable: nothing that prints an error whole prints these.
    for (const name of ['said', 'results'] as const) Object.defineProperty(this, name, { enumerable: false });
  }
}

type Body = Readonly<Record<string, unknown>>;

export interface VaultAnswer {
  readonly data?: Body;
  readonly auth?: Body;
  readonly [member: string]: unknown;
}

export interface Vault {
  call(method: 'GET' | 'POST' | 'DELETE', path: string, token: string, body?: object): Promise<VaultAnswer>;
  /** Calls made and connections opened since the start; they only grow. */
  counters(): { readonly calls: number; readonly connections: number };
  close(): void;
}

/** The part of node-vault that is used. Its own types are `any`. */
interface Client {
  token: string;
  pathPrefix: string;
  namespace: string;
  request(options: object): Promise<unknown>;
}

interface Rejection {
  readonly response?: { readonly statusCode?: unknown; readonly body?: unknown };
}

function isBody(value: unknown): value is Body {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** What became of the call in one sentence that holds nothing of request or answer. `place` is a path of ours. */
function toVaultError(error: unknown, place: string): VaultError {
  if (error instanceof VaultUnreachable) return new VaultError(`Vault ${error.reason}.`);
  const { statusCode, body } = (error as Rejection | undefined)?.response ?? {};
  if (typeof statusCode !== 'number') return new VaultError('Vault cannot be used.');
  const errors: unknown = isBody(body) ? body.errors : undefined;
  const first: unknown = Array.isArray(errors) ? errors[0] : undefined;
  const said = typeof first === 'string' ? first : undefined;
  const data = isBody(body) && isBody(body.data) ? body.data : {};
  const results = Array.isArray(data.batch_results) ? (data.batch_results as unknown[]) : undefined;
  const what = said === 'Vault is sealed' ? 'Vault is sealed.' : `Vault answers ${statusCode} to ${place}.`;
  return new VaultError(what, statusCode, said, results);
}

/** A client for one server; opens no connection yet. */
export function openVault(options: VaultOptions): Vault {
  const transport = openTransport({
    timeoutMs: options.timeoutMs ?? timeoutMs,
    ...(options.ca !== undefined && { ca: options.ca }),
  });
  const client = (nodeVault as unknown as (options: object) => Client)({
    endpoint: options.address,
    debug: () => undefined,
    'request-promise': { defaults: () => (request: VaultRequest) => transport.send(request) },
  });
  Object.assign(client, { token: '', pathPrefix: '', namespace: options.namespace ?? '' } satisfies Partial<Client>);
  let calls = 0;

  return {
    async call(method, path, token, body) {
      calls += 1;
      const headers = token === '' ? {} : { 'X-Vault-Token': token };
      const request = { method, path: `/${path}`, headers, ...(body !== undefined && { json: body }) };
      let answer: unknown;
      try {
        answer = await client.request(request);
      } catch (error) {
        throw toVaultError(error, path);
      }
      if (answer === undefined || isBody(answer)) return answer ?? {};
      throw new VaultError('Vault answers what is not a JSON object.');
    },
    counters: () => ({ calls, connections: transport.connections() }),
    close: () => transport.close(),
  };
}
