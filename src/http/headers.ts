/**
 * The headers that every answer has. They are helmet's, unchanged, collected once from helmet itself: setting a dozen
 * constant headers one by one on every answer costs more than the rest of the HTTP edge.
 */
import helmet from 'helmet';
import type { IncomingMessage, ServerResponse } from 'node:http';

function collectHelmet(): string[] {
  const headers: string[] = [];
  const sink = {
    setHeader: (name: string, value: string | number) => void headers.push(name, String(value)),
    removeHeader: () => undefined,
  };
  let finished = false;
  helmet()({} as IncomingMessage, sink as unknown as ServerResponse, (error?: unknown) => {
    finished = error === undefined;
  });
  if (!finished || headers.length === 0) throw new Error('helmet did not set its headers synchronously');
  return headers;
}

/** Name, value, name, value, …; no answer may be cached anywhere. */
export const securityHeaders: readonly string[] = Object.freeze([...collectHelmet(), 'Cache-Control', 'no-store']);
