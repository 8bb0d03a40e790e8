/** A real HTTPS server over fake operations, and everything that it logged. */
import { once } from 'node:events';
import { request as httpsRequest, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { IncomingHttpHeaders } from 'node:http';
import { generateKeyPairSync, sign } from 'node:crypto';
import { FieldkeepError } from '../../src/errors.ts';
import { createApp, type Backend } from '../../src/http/app.ts';
import type { Edge } from '../../src/http/exchange.ts';
import { routes, type OperationName } from '../../src/http/routes.ts';
import type { Refusal } from '../../src/http/refusals.ts';
import { createHttpsServer, type HttpsOptions, type HttpsServer } from '../../src/http/server.ts';
import type { Call, Result } from '../../src/operations/perform.ts';

export const goodToken = 'good-token';
export const principal = { agent: 'hr-agent', tenant: 'acme', system: false } as const;

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  readonly body: Record<string, unknown>;
}

export interface TestServer {
  readonly server: Server;
  readonly https: HttpsServer;
  readonly edge: Edge;
  readonly port: number;
  /** Every log record, as JSON text. */
  readonly logged: string[];
  readonly refused: Refusal[];
  /** Calls that reached an operation. */
  readonly calls: { operation: OperationName; call: Call }[];
  /** What operations do; tests replace it. */
  operate: (call: Call, operation: OperationName) => Promise<Result> | Result;
  refuse: (refusal: Refusal) => Promise<void>;
  obstacles: string[];
  ask(options: AskOptions): Promise<Answer>;
  close(): Promise<void>;
}

export interface AskOptions {
  readonly method?: string;
  readonly path: string;
  /** An object is sent as JSON; text and bytes as they are. */
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string | string[]>>;
}

export const fresh = (body: unknown, more: Partial<Result> = {}): Result => ({ body, isFresh: () => true, ...more });

const der = (tag: number, ...parts: (Buffer | string)[]): Buffer => {
  const body = Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'hex') : part)));
  const { length } = body;
  const size = length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255];
  return Buffer.concat([Buffer.from([tag, ...size]), body]);
};

/** The smallest certificate that TLS takes: X.509 v1, CN=localhost, self-signed with a P-256 key made now. */
function makeCertificate(): { cert: string; key: string } {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const ecdsaWithSha256 = der(0x30, der(0x06, '2a8648ce3d040302'));
  const name = der(0x30, der(0x31, der(0x30, der(0x06, '550403'), der(0x0c, Buffer.from('localhost')))));
  const time = (ms: number) => der(0x18, Buffer.from(new Date(ms).toISOString().replaceAll(/[-:T]|\.\d+/g, '')));
  const validity = der(0x30, time(Date.now() - 3_600_000), time(Date.now() + 3_600_000));
  const spki = publicKey.export({ type: 'spki', format: 'der' });
  const body = der(0x30, der(0x02, '01'), ecdsaWithSha256, name, validity, name, spki);
  const signature = der(0x03, '00', sign('sha256', body, privateKey));
  const lines = der(0x30, body, ecdsaWithSha256, signature)
    .toString('base64')
    .replaceAll(/(.{64})/g, '$1\n');
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  };
}

const certificate = makeCertificate();

export async function startTestServer(
  options: { requestDeadlineMs?: number; authenticate?: Backend['authenticate'] } & HttpsOptions = {},
): Promise<TestServer> {
  const logged: string[] = [];
  const keep = (fields: object, message?: string) => void logged.push(JSON.stringify({ ...fields, message }));
  const edge: Edge = {
    log: { info: keep, error: keep },
    requestDeadlineMs: options.requestDeadlineMs ?? 10_000,
    draining: false,
  };
  const names = routes.map(({ operation }) => operation);
  const operations = Object.fromEntries(
    names.map((operation) => [
      operation,
      (call: Call) => {
        test.calls.push({ operation, call });
        return test.operate(call, operation);
      },
    ]),
  ) as Backend['operations'];
  const backend: Backend = {
    operations,
    authenticate: options.authenticate ?? authenticateFake,
    refuse: (refusal) => {
      test.refused.push(refusal);
      return test.refuse(refusal);
    },
    health: () => ({ reasons: test.obstacles, warnings: [] }),
  };
  const https = createHttpsServer(certificate, createApp(edge, backend), options);
  const { server } = https;
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const test: TestServer = {
    ...{ server, https, edge, port, logged, refused: [], calls: [], obstacles: [] },
    operate: () => fresh({ ok: true }),
    refuse: () => Promise.resolve(),
    ask: (asked) => ask(port, asked),
    async close() {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
  return test;
}

function authenticateFake(req: { headers: IncomingHttpHeaders }): ReturnType<Backend['authenticate']> {
  if (req.headers.authorization === `Bearer ${goodToken}`) return { principal, known: true };
  if (req.headers.authorization === 'Bearer stranger')
    return { principal: { agent: 'x', system: false }, known: false };
  throw new FieldkeepError('unauthenticated', 'There is no Authorization header.');
}

/** One request on a connection of its own, as `hr-agent` unless the headers say otherwise. */
export function ask(port: number, { method, path, body, headers }: AskOptions): Promise<Answer> {
  const raw = body === undefined || typeof body === 'string' || Buffer.isBuffer(body);
  const bytes = raw ? body : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const request = httpsRequest(
      {
        ...{ host: '127.0.0.1', port, path, agent: false, rejectUnauthorized: false },
        method: method ?? (body === undefined ? 'GET' : 'POST'),
        headers: {
          authorization: `Bearer ${goodToken}`,
          ...(bytes !== undefined && {
            'content-type': 'application/json',
            'content-length': Buffer.byteLength(bytes),
          }),
          ...headers,
        },
      },
      (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString('utf8');
          const json = /json/.test(response.headers['content-type'] ?? '') && text !== '';
          const parsed = json ? (JSON.parse(text) as Record<string, unknown>) : {};
          resolve({ status: response.statusCode!, headers: response.headers, text, body: parsed });
        });
      },
    );
    request.on('error', reject);
    request.end(bytes);
  });
}
