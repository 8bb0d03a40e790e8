/**
 * HTTP to Vault, in the place of axios, which node-vault would use: axios sends the token to whatever proxy the
 * environment names and along any redirect, and its timeout is one of silence, not of the whole call.
 *
 *   - one deadline for connecting, sending and the last byte of the answer
 *   - TLS 1.2 or newer, verified always; connections are kept alive
 *   - one redirect at most (a standby names its leader), never away from TLS
 *   - an answer that is not JSON, or longer than it can be, is a failure like a lost connection
 */
import { Agent as HttpAgent, request as requestHttp, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';

/** Vault did not answer, or not in a way that can be read. `reason` is from a closed list and safe to show. */
export class VaultUnreachable extends Error {
  readonly reason: string;

  constructor(reason: string) {
    super(`Vault ${reason}.`);
    this.name = 'VaultUnreachable';
    this.reason = reason;
  }
}

/** What node-vault hands over and wants back (the interface that the `request` library had). */
export interface VaultRequest {
  readonly method: string;
  readonly uri: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly json?: unknown;
}

interface VaultResponse {
  readonly statusCode: number;
  readonly body: unknown;
  /** Always '': node-vault takes any answer of sys/health for a good one, and only the status tells a standby. */
  readonly request: { readonly path: '' };
}

interface Transport {
  send(request: VaultRequest): Promise<VaultResponse>;
  /** Connections opened so far: with keep-alive it stands still. */
  connections(): number;
  close(): void;
}

interface TransportOptions {
  /** PEM of a private authority, in place of the public ones. */
  readonly ca?: string;
  /** Of a whole call. */
  readonly timeoutMs: number;
}

const bodyBytesMax = 4 * 1024 * 1024;
const socketsMax = 32;

/** A socket's or TLS's error, told by its code: its message may quote an address, never more is needed. */
function reasonOf(error: unknown): string {
  const code = error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : '';
  if (code === 'ECONNREFUSED') return 'refuses connections';
  if (/CERT|SSL|TLS|SELF_SIGNED|UNABLE_TO_VERIFY|ERR_TLS|EPROTO/.test(code)) return `fails TLS (${code})`;
  return /^[A-Z_]{3,40}$/.test(code) ? `cannot be reached (${code})` : 'cannot be reached';
}

async function readJson(incoming: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of incoming as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bodyBytesMax) throw new VaultUnreachable('answers more than it should');
    chunks.push(chunk);
  }
  if (!incoming.complete) throw new VaultUnreachable('broke off its answer');
  const whole = Buffer.concat(chunks);
  for (const chunk of chunks) chunk.fill(0); // an answer to `decrypt` holds data keys
  try {
    return whole.length === 0 ? undefined : JSON.parse(whole.toString('utf8'));
  } catch {
    throw new VaultUnreachable('answers what is not JSON');
  } finally {
    whole.fill(0);
  }
}

export function openTransport(options: TransportOptions): Transport {
  const shared = { keepAlive: true, keepAliveMsecs: 15_000, maxSockets: socketsMax, scheduling: 'lifo' } as const;
  const tls = { minVersion: 'TLSv1.2', rejectUnauthorized: true } as const;
  const https = new HttpsAgent({ ...shared, ...tls, ...(options.ca !== undefined && { ca: options.ca }) });
  const http = new HttpAgent(shared);
  let connections = 0;

  function once(url: URL, { method, headers, json }: VaultRequest, signal: AbortSignal): Promise<IncomingMessage> {
    const text = json === undefined ? undefined : JSON.stringify(json);
    const length = text === undefined ? {} : { 'content-length': Buffer.byteLength(text) };
    const shape = { 'content-type': 'application/json', ...headers, ...length, 'x-vault-request': 'true' };
    const secure = url.protocol === 'https:';
    return new Promise((resolve, reject) => {
      const send = secure ? requestHttps : requestHttp;
      const outgoing = send(url, { method, headers: shape, agent: secure ? https : http, signal }, resolve);
      outgoing.on('socket', () => {
        if (!outgoing.reusedSocket) connections += 1;
      });
      outgoing.on('error', reject);
      outgoing.end(text);
    });
  }

  async function follow(request: VaultRequest, signal: AbortSignal): Promise<VaultResponse> {
    let url = new URL(request.uri);
    let incoming = await once(url, request, signal);
    const { statusCode = 0, headers } = incoming;
    if (statusCode >= 300 && statusCode < 400) {
      incoming.resume();
      const target = URL.canParse(headers.location ?? '', url) ? new URL(headers.location!, url) : undefined;
      if (target?.protocol !== url.protocol) throw new VaultUnreachable('redirects to where its token must not go');
      url = target;
      incoming = await once(url, request, signal);
    }
    return { statusCode: incoming.statusCode ?? 0, body: await readJson(incoming), request: { path: '' } };
  }

  return {
    async send(request) {
      const signal = AbortSignal.timeout(options.timeoutMs);
      try {
        return await follow(request, signal);
      } catch (error) {
        if (error instanceof VaultUnreachable) throw error;
        throw new VaultUnreachable(signal.aborted ? 'does not answer in time' : reasonOf(error));
      }
    },
    connections: () => connections,
    close() {
      https.destroy();
      http.destroy();
    },
  };
}
