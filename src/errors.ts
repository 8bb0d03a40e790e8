/**
 * The one error of this service. Its code is from a closed list, the list of design's HTTP problems, because every
 * failure that can reach a caller is one of them; the status of a code is known in http/problem.ts only.
 *
 * The detail names things (a class, a family, a version, a field of the request) and never a value, an envelope,
 * a token or a key. Nothing of another library's error is carried along: those print request bodies and credentials.
 */
export const errorCodes = [
  'request_invalid',
  'envelope_malformed',
  'unauthenticated',
  'forbidden',
  'approval_denied',
  'class_unknown',
  'column_unknown',
  'not_found',
  'version_unknown',
  'method_not_allowed',
  'conflict',
  'rotation_in_progress',
  'approval_used',
  'version_destroyed',
  'approval_expired',
  'payload_too_large',
  'unsupported_media_type',
  'decryption_failed',
  'approval_mismatch',
  'rate_limited',
  'internal',
  'vault_unavailable',
  'database_unavailable',
  'audit_unavailable',
  'keys_not_ready',
  'policy_superseded',
  'deadline_exceeded',
] as const;

export type ErrorCode = (typeof errorCodes)[number];

/** Members that a problem may carry beside code and detail; all of them are safe to show. */
interface ErrorExtras {
  /** Seconds after which a repeat is worth it; becomes `Retry-After`. */
  readonly retryAfterSeconds?: number;
  /** The scope that the principal lacks, for `forbidden`. */
  readonly missingScope?: string;
  /** The rotation that is in the way, for `rotation_in_progress`. */
  readonly rotationId?: string;
}

export class FieldkeepError extends Error {
  readonly code: ErrorCode;
  readonly extras: ErrorExtras;

  constructor(code: ErrorCode, detail: string, extras: ErrorExtras = {}) {
    super(detail);
    this.name = 'FieldkeepError';
    this.code = code;
    this.extras = extras;
  }
}

/**
 * The service cannot start (or a command cannot run) and a person has to act: the message is one clear sentence that
 * says what is wrong and where. `main.ts` and the scripts print it without a stack and exit with code 1.
 */
export class StartupError extends Error {
  constructor(sentence: string) {
    super(sentence);
    this.name = 'StartupError';
  }
}

/** The single failure of everything that happens after an envelope's grammar was accepted (design, section 2). */
export function decryptionFailed(): FieldkeepError {
  return new FieldkeepError('decryption_failed', 'The envelope does not open in this context.');
}

/**
 * What may be logged of an error: of ours its code and words, of any other its name, its code (an SQLSTATE, an errno) and
 * up to five places, without its message, which may repeat a value.
 */
export function describeError(error: unknown): { name: string; code?: string; detail?: string; at: string[] } {
  if (!(error instanceof Error)) return { name: typeof error, at: [] };
  if (error instanceof FieldkeepError) return { name: error.name, code: error.code, detail: error.message, at: [] };
  const stack = typeof error.stack === 'string' ? error.stack : '';
  const head = stack.indexOf(error.message);
  const frames = head === -1 ? '' : stack.slice(head + error.message.length);
  const at = Array.from(
    frames.matchAll(/([\w.-]+\.(?:ts|js|mjs|cjs)):(\d+):\d+\)?$/gm),
    ([, file, line]) => `${file}:${line}`,
  );
  const code =
    'code' in error && typeof error.code === 'string' && /^\w{2,40}$/.test(error.code) ? error.code : undefined;
  const name = /^\w{1,64}$/.test(error.name) ? error.name : 'Error';
  return { name, ...(code !== undefined && { code }), at: at.slice(0, 5) };
}
