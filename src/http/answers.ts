/**
 * The shapes of every answer of API v1, for `/openapi.json` and for the tests that hold answers to it. They may gain fields.
 */
import { z } from 'zod';
import { className, envelope, ref, time, view } from './schemas.ts';

export type AnswerSchema = z.ZodType;

const version = z.int().min(1);
const indexes = z
  .record(z.string(), z.string().nullable())
  .meta({ description: 'Index name → token for the index column; null where nothing of the value is indexed.' });
const revealed = z.union([z.string(), z.literal(true)]).meta({ description: '`true` where the view is `exists`.' });

const itemError = z.object({ ref: ref.optional(), error: z.object({ code: z.string(), detail: z.string() }) });

function oneOrItems<T extends z.ZodObject>(one: T) {
  return z.union([one, z.object({ items: z.array(z.union([one.extend({ ref: ref.optional() }), itemError])) })]);
}

function listOf<T extends z.ZodType>(item: T) {
  return z.object({ items: z.array(item), nextCursor: z.string().optional() });
}

const countedAt = time.optional().meta({
  description: 'Large tables are counted beside the call. Absent, with the counts, until that was done once.',
});
const missing = z.array(
  z.object({ what: z.string(), until: time.optional().meta({ description: 'When it will be there, by time alone.' }) }),
);
const retirement = z.object({
  guards: z.array(z.object({ table: z.string(), column: z.string(), version, validatedAt: time.optional() })),
  missing,
  destroyable: z.boolean().meta({ description: 'Nothing is missing but what counting and searching show.' }),
  approvals: z.int().optional().meta({ description: 'How many people have to agree then.' }),
});
const destruction = z.object({
  family: z.string(),
  version,
  status: z.enum(['destroying', 'calling-off', 'destroyed', 'refused']),
  approvalId: z.string(),
  askedAt: time,
  destroyedAt: time.optional(),
  certificate: z.enum(['unsigned', 'signed']).optional(),
  refused: z
    .string()
    .optional()
    .meta({ description: 'What was not as it was agreed to, right before the end, or who called it off.' }),
  problem: z.string().optional().meta({ description: 'What keeps it from its end now.' }),
});
export const keyAnswer = z.object({
  family: z.string(),
  active: version.optional(),
  versions: z.array(
    z.object({
      version,
      state: z.enum(['pending', 'active', 'decrypt-only', 'compromised', 'destroyed']),
      createdAt: time,
      activatedAt: time.optional(),
      lastUsedAt: time.optional().meta({ description: 'By a request, to within a few seconds.' }),
      retirement: retirement.optional().meta({ description: 'What it lacks before it may be destroyed.' }),
      destruction: destruction.optional(),
    }),
  ),
  census: z.array(
    z.object({
      table: z.string(),
      column: z.string(),
      versions: z
        .record(z.string(), z.int())
        .optional()
        .meta({ description: 'Values by version; 0 is plaintext, -1 text that only begins like an envelope.' }),
      countedAt,
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
export const rotationAnswer = z.object({
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
  dryRun: z.literal(true).optional(),
  nextRotationAt: time.optional().meta({ description: 'Of a dry run: when the schedule would start it.' }),
  warnings: z.array(z.string()).optional().meta({ description: 'What will make it slow or stand in its way.' }),
  retirement: z
    .array(retirement.extend({ version }))
    .optional()
    .meta({ description: 'Of the newest one, once it is done: what the versions before lack to be destroyed.' }),
  policyVersion: z.string().optional().meta({ description: 'The policy of the process that last took it further.' }),
  reason: z.string().optional(),
  requestedBy: z.string().optional(),
  createdAt: time.optional(),
  activatedAt: time.optional(),
  doneAt: time.optional(),
});
export const adoptionAnswer = z.object({
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
  countedAt,
  problem: z.string().optional(),
  run: rotationAnswer.optional().meta({ description: 'The newest run about this column alone.' }),
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
export const waiverAnswer = z.object({
  rotationId: z.string(),
  approvalId: z.string(),
  waived: z.int().meta({ description: 'Rows that were given up.' }),
  failures: failedColumns,
});
/** What is known of a version that is to be destroyed. */
const destroyDetails = {
  census: z.array(z.object({ table: z.string(), column: z.string(), values: z.int() })).optional(),
  guards: z
    .array(z.object({ table: z.string(), column: z.string(), version, definition: z.string(), validatedAt: time }))
    .optional(),
  horizons: z.record(z.string(), z.string()).optional(),
  lastUsedAt: time.optional(),
  undeclared: z
    .object({ searched: z.boolean(), found: z.array(z.unknown()), unsearched: z.array(z.string()) })
    .optional(),
  unregistered: z.enum(['deny', 'allow']).optional(),
  waived: z.array(z.string()).optional().meta({ description: 'What is missing, and goes without.' }),
};
const requester = z.object({ agent: z.string().optional(), person: z.string().optional() });
export const approvalAnswer = z.object({
  id: z.string(),
  status: z.enum(['pending', 'approved', 'denied', 'expired', 'used']),
  action: z.enum(['destroy', 'waive', 'decrypt']),
  about: z.string().meta({ description: 'The path of what it is done to.' }),
  details: z.object({
    failures: failedColumns.optional(),
    ...destroyDetails,
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

export const encryptAnswer = oneOrItems(
  z.object({ envelope, version, masked: z.string(), indexes: indexes.optional() }),
);
export const decryptAnswer = oneOrItems(z.object({ class: className, version, view, value: revealed }));
export const reencryptAnswer = oneOrItems(z.object({ envelope, version, indexes: indexes.optional() }));
export const matchAnswer = oneOrItems(z.object({ match: z.boolean() }));
export const searchTokensAnswer = z.object({ tokens: z.array(z.string()), expiresAt: time });
export const whoamiAnswer = z.object({ principal, tenant: z.string().optional(), grants: z.array(z.string()) });
export const keysAnswer = listOf(keyAnswer).extend({
  warnings: z
    .array(z.string())
    .optional()
    .meta({ description: 'Processes that go by another policy than the one in force.' }),
});
export const rotationsAnswer = listOf(rotationAnswer);
export const failuresAnswer = listOf(failure);
export const adoptionsAnswer = listOf(adoptionAnswer);
export const approvalsAnswer = listOf(approvalAnswer);
/** The answer to a call that waits until other people agree. */
export const pendingAnswer = z.object({
  status: z.literal('pending'),
  approvalId: z.string(),
  expiresAt: time,
  required: z.int(),
  received: z.int(),
  requestDigest: z.string(),
});
export const destructionAnswer = destruction;
export const destroyAnswer = z.union([pendingAnswer, destruction]);
export const certificateAnswer = z.object({
  certificate: z.string().meta({ description: 'RFC 8785 JSON; the signature is over its UTF-8 bytes.' }),
  signature: z.string().optional().meta({ description: 'Ed25519, base64; absent until it is signed.' }),
  publicKey: z.string().optional().meta({ description: 'Of the key that signs checkpoints: 32 bytes, base64.' }),
  keyVersion: version.optional(),
  problem: z.string().optional(),
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
