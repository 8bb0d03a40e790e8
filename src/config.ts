/**
 * The only reader of the environment. Every problem is reported at once, by the name of its variable and never with the
 * value, which may be a credential.
 */
import { resolve } from 'node:path';
import { z } from 'zod';
import { StartupError } from './errors.ts';

const port = z.coerce.number().int().min(0).max(65535);
const postgresUrl = z.string().regex(/^postgres(ql)?:\/\//, 'must be a postgresql:// URL');

const environment = z.object({
  PORT: port.default(8443),
  HOST: z.string().min(1).default('localhost'),
  METRICS_PORT: port.default(0),
  FIELDKEEP_HOME: z.string().min(1).default('.fieldkeep'),
  FIELDKEEP_POLICY: z.string().min(1).default('keys-policy.json'),
  FIELDKEEP_EMBEDDED_ROOT_KEYS: z.enum(['allow', 'refuse']).optional(),
  DATABASE_URL: postgresUrl.optional(),
  DATABASE_OWNER_URL: postgresUrl.optional(),
  TLS_CERT_FILE: z.string().min(1).optional(),
  TLS_KEY_FILE: z.string().min(1).optional(),
  LOG_LEVEL: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('warn'),
  NODE_ENV: z.string().optional(),
  VAULT_ADDR: z.string().optional(),
});

export interface Config {
  readonly port: number;
  readonly host: string;
  /** 0: any free port. */
  readonly metricsPort: number;
  /** State folder, absolute. */
  readonly home: string;
  readonly policyFile: string;
  readonly databaseUrl?: string;
  /** Runs the migrations; the service's own URL where absent. */
  readonly databaseOwnerUrl?: string;
  readonly tls?: { readonly certFile: string; readonly keyFile: string };
  readonly logLevel: string;
  readonly production: boolean;
}

function listRefusals(env: z.infer<typeof environment>): string[] {
  const refusals: string[] = [];
  const production = env.NODE_ENV === 'production';
  if ((env.TLS_CERT_FILE === undefined) !== (env.TLS_KEY_FILE === undefined)) {
    refusals.push('TLS_CERT_FILE and TLS_KEY_FILE go together');
  }
  if (env.DATABASE_OWNER_URL !== undefined && env.DATABASE_URL === undefined) {
    refusals.push('DATABASE_OWNER_URL needs DATABASE_URL');
  }
  if (env.VAULT_ADDR !== undefined) {
    refusals.push(
      'VAULT_ADDR is set, and this release keeps root keys only in its own file: unset it to start with those',
    );
  }
  if (production && env.FIELDKEEP_EMBEDDED_ROOT_KEYS !== 'allow') {
    refusals.push('embedded root keys are refused in production unless FIELDKEEP_EMBEDDED_ROOT_KEYS=allow');
  }
  if (production && env.DATABASE_URL === undefined) refusals.push('DATABASE_URL is required in production');
  return refusals;
}

/** Errors: StartupError with all problems. Empty variables count as unset. */
export function readConfig(variables: NodeJS.ProcessEnv): Config {
  const set = Object.fromEntries(Object.entries(variables).filter(([, value]) => value !== ''));
  const parsed = environment.safeParse(set);
  const problems = parsed.success
    ? listRefusals(parsed.data)
    : parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
  if (!parsed.success || problems.length > 0) {
    throw new StartupError(`The environment is not usable: ${problems.join('; ')}.`);
  }
  const env = parsed.data;
  return {
    port: env.PORT,
    host: env.HOST,
    metricsPort: env.METRICS_PORT,
    home: resolve(env.FIELDKEEP_HOME),
    policyFile: resolve(env.FIELDKEEP_POLICY),
    logLevel: env.LOG_LEVEL,
    production: env.NODE_ENV === 'production',
    ...(env.DATABASE_URL !== undefined && { databaseUrl: env.DATABASE_URL }),
    ...(env.DATABASE_OWNER_URL !== undefined && { databaseOwnerUrl: env.DATABASE_OWNER_URL }),
    ...(env.TLS_CERT_FILE !== undefined && { tls: { certFile: env.TLS_CERT_FILE, keyFile: env.TLS_KEY_FILE! } }),
  };
}
