/**
 * Request ids: UUIDv7 (RFC 9562), always made here, because value digests in the audit log are salted with them.
 * What a client sends as `X-Request-Id` goes into the log line and nowhere else.
 */
import { randomUUID } from 'node:crypto';

/** 48 bits of Unix milliseconds, version 7, and the 74 random bits and the variant of a UUIDv4. */
export function newRequestId(): string {
  const time = Date.now().toString(16).padStart(12, '0');
  return `${time.slice(0, 8)}-${time.slice(8)}-7${randomUUID().slice(15)}`;
}

/** The client's own id if it is a plain short word; anything else is left out, not repaired. */
export function readClientRequestId(header: string | string[] | undefined): string | undefined {
  return typeof header === 'string' && /^[\w.:+=/-]{1,64}$/.test(header) ? header : undefined;
}
