/**
 * The shapes of every request of API v1; answers.ts has those of the answers. One set of schemas validates what comes in and
 * describes it in `/openapi.json`, so the two cannot differ.
 *
 * Requests are strict: a field that nobody reads is an error, because it was meant to do something. Answers may gain
 * fields. What needs the policy, a key or the database (does this class exist, is this an envelope, is the text too long
 * in bytes for its class) is not decided here but by the operation, after the decision.
 */
import { z } from 'zod';
import { FieldkeepError } from '../errors.ts';
import { checkText, joinPath, showName } from './body.ts';

export const batchItemsMax = 1000;

export const className = z
  .string()
  .min(1)
  .max(64)
  .meta({ description: 'A field class of the policy.', example: 'ssn' });
/** The limit that counts is 16384 bytes of UTF-8, found when sealing; no text with more characters can keep to it. */
const value = z.string().max(16_384).meta({ description: 'The text to protect, at most 16384 bytes of UTF-8.' });
/** Unbounded here (the body is bounded): text that is too long to be an envelope is `envelope_malformed`. */
export const envelope = z.string().meta({ description: 'fe1.<family>.<version>.<base64url>' });
export const view = z.enum(['full', 'last4', 'bucket', 'masked', 'exists']);
const purpose = z.string().min(1).max(128).meta({ description: 'Why, as the grant may require it.' });
export const ref = z.string().max(128).meta({ description: 'Comes back with the answer to this item.' });
const part = z.string().max(512);
const context = z.strictObject({
  table: part.min(1).meta({ example: 'demo.employees' }),
  column: part.min(1).meta({ example: 'ssn' }),
  row: part.meta({ description: 'The key of the row as Postgres spells it.', example: '1' }),
});
const columnContext = context.omit({ row: true });

const encryptOne = z.strictObject({ class: className, value, context, purpose: purpose.optional() });
const decryptOne = z.strictObject({ envelope, context, view: view.optional(), purpose: purpose.optional() });
const reencryptOne = z.strictObject({
  envelope,
  context,
  to: context.optional().meta({ description: 'Another place for the value; takes the scope move:<class> as well.' }),
});
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
export const destroyBody: BodySchema = compiled(
  z.strictObject({
    reason,
    withoutGuards: z
      .boolean()
      .optional()
      .meta({ description: 'Where a guard or the search of undeclared columns cannot be had: waives them.' }),
  }),
);
export const callOffBody: BodySchema = compiled(z.strictObject({ reason }));
export const decisionBody: BodySchema = compiled(z.strictObject({ decision: z.enum(['approve', 'deny']), reason }));

function compiled(one: z.ZodType<object>, batch?: z.ZodType<object>): BodySchema {
  return { one: z.compile(one), ...(batch && { batch: z.compile(batch) }) };
}

// ── path and query parameters: texts, each at most once ────────────────────────────────────────────────────────────

const name = z.string().min(1).max(128);
export const time = z.iso.datetime({ offset: true });
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
