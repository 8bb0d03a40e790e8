/**
 * The HTTPS listener: TLS 1.3 and HTTP/1.1 only, a limit on everything a client can make us wait for or hold, and an
 * orderly end.
 */
import { createServer, type Server } from 'node:https';
import type { RequestListener } from 'node:http';
import type { Duplex } from 'node:stream';
import type { ErrorCode } from '../errors.ts';
import { FieldkeepError } from '../errors.ts';
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

export function createHttpsServer(tls: TlsFiles, listener: RequestListener): Server {
  const server = createServer(
    {
      ...tls,
      minVersion: 'TLSv1.3',
      ALPNProtocols: ['http/1.1'],
      handshakeTimeout: 10_000,
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
  server.on('clientError', answerClientError);
  return server;
}

/** What is not HTTP never reaches the app; it gets a problem too, written by hand. */
function answerClientError(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  const [code, detail]: [ErrorCode, string] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? ['payload_too_large', `The headers have at most ${headerBytesMax} bytes.`]
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT' || error.code === 'ERR_TLS_HANDSHAKE_TIMEOUT'
        ? ['deadline_exceeded', 'The request did not arrive in time.']
        : ['request_invalid', 'This is not an HTTP/1.1 request.'];
  const requestId = newRequestId();
  const { status, body } = toProblem(new FieldkeepError(code, detail), requestId);
  const text = JSON.stringify(body);
  const head = [`HTTP/1.1 ${status} ${String(body.title)}`, 'Connection: close', `X-Request-Id: ${requestId}`];
  head.push(`Content-Type: ${problemMediaType}`, `Content-Length: ${Buffer.byteLength(text)}`);
  for (let i = 0; i < securityHeaders.length; i += 2) head.push(`${securityHeaders[i]}: ${securityHeaders[i + 1]}`);
  socket.end(`${head.join('\r\n')}\r\n\r\n${text}`);
}

/**
 * Stops accepting, lets requests in flight be answered (each answer then ends its connection), closes idle connections,
 * and after `deadlineMs` cuts what is left. Resolves when nothing is open any more.
 */
export async function drain(server: Server, edge: Edge, deadlineMs: number): Promise<void> {
  edge.draining = true;
  const { promise, resolve } = Promise.withResolvers<void>();
  server.close(() => resolve()); // also closes connections that are idle now
  const sweep = setInterval(() => server.closeIdleConnections(), 100);
  const cut = setTimeout(() => server.closeAllConnections(), deadlineMs);
  await promise;
  clearInterval(sweep);
  clearTimeout(cut);
}
