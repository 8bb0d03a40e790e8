/**
 * The shape of keys-policy.json. Unknown keys are errors: a misspelled condition must not be a condition that is
 * not there. `keys-policy.schema.json` says the same to editors, which complete and explain the file; a test holds them
 * together.
 */
import { z } from 'zod';
import { durationPattern, isTimeZone } from './schedule.ts';

export const views = ['full', 'last4', 'bucket', 'masked', 'exists'] as const;

/** As contexts hold it (crypto/context.ts). */
const tenantBytesMax = 512;

const name = z
  .string()
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9._@:/-]{0,127}$/,
    'must begin with a letter or digit, then hold only those and . _ @ : / -, 128 at most',
  );
const className = z
  .string()
  .regex(/^[a-z][a-z0-9]{1,15}$/, 'must be 2 to 16 lower-case letters and digits, a letter first');
const targetName = z
  .string()
  .regex(/^[a-z][a-z0-9_]{0,31}$/, 'must be at most 32 lower-case letters, digits and _, a letter first');
const scope = z
  .string()
  .min(1)
  .max(64)
  .describe(
    'action:class[:view], or audit, approve, policy. Actions: encrypt, decrypt, reencrypt, move (reencrypt to another place), match, search, rotate, destroy.',
  );
const decimal = z
  .string()
  .regex(/^-?\d{1,40}(\.\d{1,20})?$/, 'must be a plain decimal number in quotes, such as "50000"');
const duration = z.string().regex(durationPattern, 'must be an ISO 8601 duration, such as P3M or P1D');
const identifier = z.string().min(1).max(63);
const tenantName = z
  .string()
  .min(1)
  .max(tenantBytesMax, { abort: true })
  .refine(
    (text) => Buffer.byteLength(text) <= tenantBytesMax,
    `must not be longer than ${tenantBytesMax} bytes in UTF-8`,
  );

const issuerClaims = {
  aud: z.string().min(1).describe('What the token must name as its audience.'),
  agentClaim: z
    .string()
    .min(1)
    .describe('The claim that names the agent, usually sub. Another sub is then the person on whose behalf it acts.'),
  tenantClaim: z.string().min(1).describe('The claim that names the tenant.'),
  scopeClaims: z
    .array(z.string().min(1))
    .min(1)
    .optional()
    .describe('The claims whose scopes narrow what a token allows, each of them; scope and scp where absent.'),
};
const localIssuer = z.strictObject({
  local: z.literal(true).describe('The issuer key made on first start.'),
  ...issuerClaims,
});
const jwksUrlWords = 'must be an https address without a user name in it';
const remoteIssuer = z.strictObject({
  issuer: z.string().min(1).describe('The exact iss of its tokens.'),
  jwksFile: z.string().min(1).optional().describe('A JWKS on disk.'),
  jwksUrl: z
    .string()
    .regex(/^https:\/\/[^/@?#\s]+([/?#]\S*)?$/, { error: jwksUrlWords, abort: true })
    .refine((text) => URL.canParse(text), jwksUrlWords)
    .optional()
    .describe('A JWKS behind https.'),
  algorithms: z
    .array(z.enum(['ES256', 'ES384', 'ES512', 'EdDSA', 'PS256', 'PS384', 'PS512', 'RS256', 'RS384', 'RS512']))
    .min(1)
    .optional()
    .describe('Signatures that are accepted; ES256 and EdDSA where absent.'),
  typ: z.string().min(1).optional().describe('The typ header of its tokens; at+jwt where absent.'),
  ...issuerClaims,
});

const clock = z.string().regex(/^(?:[01]\d|2[0-3]):[0-5]\d$/, 'must be a time of day, such as "22:30"');
const rotationLimits = z
  .strictObject({
    concurrency: z
      .int()
      .min(1)
      .max(16)
      .optional()
      .describe('Key ranges worked on at the same time, over all workers; 1 where absent.'),
    rowsPerSecondMax: z
      .int()
      .min(1)
      .optional()
      .describe('Over all workers; as fast as the batches allow where absent.'),
    batchMsMax: z
      .int()
      .min(5)
      .max(10_000)
      .optional()
      .describe('How long one UPDATE should take at most: batches grow and shrink by it. 100 where absent.'),
    lagMibMax: z
      .int()
      .min(1)
      .optional()
      .describe('MiB that a replica of the target may be behind before the job rests. 64 where absent.'),
    hours: z
      .strictObject({
        from: clock,
        to: clock.describe('Before "from": the next day.'),
        zone: z.string().refine(isTimeZone, 'must be a time zone, such as "Europe/Berlin"'),
      })
      .optional()
      .describe('When rows are re-encrypted. Keys rotate at any time.'),
  })
  .describe('How gently rows are re-encrypted. An emergency rotation knows neither rate nor hours.');

const retire = z
  .strictObject({
    handoffMax: duration
      .optional()
      .describe('How long applications may hold an envelope before they store it. P7D where absent; P0D is allowed.'),
    unreadFor: duration
      .optional()
      .describe('A version is destroyed when no request has opened a value of it for this long. P7D where absent.'),
    backupHorizon: duration
      .optional()
      .describe('How long backups of the databases are kept: what they hold opens until then. P35D where absent.'),
    vaultBackupHorizon: duration
      .optional()
      .describe('How long snapshots of Vault are kept: only then is a destroyed key nowhere. P35D where absent.'),
  })
  .describe('When a version that was followed may be given up for good.');

const fieldClass = z.strictObject({
  bind: z
    .enum(['row', 'column'])
    .describe('row: an envelope opens only in its row. column: values can be swapped between rows.'),
  padTo: z.literal([16, 32, 48, 64]).describe('Lengths hide up to multiples of this many bytes.'),
  rotateEvery: duration.describe('ISO 8601 duration between rotations, P3M for every quarter.'),
  normalise: z
    .enum(['digits', 'alnum'])
    .optional()
    .describe('What counts when values are compared or indexed: digits, or letters and digits in upper case.'),
  nonAscii: z
    .enum(['refuse', 'fold'])
    .optional()
    .describe(
      'Digits (and, of alnum, letters) outside ASCII: refused (where absent), or folded: decimal digits of every script count as 0-9, letters as they are. With "normalise" only; counts from the next key version.',
    ),
  views: z
    .array(z.enum(views))
    .min(1)
    .describe('What can be revealed, most first: full, last4 or bucket, masked, exists.'),
  defaultView: z.enum(views).describe('What a request that names no view gets at most. Never full.'),
  mask: z
    .string()
    .min(1)
    .max(64)
    .regex(/^\D*$/, 'must hold no digits, so that nobody takes it for a value')
    .describe('What the masked view shows, the same for every value. No digits.'),
  edges: z
    .array(decimal)
    .min(1)
    .optional()
    .describe('Where buckets begin, ascending, as texts. With the view bucket only.'),
  rotation: rotationLimits.optional(),
  retire: retire.optional(),
  compromised: z
    .enum(['grants', 'deny'])
    .optional()
    .describe('Who opens values of a compromised version: grants that say so (where absent), or nobody.'),
});

const conditions = z
  .strictObject({
    purpose: z.array(z.string().min(1).max(128)).min(1).optional().describe('The request must claim one of these.'),
  })
  .refine((conditions) => Object.keys(conditions).length > 0, {
    error: 'names no condition: leave it out',
    when: ({ issues }) => issues.length === 0, // a misspelled one is told as that
  })
  .describe('The grant counts only when all of this is so.');
const compromised = z
  .literal(true)
  .describe('Also covers values whose key version is compromised. For decrypt, match and reencrypt.');
const grant = z.union([
  scope,
  z.strictObject({ scope, when: conditions.optional(), compromised: compromised.optional() }),
]);
const identities = z
  .array(
    z.strictObject({
      issuer: z.string().describe('One of the issuers above.'),
      sub: z.string().min(1).describe('Who it is there: what the issuer’s agentClaim says, or the sub of its tokens.'),
    }),
  )
  .min(1)
  .optional()
  .describe('Whose tokens it comes with. Absent: the local issuer’s subject of the same name.');
const grants = z.array(grant).describe('What it may do. What nothing grants is denied.');
const denies = z.array(scope).optional().describe('Wins over every grant. "*" may stand for any action.');
const tenants = z.array(tenantName).min(1).describe('Tenants it may act for, or "*".');

const agent = z.strictObject({ tenants, identities, grants, deny: denies });
const person = z.strictObject({
  system: z.boolean().optional().describe('Spans tenants: only such people rotate, destroy and approve.'),
  tenants: tenants.optional(),
  identities,
  grants,
  deny: denies,
});

const approval = z.strictObject({
  group: z.array(name).min(1).describe('The people who may decide.'),
  n: z.int().min(1).describe('How many of them have to approve.'),
  within: duration.describe('ISO 8601 duration in which they have to decide.'),
});

const index = z.strictObject({
  name: targetName.describe('What requests call it.'),
  column: identifier.describe('The text column that holds the tokens.'),
  bits: z.int().min(1).max(256).optional().describe('Length of a token; a guide is log2(rows per tenant / 8).'),
  unique: z
    .literal(true)
    .optional()
    .describe('Tokens tell equal values for sure (256 bits), for writers that claim a value with fe_claim.'),
});

const sourceKey = z
  .string()
  .regex(/^[a-z][a-z0-9_]{0,31}$/, 'must be at most 32 lower-case letters, digits and _, a letter first');
const transitName = z
  .string()
  .regex(/^\w(?:[\w.-]{0,126}\w)?$/, 'must be the name of a key: letters, digits and _ . -, 128 at most');
const transitMount = z
  .string()
  .max(128)
  .regex(/^[\w-]+(\/[\w-]+)*$/, 'must be a mount path without slashes at its ends');
const sealed = z
  .union([
    z.strictObject({
      by: z.literal('transit'),
      key: transitName.describe('The name of the transit key.'),
      mount: transitMount.optional().describe('Where transit is mounted; "transit" where absent.'),
    }),
    z.strictObject({
      by: z.literal('pgcrypto').describe('pgp_sym_encrypt, with a passphrase.'),
      key: sourceKey.describe('SOURCE_<KEY>_SECRET has the passphrase, or SOURCE_<KEY>_VAULT says where Vault has it.'),
    }),
  ])
  .describe('What the plaintext is sealed with until it is adopted. Keys come from Vault or the environment.');

const column = z.strictObject({
  database: targetName.optional().describe('A target of its own, connected by TARGET_<NAME>_URL.'),
  table: z
    .string()
    .regex(/^[^:.]{1,63}\.[^:.]{1,63}$/, 'must be schema.table, without a colon')
    .describe('schema.table'),
  key: z.array(identifier).min(1).max(8).describe('The columns of a NOT NULL unique index.'),
  tenant: z
    .union([
      z.strictObject({ column: identifier.describe('The column that names the row’s tenant.') }),
      z.strictObject({ value: tenantName.describe('The one tenant whose rows these are.') }),
    ])
    .describe('Whose rows these are.'),
  column: identifier.describe('The column that holds envelopes.'),
  class: className.describe('One of the classes above.'),
  from: identifier.optional().describe('The column, of any type, that it is filled from while it is adopted.'),
  adopt: z.boolean().optional().describe('Plaintext found in the column, or in "from", is encrypted.'),
  tenants: z.array(tenantName).min(1).optional().describe('Only rows of these tenants are adopted.'),
  sealed: sealed.optional(),
  index: z.array(index).optional().describe('Blind indexes for equality search, each in a column of its own.'),
});

export const policySchema = z.strictObject({
  $schema: z.string().optional().describe('For editors: ./keys-policy.schema.json'),
  schemaVersion: z.literal(1).describe('Of this format.'),
  unregistered: z
    .enum(['deny', 'allow'])
    .describe('Whether values may be encrypted for columns that are not registered.'),
  issuers: z.record(name, z.union([localIssuer, remoteIssuer])).describe('Whose tokens are believed.'),
  classes: z.record(className, fieldClass).describe('Kinds of sensitive values; each has its own keys.'),
  agents: z.record(name, agent).describe('Programs that ask.'),
  people: z.record(name, person).describe('People who ask, and people on whose behalf agents ask.'),
  approvals: z
    .record(z.string(), approval)
    .optional()
    .describe(
      'Calls that other people have to agree to: destroy, and waive and decrypt, which go by destroy where they are absent.',
    ),
  columns: z.array(column).describe('Every column that holds envelopes: rotation goes through all of them.'),
});

export type PolicyFile = z.infer<typeof policySchema>;
export type PrincipalEntry = z.infer<typeof person>;
export type GrantEntry = z.infer<typeof grant>;
export type SealedBy = z.infer<typeof sealed>;
export type Approval = z.infer<typeof approval>;
export type Issuer = z.infer<typeof localIssuer> | z.infer<typeof remoteIssuer>;
