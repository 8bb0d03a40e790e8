/**
 * The shape of keys-policy.json. Unknown keys are errors: a misspelled condition must not be a condition that is
 * not there. `keys-policy.schema.json` says the same to editors, which complete the file; a test holds them together.
 */
import { z } from 'zod';
import { durationPattern } from './schedule.ts';

export const views = ['full', 'last4', 'bucket', 'masked', 'exists'] as const;

const principalName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._@:/-]{0,127}$/);
const className = z.string().regex(/^[a-z][a-z0-9]{1,15}$/);
const scope = z.string().min(1).max(64).describe('action:class[:view], or audit, approve, policy');
const decimal = z.string().regex(/^-?\d{1,40}(\.\d{1,20})?$/);
const identifier = z.string().min(1).max(63);

const issuerClaims = {
  aud: z.string().min(1).describe('What the token must name as its audience.'),
  agentClaim: z.string().min(1).describe('The claim that names the agent, usually sub.'),
  tenantClaim: z.string().min(1).describe('The claim that names the tenant.'),
};
const localIssuer = z.strictObject({
  local: z.literal(true).describe('The issuer key made on first start.'),
  ...issuerClaims,
});
const remoteIssuer = z.strictObject({
  issuer: z.string().min(1).describe('The exact iss of its tokens.'),
  jwksFile: z.string().min(1).optional().describe('A JWKS on disk.'),
  jwksUrl: z
    .string()
    .regex(/^https:\/\//)
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

const fieldClass = z.strictObject({
  bind: z
    .enum(['row', 'column'])
    .describe('row: an envelope opens only in its row. column: values can be swapped between rows.'),
  padTo: z.literal([16, 32, 48, 64]).describe('Lengths hide up to multiples of this many bytes.'),
  rotateEvery: z
    .string()
    .regex(durationPattern)
    .describe('ISO 8601 duration between rotations, P3M for every quarter.'),
  normalise: z.enum(['digits', 'alnum']).optional().describe('What counts when values are compared or indexed.'),
  views: z.array(z.enum(views)).min(1).describe('What can be revealed, most first.'),
  defaultView: z.enum(views).describe('What a request that names no view gets at most. Never full.'),
  mask: z.string().min(1).max(64).describe('What the masked view shows.'),
  edges: z.array(decimal).min(1).optional().describe('Bucket edges, ascending.'),
});

const grant = z.union([
  scope,
  z.strictObject({
    scope,
    when: z
      .strictObject({
        purpose: z.array(z.string().min(1).max(128)).min(1).optional().describe('The request must claim one of these.'),
      })
      .optional(),
  }),
]);

const agent = z.strictObject({
  tenants: z.array(z.string().min(1).max(512)).min(1).describe('Tenants it may act for, or "*".'),
  identities: z
    .array(z.strictObject({ issuer: z.string(), sub: z.string().min(1) }))
    .min(1)
    .optional(),
  grants: z.array(grant),
  deny: z.array(scope).optional().describe('Wins over every grant. "*" may stand for any action.'),
});
const person = z.strictObject({
  system: z.boolean().optional().describe('Spans tenants: only such principals rotate, destroy and approve.'),
  tenants: z.array(z.string().min(1).max(512)).min(1).optional(),
  identities: z
    .array(z.strictObject({ issuer: z.string(), sub: z.string().min(1) }))
    .min(1)
    .optional(),
  grants: z.array(grant),
  deny: z.array(scope).optional(),
});

const index = z.strictObject({
  name: z.string().regex(/^[a-z][a-z0-9_]{0,31}$/),
  column: identifier.describe('The text column that holds the tokens.'),
  bits: z.int().min(1).max(256).describe('Length of a token; a guide is log2(rows per tenant / 8).'),
});

const column = z.strictObject({
  database: z
    .string()
    .regex(/^[a-z][a-z0-9_]{0,31}$/)
    .optional()
    .describe('A target of its own, connected by TARGET_<NAME>_URL.'),
  table: z
    .string()
    .regex(/^[^:.]{1,63}\.[^:.]{1,63}$/)
    .describe('schema.table'),
  key: z.array(identifier).min(1).max(8).describe('The columns of a NOT NULL unique index.'),
  tenant: z.union([z.strictObject({ column: identifier }), z.strictObject({ value: z.string().min(1).max(512) })]),
  column: identifier.describe('The column that holds envelopes.'),
  class: className,
  from: identifier.optional().describe('The plaintext column it is filled from.'),
  adopt: z.boolean().optional().describe('Plaintext found in the column is encrypted.'),
  index: z.array(index).optional(),
});

export const policySchema = z.strictObject({
  $schema: z.string().optional(),
  schemaVersion: z.literal(1),
  unregistered: z
    .enum(['deny', 'allow'])
    .describe('Whether values may be encrypted for columns that are not registered.'),
  issuers: z.record(z.string(), z.union([localIssuer, remoteIssuer])),
  classes: z.record(className, fieldClass),
  agents: z.record(principalName, agent),
  people: z.record(principalName, person),
  approvals: z
    .record(
      z.string(),
      z.strictObject({
        group: z.array(principalName).min(1),
        n: z.int().min(1),
        within: z.string().regex(durationPattern),
      }),
    )
    .optional(),
  columns: z.array(column),
});

export type PolicyFile = z.infer<typeof policySchema>;
export type PrincipalEntry = z.infer<typeof person>;
export type GrantEntry = z.infer<typeof grant>;
export type Issuer = z.infer<typeof localIssuer> | z.infer<typeof remoteIssuer>;
