/**
 * Problems (RFC 9457): the only place that knows which HTTP status an error code has.
 *
 * What a caller reads comes from a FieldkeepError, whose details name things and never values. Any other error is
 * `internal`: its message may carry anything, so it is neither answered nor logged; its name and the places in our
 * code that it passed are.
 */
import { FieldkeepError, type ErrorCode } from '../errors.ts';
import { present } from '../present.ts';

export const statuses: Readonly<Record<ErrorCode, number>> = {
  request_invalid: 400,
  envelope_malformed: 400,
  unauthenticated: 401,
  forbidden: 403,
  approval_denied: 403,
  class_unknown: 404,
  column_unknown: 404,
  not_found: 404,
  version_unknown: 404,
  method_not_allowed: 405,
  conflict: 409,
  rotation_in_progress: 409,
  approval_used: 409,
  version_destroyed: 410,
  approval_expired: 410,
  payload_too_large: 413,
  unsupported_media_type: 415,
  decryption_failed: 422,
  approval_mismatch: 422,
  rate_limited: 429,
  internal: 500,
  vault_unavailable: 503,
  database_unavailable: 503,
  audit_unavailable: 503,
  keys_not_ready: 503,
  policy_superseded: 503,
  deadline_exceeded: 504,
};

const titles: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  405: 'Method Not Allowed',
  409: 'Conflict',
  410: 'Gone',
  413: 'Content Too Large',
  415: 'Unsupported Media Type',
  422: 'Unprocessable Content',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
};

export const problemMediaType = 'application/problem+json';

/** Seconds for `Retry-After` where the error does not say; 429 and 503 always carry one. */
const retryAfterSeconds = 1;

export interface Problem {
  readonly status: number;
  readonly code: ErrorCode;
  /** The JSON members, in the order they are shown. */
  readonly body: Readonly<Record<string, unknown>>;
  /** Name, value, name, value, … */
  readonly headers: readonly string[];
}

/** What the answer to `error` looks like; unknown errors become `internal`. */
export function toProblem(error: unknown, requestId: string): Problem {
  const known = error instanceof FieldkeepError ? error : new FieldkeepError('internal', 'Something went wrong here.');
  const { code, extras } = known;
  const status = statuses[code];
  const body = {
    type: `urn:fieldkeep:problem:${code}`,
    title: titles[status],
    status,
    detail: known.message,
    code,
    requestId,
    ...present({ missingScope: extras.missingScope, rotationId: extras.rotationId }),
  };
  const headers: string[] = [];
  if (status === 401) headers.push('WWW-Authenticate', 'Bearer realm="fieldkeep"');
  if (status === 429 || status === 503)
    headers.push('Retry-After', String(extras.retryAfterSeconds ?? retryAfterSeconds));
  return { status, code, body, headers };
}
