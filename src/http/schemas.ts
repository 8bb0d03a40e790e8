/**
 * The shapes of every request and answer of API v1. One set of schemas validates what comes in and describes it in
 * `/openapi.json`, so the two cannot differ.
 *
 * Requests are strict: a field that nobody reads is an error, because it was meant to do something. Answers may gain
 * fields. What needs the policy, a key or the database (does this class exist, is this an envelope, is the text too long
 * in bytes for its class) is not decided here but by the operation, after the decision.
 */
import { z } from 'zod';
import { FieldkeepError } from '../errors.ts';
import { checkText, joinPath, showName } from './body.ts';

export const batchItemsMax = 1000;

const className = z.string().min(1).max(64).meta({ description: 'A field class of the policy.', example: 'ssn' });
/** The limit that counts is 16384 bytes of UTF-8, found when sealing; no text with more characters can keep to it. */
const value = z.string().max(16_384).meta({ description: 'The text to protect, at most 16384 bytes of UTF-8.' });
/** Unbounded here (the body is bounded): text that is too long to be an envelope is `envelope_malformed`. */
const envelope = z.string().meta({ description: 'fe1.<family>.<version>.<base64url>' });
const view = z.enum(['full', 'last4', 'bucket', 'masked', 'exists']);
const purpose = z.string().min(1).max(128).meta({ description: 'Why, as the grant may require it.' });
const ref = z.string().max(128).meta({ description: 'Comes back with the answer to this item.' });
const part = z.string().max(512);
const context = z.strictObject({
  table: part.min(1).meta({ example: 'demo.employees' }),
  column: part.min(1).meta({ example: 'ssn' }),
  row: part.meta({ description: 'The key of the row as Postgres spells it.', example: '1' }),
});
const columnContext = context.omit({ row: true });

const encryptOne = z.strictObject({ class: className, value, context, purpose: purpose.optional() });
const decryptOne = z.strictObject({ envelope, context, view: view.optional(), purpose: purpose.optional() });
const reencryptOne = z.strictObject({ envelope, context, to: context.optional() });
const matchOne = z.strictObject({ envelope, context, candidate: value, purpose: purpose.optional() });

/** A batch takes the single form's fields in every item; view and purpose beside the items hold where an item has none. */
function batchOf<T extends z.ZodObject, S extends z.ZodRawShape>(one: T, shared: S) {
  const items = z
    .array(one.extend({ ref: ref.optional() }))
    .min(1)
    .max(batchItemsMax);
  return z.strictObject({ items, ...shared });
}

const sharedPurpose = { purpose: purpose.optional() };

export type QuerySchema = z.ZodObject;
export type AnswerSchema = z.ZodType;

/** `items` in the body makes a request a batch. */
export interface BodySchema {
  readonly one: z.ZodType<object>;
  readonly batch?: z.ZodType<object>;
  /** No body at all is an empty object. */
  readonly optional?: true;
}

export const encryptBody: BodySchema = compiled(encryptOne, batchOf(encryptOne, sharedPurpose));
export const decryptBody: BodySchema = compiled(
  decryptOne,
  batchOf(decryptOne, { view: view.optional(), ...sharedPurpose }),
);
export const reencryptBody: BodySchema = compiled(reencryptOne, batchOf(reencryptOne, {}));
export const matchBody: BodySchema = compiled(matchOne, batchOf(matchOne, sharedPurpose));
export const searchTokensBody: BodySchema = compiled(
  z.strictObject({ class: className, value, context: columnContext, index: z.string().min(1).max(64).optional() }),
);
export const rotateBody: BodySchema = compiled(
  z.strictObject({
    reason: z.string().max(500).optional(),
    compromised: z.boolean().optional(),
    dryRun: z.boolean().optional(),
  }),
);
const reason = z.string().min(1).max(500).meta({ description: 'For the people who read the audit log.' });
export const controlBody: BodySchema = { ...compiled(z.strictObject({ reason: reason.optional() })), optional: true };
export const waiveBody: BodySchema = compiled(z.strictObject({ reason }));
const to = z
  .string()
  .min(1)
  .max(63)
  .meta({ description: 'The column that gets the plaintext; the source where absent.' });
export const undoBody: BodySchema = compiled(z.strictObject({ reason, to: to.optional() }));
export const leaveBody: BodySchema = {
  ...compiled(z.strictObject({ reason: reason.optional(), to: to.optional() })),
  optional: true,
};
export const decisionBody: BodySchema = compiled(z.strictObject({ decision: z.enum(['approve', 'deny']), reason }));

function compiled(one: z.ZodType<object>, batch?: z.ZodType<object>): BodySchema {
  return { one: z.compile(one), ...(batch && { batch: z.compile(batch) }) };
}

// ── path and query parameters: texts, each at most once ────────────────────────────────────────────────────────────

const name = z.string().min(1).max(128);
const time = z.iso.datetime({ offset: true });
const page = {
  limit: z
    .string()
    .regex(/^(?:[1-9][0-9]{0,2}|1000)$/)
    .optional()
    .meta({ description: '1 to 1000.' }),
  cursor: z.string().min(1).max(256).optional(),
};

export const noQuery = z.strictObject({});
export const pageQuery = z.strictObject(page);
export const rotationsQuery = z.strictObject({ family: name.optional(), ...page });
export const entriesQuery = z.strictObject({
  tenant: name.optional(),
  agent: name.optional(),
  person: name.optional(),
  class: name.optional(),
  view: view.optional(),
  action: name.optional(),
  outcome: z.enum(['ok', 'denied', 'failed', 'partial']).optional(),
  rowDigest: name.optional(),
  requestId: name.optional(),
  from: time.optional().meta({ description: 'Inclusive.' }),
  to: time.optional().meta({ description: 'Exclusive.' }),
  ...page,
});

// ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────────

const version = z.int().min(1);
const indexes = z
  .record(z.string(), z.string().nullable())
  .meta({ description: 'Index name → token for the index column; null where nothing of the value is indexed.' });
const revealed = z.union([z.string(), z.literal(true)]).meta({ description: '`true` where the view is `exists`.' });

const encrypted = z.object({ envelope, version, masked: z.string(), indexes: indexes.optional() });
const decrypted = z.object({ class: className, version, view, value: revealed });
const reencrypted = z.object({ envelope, version, indexes: indexes.optional() });
const matched = z.object({ match: z.boolean() });
const itemError = z.object({ ref: ref.optional(), error: z.object({ code: z.string(), detail: z.string() }) });

function oneOrItems<T extends z.ZodObject>(one: T) {
  return z.union([one, z.object({ items: z.array(z.union([one.extend({ ref: ref.optional() }), itemError])) })]);
}

function listOf<T extends z.ZodType>(item: T) {
  return z.object({ items: z.array(item), nextCursor: z.string().optional() });
}

const keyFamily = z.object({
  family: z.string(),
  active: version.optional(),
  versions: z.array(
    z.object({
      version,
      state: z.enum(['pending', 'active', 'decrypt-only', 'compromised', 'destroyed']),
      createdAt: time,
      activatedAt: time.optional(),
      lastUsedAt: time.optional().meta({ description: 'By a request, to within a few seconds.' }),
    }),
  ),
  census: z.array(
    z.object({
      table: z.string(),
      column: z.string(),
      versions: z
        .record(z.string(), z.int())
        .meta({ description: 'Values by version; 0 is plaintext, -1 text that only begins like an envelope.' }),
    }),
  ),
  nextRotationAt: time.optional(),
  warnings: z
    .array(z.string())
    .optional()
    .meta({ description: 'What makes its rotations slow or stands in their way.' }),
});
const columnProgress = z.object({
  table: z.string(),
  column: z.string(),
  total: z.int(),
  done: z.int(),
  left: z.int(),
  failed: z.int(),
});
const prediction = z.object({
  madeAt: time,
  values: z.int(),
  seconds: z.number(),
  valuesPerSecond: z.number(),
  walBytes: z.int(),
});
const rotation = z.object({
  id: z.string().optional().meta({ description: 'Absent in the answer to a dry run.' }),
  kind: z.enum(['rotation', 'adoption', 'verification', 'finish', 'undo', 'leave']).optional(),
  family: z.string().optional().meta({ description: 'Absent for an adoption, which may span families.' }),
  version: version.optional(),
  source: z
    .string()
    .optional()
    .meta({ description: 'The column that gets or loses the plaintext, where it is another.' }),
  phase: z.enum([
    'dry-run',
    'pending',
    'active',
    're-encrypting',
    'verifying',
    'blocked',
    'paused',
    'done',
    'cancelled',
  ]),
  columns: z.array(columnProgress),
  compromised: z.literal(true).optional().meta({ description: 'An emergency: neither rate nor hours hold.' }),
  rowsPerSecond: z.number().optional(),
  etaSeconds: z.number().optional(),
  waitingFor: z.string().optional(),
  throttle: z.string().optional().meta({ description: 'What slows it down now.' }),
  blocked: z.string().optional().meta({ description: 'What a person has to do.' }),
  cancelled: z.string().optional().meta({ description: 'Why it ended without being done.' }),
  retrying: z.string().optional(),
  waived: z.int().optional().meta({ description: 'Values that were given up by approval.' }),
  pass: z.int().optional(),
  predicted: prediction
    .optional()
    .meta({ description: 'What the last dry run before it said; of a dry run: what it says.' }),
  actual: z
    .object({ values: z.int(), seconds: z.number(), walBytes: z.int().optional() })
    .optional()
    .meta({ description: 'What became of it. walBytes counts what everybody wrote meanwhile.' }),
  sample: z
    .object({ values: z.int(), failed: z.int() })
    .optional()
    .meta({ description: 'Of a dry run: values tried.' }),
  basis: z.enum(['measured', 'assumed']).optional(),
  warnings: z.array(z.string()).optional().meta({ description: 'What will make it slow or stand in its way.' }),
  reason: z.string().optional(),
  requestedBy: z.string().optional(),
  createdAt: time.optional(),
  activatedAt: time.optional(),
  doneAt: time.optional(),
});
const adoption = z.object({
  table: z.string(),
  column: z.string(),
  class: className,
  from: z.string().optional().meta({ description: 'The column that it is filled from; absent: in place.' }),
  tenants: z.array(z.string()).optional(),
  state: z.enum(['waiting', 'filling', 'filled', 'finishing', 'finished', 'undoing', 'undone']),
  startedAt: time.optional(),
  verifiedAt: time.optional().meta({ description: 'Every envelope was opened and equal to its source.' }),
  finishedAt: time.optional(),
  undoneAt: time.optional(),
  unfilled: z.int().optional().meta({ description: 'Values that wait for their envelope.' }),
  plaintext: z.int().optional().meta({ description: 'Values in the source, with an envelope beside them or not.' }),
  problem: z.string().optional(),
  run: rotation.optional().meta({ description: 'The newest run about this column alone.' }),
  remains: z.array(z.string()).optional().meta({ description: 'Where plaintext is left, and until when.' }),
});
const principal = z.object({ system: z.boolean(), agent: z.string().optional(), person: z.string().optional() });
const failure = z.object({
  table: z.string(),
  column: z.string(),
  row: z.string(),
  code: z.string(),
  notedAt: time,
  waivedAt: time.optional().meta({ description: 'Given up by approval.' }),
});
const failedColumns = z
  .array(z.object({ table: z.string(), column: z.string(), rows: z.int(), digest: z.string() }))
  .meta({ description: 'Rows by column; the digest is SHA-256 over each row and its code.' });
const waiver = z.object({
  rotationId: z.string(),
  approvalId: z.string(),
  waived: z.int().meta({ description: 'Rows that were given up.' }),
  failures: failedColumns,
});
const requester = z.object({ agent: z.string().optional(), person: z.string().optional() });
const approval = z.object({
  id: z.string(),
  status: z.enum(['pending', 'approved', 'denied', 'expired', 'used']),
  action: z.enum(['destroy', 'waive', 'decrypt']),
  about: z.string().meta({ description: 'The path of what it is done to.' }),
  details: z.object({
    failures: failedColumns.optional(),
    decrypts: z
      .object({ table: z.string(), column: z.string(), to: z.string() })
      .optional()
      .meta({ description: 'The column whose values are to be plaintext again, and where.' }),
  }),
  reason: z.string(),
  requestedBy: requester,
  createdAt: time,
  expiresAt: time.meta({ description: 'To decide by; once approved, to use it by.' }),
  required: z.int(),
  received: z.int(),
  approvers: z.array(z.string()).meta({ description: 'The people whose decision counts.' }),
  decisions: z.array(
    z.object({ person: z.string(), decision: z.enum(['approve', 'deny']), reason: z.string(), decidedAt: time }),
  ),
  requestDigest: z.string().meta({ description: 'base64url of SHA-256 over the request as RFC 8785 JSON.' }),
  usedAt: time.optional(),
});
const entry = z.object({ index: z.int().min(0), entry: z.record(z.string(), z.union([z.string(), z.number()])) });

export const encryptAnswer = oneOrItems(encrypted);
export const decryptAnswer = oneOrItems(decrypted);
export const reencryptAnswer = oneOrItems(reencrypted);
export const matchAnswer = oneOrItems(matched);
export const searchTokensAnswer = z.object({ tokens: z.array(z.string()), expiresAt: time });
export const whoamiAnswer = z.object({ principal, tenant: z.string().optional(), grants: z.array(z.string()) });
export const keyAnswer = keyFamily;
export const keysAnswer = listOf(keyFamily);
export const rotationAnswer = rotation;
export const rotationsAnswer = listOf(rotation);
export const failuresAnswer = listOf(failure);
export const waiverAnswer = waiver;
export const adoptionAnswer = adoption;
export const adoptionsAnswer = listOf(adoption);
export const approvalAnswer = approval;
export const approvalsAnswer = listOf(approval);
/** The answer to a call that waits until other people agree. */
export const pendingAnswer = z.object({
  status: z.literal('pending'),
  approvalId: z.string(),
  expiresAt: time,
  required: z.int(),
  received: z.int(),
  requestDigest: z.string(),
});
export const entriesAnswer = listOf(entry);
export const problemAnswer = z.object({
  type: z.string(),
  title: z.string(),
  status: z.int(),
  detail: z.string(),
  code: z.string(),
  requestId: z.string(),
  missingScope: z.string().optional(),
  rotationId: z.string().optional(),
});

/** A schema as `/openapi.json` shows it. `$schema` would say the same for every one: OpenAPI 3.1 is JSON Schema 2020-12. */
export function jsonSchema(schema: z.core.$ZodType): Record<string, unknown> {
  const described: Record<string, unknown> = { ...z.toJSONSchema(schema, { io: 'input' }) };
  delete described['$schema'];
  return described;
}

// ── checking ───────────────────────────────────────────────────────────────────────────────────────────────────────

/** The body as its schema has it; 400 naming the first places that are wrong and what is expected there. */
export function checkBody(schema: BodySchema, body: unknown): object {
  const batch = schema.batch !== undefined && typeof body === 'object' && body !== null && 'items' in body;
  const parsed = (batch ? schema.batch : schema.one).safeParse(body);
  if (parsed.success) return parsed.data;
  throw refuse(parsed.error, '');
}

const noParameters: Readonly<Record<string, string | undefined>> = Object.freeze({});

/** The query string as its schema has it. Unknown and repeated parameters are refused, as unknown fields are. */
export function checkQuery(schema: z.ZodObject, url: string): Readonly<Record<string, string | undefined>> {
  const start = url.indexOf('?');
  if (start === -1 || start === url.length - 1) return noParameters;
  const given: Record<string, string> = {};
  for (const [key, text] of new URLSearchParams(url.slice(start + 1))) {
    if (!Object.hasOwn(schema.shape, key)) {
      throw new FieldkeepError('request_invalid', `query: unknown parameter ${showName(key)}.`);
    }
    if (Object.hasOwn(given, key)) throw new FieldkeepError('request_invalid', `query.${key}: given more than once.`);
    checkText(text, `query.${key}`);
    given[key] = text;
  }
  const parsed = schema.safeParse(given);
  if (parsed.success) return parsed.data as Record<string, string | undefined>;
  throw refuse(parsed.error, 'query');
}

/** The longest is a column by name: database:schema.table.column. */
const paramCharsMax = 256;

/** Path parameters: short text without NUL. Whether they name something is the operation's to say. */
export function checkParams(params: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  for (const [key, text] of Object.entries(params)) {
    checkText(text, key);
    if (text.length > paramCharsMax) {
      throw new FieldkeepError('request_invalid', `${key}: at most ${paramCharsMax} characters.`);
    }
  }
  return params;
}

function refuse(error: z.ZodError, root: string): FieldkeepError {
  const places = error.issues.slice(0, 5).map((issue) => describe(issue, root));
  return new FieldkeepError('request_invalid', places.join(' '));
}

/** One sentence for one issue: the path and what is expected. Zod's own messages are not used: no text passes through. */
function describe(issue: z.core.$ZodIssue, root: string): string {
  let path = root;
  for (const key of issue.path) path = typeof key === 'number' ? `${path}[${key}]` : joinPath(path, String(key));
  const place = path === '' ? 'The body' : path;
  switch (issue.code) {
    case 'invalid_type':
      return `${place}: expected ${issue.expected}.`;
    case 'unrecognized_keys':
      return `${place}: unknown field ${issue.keys.map(showName).join(', ')}.`;
    case 'too_big':
      return `${place}: at most ${issue.maximum} ${issue.origin === 'array' ? 'items' : 'characters'}.`;
    case 'too_small':
      return `${place}: at least ${issue.minimum} ${issue.origin === 'array' ? 'items' : 'characters'}.`;
    case 'invalid_value':
      return `${place}: expected one of ${issue.values.map(String).join(', ')}.`;
    case 'invalid_format':
    case 'invalid_union':
    case 'invalid_key':
    case 'invalid_element':
    case 'not_multiple_of':
    case 'custom':
      return `${place}: not in the expected form.`;
  }
}
