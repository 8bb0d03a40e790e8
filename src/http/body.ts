/**
 * Reads a request's JSON: at most 1 MiB of strict UTF-8, `application/json` and nothing else, and no text in it that
 * Postgres or the context encoding could not hold. Called after authentication only.
 *
 *     413 too long · 415 another type or a content coding · 400 not UTF-8, not JSON, too deep, NUL, lone surrogates
 */
import { isUtf8 } from 'node:buffer';
import type { IncomingMessage } from 'node:http';
import { FieldkeepError } from '../errors.ts';

export const bodyBytesMax = 1_048_576;
/** The deepest request is a batch: body, items, item, context. */
export const depthMax = 8;
/** A refused body is read on and thrown away up to here, so that the client gets to read the answer. */
const discardBytesMax = 16 * bodyBytesMax;

const jsonType = /^application\/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*(?:utf-8|"utf-8")[ \t]*)?;?[ \t]*$/i;

/** The client went away before its request was complete: there is nobody to answer. */
export class RequestAborted extends Error {}

/** Refuses by headers alone: 413, then 415. */
export function checkBodyHeaders(req: IncomingMessage): void {
  const { headers } = req;
  if (Number(headers['content-length'] ?? 0) > bodyBytesMax) {
    discard(req, 0);
    throw tooLarge();
  }
  if (headers['content-encoding'] !== undefined && headers['content-encoding'] !== 'identity') {
    throw new FieldkeepError('unsupported_media_type', 'The body must come without a content coding.');
  }
  const type = headers['content-type'];
  if (type !== 'application/json' && (type === undefined || !jsonType.test(type))) {
    throw new FieldkeepError('unsupported_media_type', 'The body must be application/json in UTF-8.');
  }
}

export function hasBody({ headers }: IncomingMessage): boolean {
  const length = headers['content-length'];
  return headers['transfer-encoding'] !== undefined || (length !== undefined && length !== '0');
}

/** For calls that take none: a body would be an argument that nobody reads. */
export function refuseBody(req: IncomingMessage): void {
  if (hasBody(req)) throw new FieldkeepError('request_invalid', 'This call takes no body.');
}

/**
 * The bytes of the body. Rejects with payload_too_large, with RequestAborted when the client left, and with a
 * FieldkeepError that somebody emits as the stream's `error` to end the waiting (the deadline does).
 */
export function readBody(req: IncomingMessage): Promise<Buffer> {
  // The client may have gone while its token was verified; its stream then says nothing any more.
  if (req.destroyed && !req.complete) return Promise.reject(new RequestAborted());
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const settle = () => req.off('data', onData).off('end', onEnd);
    const onData = (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes <= bodyBytesMax) return void chunks.push(chunk);
      settle();
      discard(req, bytes);
      reject(tooLarge());
    };
    const onEnd = () => {
      settle();
      resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes));
    };
    req.on('data', onData).on('end', onEnd);
    req.on('error', (error) => {
      settle();
      reject(error instanceof FieldkeepError ? error : new RequestAborted());
    });
  });
}

/** Reads on without keeping anything, and cuts the connection of a client that never stops. */
function discard(req: IncomingMessage, bytesSoFar: number): void {
  let bytes = bytesSoFar;
  req.on('error', () => undefined);
  req.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > discardBytesMax) req.destroy();
  });
}

function tooLarge(): FieldkeepError {
  return new FieldkeepError('payload_too_large', `A body has at most ${bodyBytesMax} bytes.`);
}

/** Strict JSON text to a value that `checkTree` accepts. Positions and excerpts of the parser's errors stay here. */
export function parseJson(bytes: Buffer): unknown {
  if (bytes.length === 0) throw new FieldkeepError('request_invalid', 'The body is empty; send a JSON object.');
  if (!isUtf8(bytes)) throw new FieldkeepError('request_invalid', 'The body is not UTF-8.');
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch {
    throw new FieldkeepError('request_invalid', 'The body is not JSON.'); // the parser's message quotes the text
  }
  checkTree(value, '', 1);
  return value;
}

/**
 * Walks everything that came in, before any schema looks at it: bounded depth, no `__proto__` (which a schema could
 * pass over), and no string with NUL (Postgres text cannot hold it) or a lone surrogate (it has no UTF-8).
 */
function checkTree(value: unknown, path: string, depth: number): void {
  if (typeof value === 'string') return checkText(value, path);
  if (typeof value !== 'object' || value === null) return;
  if (depth > depthMax) throw new FieldkeepError('request_invalid', `The body is nested more than ${depthMax} deep.`);
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i += 1) checkTree(value[i], `${path}[${i}]`, depth + 1);
    return;
  }
  for (const key of Object.keys(value)) {
    if (key === '__proto__') throw new FieldkeepError('request_invalid', 'A field is named __proto__.');
    const child = (value as Record<string, unknown>)[key];
    if (typeof child === 'string' && child.isWellFormed() && !child.includes('\0')) continue; // the usual case, no path
    checkTree(child, joinPath(path, key), depth + 1);
  }
}

/** Refuses what cannot be stored; also used for path and query parameters. */
export function checkText(text: string, path: string): void {
  const place = path === '' ? 'The body' : path;
  if (text.includes('\0')) throw new FieldkeepError('request_invalid', `${place}: NUL is not allowed in text.`);
  if (!text.isWellFormed()) {
    throw new FieldkeepError('request_invalid', `${place}: the text holds half of a surrogate pair.`);
  }
}

/** `items[3].context.row`. A name that is no plain word is the client's text and is not repeated. */
export function joinPath(path: string, key: string): string {
  const name = showName(key);
  return path === '' ? name : `${path}.${name}`;
}

export function showName(key: string): string {
  return /^[A-Za-z][A-Za-z_-]{0,31}$/.test(key) ? key : '(unnamed)';
}
