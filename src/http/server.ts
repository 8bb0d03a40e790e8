/**
 * The HTTPS listener: TLS 1.3 and HTTP/1.1 only, a limit on everything a client can make us wait for or hold, and an
 * orderly end. Who may stay connected, door.ts knows.
 */
import { createServer, type Server } from 'node:https';
import type { RequestListener } from 'node:http';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { FieldkeepError, StartupError, type ErrorCode } from '../errors.ts';
import { Door } from './door.ts';
import type { Edge } from './exchange.ts';
import { securityHeaders } from './headers.ts';
import { problemMediaType, toProblem } from './problem.ts';
import { newRequestId } from './request-id.ts';

export interface TlsFiles {
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
}

/** Longest token (8 KiB) and the usual headers fit; a header section beyond that is an attack or a mistake. */
const headerBytesMax = 16_384;

const handshakeMaxMs = 10_000;
/** Without a byte read or written for so long, a connection with a request under way is cut: nobody reads the answer. */
const silenceMaxMs = 30_000;
/** Whoever is told that this was no request has so long to read it. */
const lingerMs = 1_000;
/** Once the port is closed, connections that nobody with a good credential uses may finish what they have begun for so long. */
const strangersMaxMs = 1_000;

export interface HttpsServer {
  readonly server: Server;
  readonly door: Door;
}

export interface HttpsOptions {
  readonly maxConnections?: number;
  readonly handshakeMaxMs?: number;
}

const maxConnectionsDefault = 1_000;
const maxConnectionsMost = 10_000;
const maxConnectionsLeast = 16;
/** Of Postgres, Vault, targets, the policy file and the port for metrics. */
const descriptorsOfOthers = 128;

/** File descriptors that this process may have open; undefined where the system does not say. */
function findDescriptorLimit(): number | undefined {
  Object.assign(process.report, { excludeNetwork: true }); // it would look up names
  const { userLimits } = process.report.getReport() as { userLimits?: { open_files?: { soft: number | 'unlimited' } } };
  const soft = userLimits?.open_files?.soft;
  return typeof soft === 'number' ? soft : undefined;
}

/** Connections at most: as wanted, else what the descriptors have room for. Errors: StartupError when there are too few. */
export function chooseMaxConnections(wanted: number | undefined, descriptors = findDescriptorLimit()): number {
  if (descriptors === undefined) return wanted ?? maxConnectionsDefault;
  const room = descriptors - descriptorsOfOthers;
  if ((wanted ?? maxConnectionsLeast) > room) {
    const needed = (wanted ?? maxConnectionsLeast) + descriptorsOfOthers;
    throw new StartupError(
      `${wanted ?? maxConnectionsLeast} connections need ${needed} file descriptors, and the limit is ${descriptors}: raise it (ulimit -n), or set MAX_CONNECTIONS lower.`,
    );
  }
  return wanted ?? Math.min(room, maxConnectionsMost);
}

export function createHttpsServer(tls: TlsFiles, listener: RequestListener, options: HttpsOptions = {}): HttpsServer {
  const server = createServer(
    {
      ...tls,
      minVersion: 'TLSv1.3',
      ALPNProtocols: ['http/1.1'],
      maxHeaderSize: headerBytesMax,
      headersTimeout: 10_000,
      requestTimeout: 30_000,
      keepAliveTimeout: 65_000, // longer than the usual 60 s of load balancers, which then close first
      connectionsCheckingInterval: 5_000,
    },
    listener,
  );
  server.maxHeadersCount = 100;
  server.maxRequestsPerSocket = 100_000; // spreads long-lived clients over instances now and then
  server.timeout = silenceMaxMs;
  server.on('clientError', answerClientError);
  const max = options.maxConnections ?? maxConnectionsDefault;
  return { server, door: new Door(server, { max, handshakeMaxMs: options.handshakeMaxMs ?? handshakeMaxMs }) };
}

/** What is not HTTP never reaches the app; it gets a problem too, written by hand. */
function answerClientError(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  const [code, detail]: [ErrorCode, string] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? ['payload_too_large', `The headers have at most ${headerBytesMax} bytes.`]
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? ['deadline_exceeded', 'The request did not arrive in time.']
        : ['request_invalid', 'This is not an HTTP/1.1 request.'];
  const requestId = newRequestId();
  const { status, body } = toProblem(new FieldkeepError(code, detail), requestId);
  const text = JSON.stringify(body);
  const head = [`HTTP/1.1 ${status} ${String(body.title)}`, 'Connection: close', `X-Request-Id: ${requestId}`];
  head.push(`Content-Type: ${problemMediaType}`, `Content-Length: ${Buffer.byteLength(text)}`);
  for (let i = 0; i < securityHeaders.length; i += 2) head.push(`${securityHeaders[i]}: ${securityHeaders[i + 1]}`);
  socket.end(`${head.join('\r\n')}\r\n\r\n${text}`);
  setTimeout(() => socket.destroy(), lingerMs).unref(); // a client that does not hang up holds nothing
}

export interface DrainOptions {
  /** How long the port stays open, so that balancers see that this process is not ready and clients go elsewhere. */
  readonly lameDuckMs?: number;
  /** When what is left is cut, from now on. */
  readonly deadlineMs: number;
}

/**
 * Answers go on and each ends its connection; after the lame-duck time the port closes, and connections that are idle. Resolves
 * when nothing is open any more, at the latest at the deadline.
 */
export async function drain(
  { server, door }: HttpsServer,
  edge: Edge,
  { lameDuckMs = 0, deadlineMs }: DrainOptions,
): Promise<void> {
  const startedAt = performance.now();
  edge.draining = true;
  if (lameDuckMs > 0) await sleep(Math.min(lameDuckMs, deadlineMs));
  const { promise, resolve } = Promise.withResolvers<void>();
  server.close(() => resolve()); // also closes connections that are idle now
  door.cutHandshakes();
  const sweep = setInterval(() => server.closeIdleConnections(), 100);
  const timers = [
    setTimeout(() => door.cutStrangers(), strangersMaxMs),
    setTimeout(() => door.cutAll(), Math.max(0, startedAt + deadlineMs - performance.now())),
  ];
  await promise;
  clearInterval(sweep);
  timers.forEach((timer) => clearTimeout(timer));
}
