/**
 * The only reader of the environment. Every problem is reported at once, by the name of its variable and never with the
 * value, which may be a credential.
 */
import { resolve } from 'node:path';
import { z } from 'zod';
import { StartupError } from './errors.ts';
import { present } from './present.ts';
import type { VaultAuth } from './keys/vault-login.ts';
import type { VaultSettings } from './keys/vault-open.ts';
import type { SourceSecret } from './rotation/sources.ts';

const port = z.coerce.number().int().min(0).max(65535);
const postgresUrl = z.string().regex(/^postgres(ql)?:\/\//, 'must be a postgresql:// URL');

const mount = z.string().regex(/^[\w-]+(\/[\w-]+)*$/, 'must be a mount path without slashes at its ends');

const environment = z.object({
  PORT: port.default(8443),
  HOST: z.string().min(1).default('localhost'),
  METRICS_PORT: port.default(0),
  MAX_CONNECTIONS: z.coerce.number().int().min(16).max(100_000).optional(),
  LAME_DUCK_SECONDS: z.coerce.number().min(0).max(8).default(3),
  FIELDKEEP_HOME: z.string().min(1).default('.fieldkeep'),
  FIELDKEEP_POLICY: z.string().min(1).default('keys-policy.json'),
  FIELDKEEP_EMBEDDED_ROOT_KEYS: z.enum(['allow', 'refuse']).optional(),
  DATABASE_URL: postgresUrl.optional(),
  DATABASE_OWNER_URL: postgresUrl.optional(),
  DATABASE_WORKER_URL: postgresUrl.optional(),
  DATABASE_ROWS_URL: postgresUrl.optional(),
  DATABASE_READER_URL: postgresUrl.optional(),
  TLS_CERT_FILE: z.string().min(1).optional(),
  TLS_KEY_FILE: z.string().min(1).optional(),
  LOG_LEVEL: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('warn'),
  NODE_ENV: z.string().optional(),
  ROLE: z.enum(['api', 'worker', 'all']).default('all'),
  FIELDKEEP_FAMILIES: z
    .string()
    .regex(/^[a-z][a-z0-9]{1,15}(,[a-z][a-z0-9]{1,15})*$/, 'must be class names with commas between')
    .optional(),
  METRICS_HOST: z.string().min(1).default('127.0.0.1'),
  VAULT_ADDR: z
    .string()
    .regex(/^https?:\/\/[^/?#@]+\/?$/, 'must be an https:// URL without a path')
    .optional(),
  VAULT_NAMESPACE: z.string().min(1).optional(),
  VAULT_CACERT: z.string().min(1).optional(),
  VAULT_TRANSIT_MOUNT: mount.default('transit'),
  VAULT_AUTH: z.enum(['token', 'approle', 'kubernetes', 'jwt']).default('token'),
  VAULT_AUTH_MOUNT: mount.optional(),
  VAULT_TOKEN: z.string().min(1).optional(),
  VAULT_TOKEN_FILE: z.string().min(1).optional(),
  VAULT_ROLE: z.string().min(1).optional(),
  VAULT_SECRET_ID_FILE: z.string().min(1).optional(),
  VAULT_WRAPPED_SECRET_ID_FILE: z.string().min(1).optional(),
  VAULT_JWT_FILE: z.string().min(1).optional(),
  VAULT_SKIP_VERIFY: z.string().optional(),
  DEBUG: z.string().optional(),
});

type Environment = z.infer<typeof environment>;

/** The policy has no target whose name ends as the second part: it would be taken for another role in another target. */
const targetPattern = /^TARGET_([A-Z][A-Z0-9_]{0,31}?)(_READER|_OWNER|_ROWS)?_URL$/;

interface Targets {
  readonly targets: ReadonlyMap<string, string>;
  readonly targetReaders: ReadonlyMap<string, string>;
  readonly targetRows: ReadonlyMap<string, string>;
  readonly targetOwners: ReadonlyMap<string, string>;
}

/** The databases of TARGET_<NAME>_URL, and of its rows, its reader and its owner, by their names in the policy: the lower-case ones. */
function readTargets(set: Readonly<Record<string, string | undefined>>): Targets & { problems: string[] } {
  const found = Object.entries(set).flatMap(([variable, url = '']) => {
    const [, name, role] = targetPattern.exec(variable) ?? [];
    return name === undefined ? [] : [{ variable, name: name.toLowerCase(), role, url }];
  });
  const of = (role: string | undefined) =>
    new Map(found.flatMap((each) => (each.role === role ? [[each.name, each.url] as const] : [])));
  return {
    targets: of(undefined),
    targetReaders: of('_READER'),
    targetRows: of('_ROWS'),
    targetOwners: of('_OWNER'),
    problems: found.flatMap(({ variable, url }) =>
      postgresUrl.safeParse(url).success ? [] : [`${variable}: must be a postgresql:// URL`],
    ),
  };
}

const sourcePattern = /^SOURCE_([A-Z][A-Z0-9_]{0,31})_(SECRET|VAULT)$/;
const placePattern = /^([\w-]+(?:\/[\w.-]+)+)#([\w.-]+)$/;

/** Passphrases that others have sealed with, of SOURCE_<KEY>_SECRET or _VAULT, by the key that the policy calls them by. */
function readSources(set: Readonly<Record<string, string | undefined>>): {
  readonly sources: ReadonlyMap<string, SourceSecret>;
  readonly problems: readonly string[];
} {
  const sources = new Map<string, SourceSecret>();
  const problems: string[] = [];
  for (const [variable, text = ''] of Object.entries(set)) {
    const [, name, kind] = sourcePattern.exec(variable) ?? [];
    if (name === undefined) continue;
    const key = name.toLowerCase();
    if (sources.has(key)) problems.push(`SOURCE_${name}_SECRET and SOURCE_${name}_VAULT exclude each other`);
    const place = placePattern.exec(text);
    if (kind === 'SECRET') sources.set(key, { passphrase: text });
    else if (place !== null) sources.set(key, { path: place[1]!, field: place[2]! });
    else problems.push(`${variable}: must be a path and a field, such as secret/data/hr#passphrase`);
    if (kind === 'VAULT' && set.VAULT_ADDR === undefined) problems.push(`${variable} needs VAULT_ADDR`);
  }
  return { sources, problems };
}

export interface Config {
  readonly port: number;
  readonly host: string;
  /** 0: any free port. */
  readonly metricsPort: number;
  readonly metricsHost: string;
  /** Connections of clients at most; where absent, what the limit of descriptors has room for. */
  readonly maxConnections?: number;
  /** How long the port stays open after SIGTERM. */
  readonly lameDuckMs: number;
  /** What this process does: answer agents, make keys and rotate, or both. */
  readonly role: 'api' | 'worker' | 'all';
  /** The classes that an api process serves, where not all. */
  readonly families?: readonly string[];
  readonly vault?: VaultSettings;
  /** Where transit is or is going to be mounted, also without a Vault to talk to. */
  readonly transitMount: string;
  /** State folder, absolute. */
  readonly home: string;
  readonly policyFile: string;
  /** Of the login of this process's duty; of a process with both duties, its api's. */
  readonly databaseUrl?: string;
  /** Of the worker's login, for a process with both duties; absent: DATABASE_URL has the rights of both. */
  readonly databaseWorkerUrl?: string;
  /** Logins for the customers' rows alone, by the name of the database; undefined names our own. */
  readonly rows: ReadonlyMap<string | undefined, string>;
  /** Runs the migrations; the service's own URL where absent. */
  readonly databaseOwnerUrl?: string;
  /** Customers' databases of their own, by the name that the policy has for them. */
  readonly targets: ReadonlyMap<string, string>;
  /** Where passphrases are that others have sealed with, by the key that the policy has for them. */
  readonly sources: ReadonlyMap<string, SourceSecret>;
  /** Roles that only read, to look for envelopes where none are registered; undefined names our own database. */
  readonly readers: ReadonlyMap<string | undefined, string>;
  /** Owners of the customers' databases, for `npm run target:setup` alone. */
  readonly targetOwners: ReadonlyMap<string, string>;
  readonly tls?: { readonly certFile: string; readonly keyFile: string };
  readonly logLevel: string;
  readonly production: boolean;
}

const kubernetesToken = '/var/run/secrets/kubernetes.io/serviceaccount/token';

/** Undefined when a variable is missing; listVaultRefusals then says which. */
function readAuth(env: Environment): VaultAuth | undefined {
  const mountedAt = env.VAULT_AUTH_MOUNT ?? env.VAULT_AUTH;
  if (env.VAULT_AUTH === 'token') {
    if (env.VAULT_TOKEN_FILE !== undefined) return { method: 'token', file: resolve(env.VAULT_TOKEN_FILE) };
    return env.VAULT_TOKEN === undefined ? undefined : { method: 'token', token: env.VAULT_TOKEN };
  }
  if (env.VAULT_ROLE === undefined) return undefined;
  if (env.VAULT_AUTH === 'approle') {
    const file = env.VAULT_WRAPPED_SECRET_ID_FILE ?? env.VAULT_SECRET_ID_FILE;
    if (file === undefined) return undefined;
    const wrapped = env.VAULT_WRAPPED_SECRET_ID_FILE !== undefined;
    return { method: 'approle', mount: mountedAt, roleId: env.VAULT_ROLE, secretIdFile: resolve(file), wrapped };
  }
  const file = env.VAULT_JWT_FILE ?? (env.VAULT_AUTH === 'kubernetes' ? kubernetesToken : undefined);
  if (file === undefined) return undefined;
  return { method: env.VAULT_AUTH, mount: mountedAt, role: env.VAULT_ROLE, file: resolve(file) };
}

const authNeeds: Readonly<Record<Environment['VAULT_AUTH'], string>> = {
  token: 'VAULT_TOKEN or VAULT_TOKEN_FILE',
  approle: 'VAULT_ROLE (the role id) and VAULT_SECRET_ID_FILE or VAULT_WRAPPED_SECRET_ID_FILE',
  kubernetes: 'VAULT_ROLE',
  jwt: 'VAULT_ROLE and VAULT_JWT_FILE',
};

const loopback = /^http:\/\/(127\.0\.0\.1|localhost|\[::1\])(:\d+)?\/?$/;

function listVaultRefusals(env: Environment): string[] {
  const refusals: string[] = [];
  const production = env.NODE_ENV === 'production';
  if (readAuth(env) === undefined) refusals.push(`VAULT_AUTH=${env.VAULT_AUTH} needs ${authNeeds[env.VAULT_AUTH]}`);
  if (env.VAULT_TOKEN !== undefined && env.VAULT_TOKEN_FILE !== undefined) {
    refusals.push('VAULT_TOKEN and VAULT_TOKEN_FILE exclude each other');
  }
  if (env.VAULT_SECRET_ID_FILE !== undefined && env.VAULT_WRAPPED_SECRET_ID_FILE !== undefined) {
    refusals.push('VAULT_SECRET_ID_FILE and VAULT_WRAPPED_SECRET_ID_FILE exclude each other');
  }
  if (production && env.VAULT_ADDR!.startsWith('http:') && !loopback.test(env.VAULT_ADDR!)) {
    refusals.push('VAULT_ADDR must be https in production: the token and data keys travel on it');
  }
  return refusals;
}

function listRefusals(env: Environment): string[] {
  const refusals: string[] = [];
  const production = env.NODE_ENV === 'production';
  if ((env.TLS_CERT_FILE === undefined) !== (env.TLS_KEY_FILE === undefined)) {
    refusals.push('TLS_CERT_FILE and TLS_KEY_FILE go together');
  }
  for (const name of ['DATABASE_OWNER_URL', 'DATABASE_WORKER_URL', 'DATABASE_ROWS_URL'] as const) {
    if (env[name] !== undefined && env.DATABASE_URL === undefined) refusals.push(`${name} needs DATABASE_URL`);
  }
  if (env.DATABASE_WORKER_URL !== undefined && env.ROLE !== 'all') {
    refusals.push(
      `DATABASE_WORKER_URL is for ROLE=all: with ROLE=${env.ROLE} the login of DATABASE_URL has that one duty`,
    );
  }
  if (production && env.ROLE === 'all' && env.DATABASE_URL !== undefined && env.DATABASE_WORKER_URL === undefined) {
    refusals.push(
      'ROLE=all needs DATABASE_WORKER_URL in production: the login that faces agents must not be the worker',
    );
  }
  if (env.VAULT_ADDR !== undefined) refusals.push(...listVaultRefusals(env));
  else if (env.ROLE !== 'all') refusals.push(`ROLE=${env.ROLE} needs VAULT_ADDR: embedded root keys serve one process`);
  else if (production && env.FIELDKEEP_EMBEDDED_ROOT_KEYS !== 'allow') {
    refusals.push('embedded root keys are refused in production unless FIELDKEEP_EMBEDDED_ROOT_KEYS=allow');
  }
  if (env.ROLE !== 'all' && env.DATABASE_URL === undefined) refusals.push(`ROLE=${env.ROLE} needs DATABASE_URL`);
  if (env.FIELDKEEP_FAMILIES !== undefined && env.ROLE !== 'api') refusals.push('FIELDKEEP_FAMILIES needs ROLE=api');
  if (production && env.DATABASE_URL === undefined) refusals.push('DATABASE_URL is required in production');
  // Neither has an effect here; where one is set, somebody believes that it has, or tests other clients of Vault with it.
  if (production && env.VAULT_SKIP_VERIFY !== undefined) {
    refusals.push('VAULT_SKIP_VERIFY is refused in production, with any value: certificates are verified here');
  }
  if (production && /\bnode-vault\b|^\*$|[ ,]\*$/.test(env.DEBUG ?? '')) {
    refusals.push('DEBUG naming node-vault is refused in production: that library prints what it sends');
  }
  return refusals;
}

function readVault(env: Environment): VaultSettings | undefined {
  const auth = env.VAULT_ADDR === undefined ? undefined : readAuth(env);
  if (auth === undefined) return undefined;
  return {
    address: env.VAULT_ADDR!,
    mount: env.VAULT_TRANSIT_MOUNT,
    auth,
    ...present({ namespace: env.VAULT_NAMESPACE, caFile: env.VAULT_CACERT && resolve(env.VAULT_CACERT) }),
  };
}

/** A process that faces agents holds no login for rows; in production rows are worked on by a login of their own. */
function listLoginRefusals(
  env: Environment,
  set: Readonly<Record<string, unknown>>,
  targets: ReadonlyMap<string, string>,
  targetRows: ReadonlyMap<string, string>,
): string[] {
  if (env.ROLE === 'api') {
    const held = Object.keys(set).filter((name) => /^(TARGET_.*|DATABASE_(ROWS|READER))_URL$/.test(name));
    return held.map((name) => `ROLE=api must not hold ${name}: an api process is connected to no database with rows`);
  }
  const variable = (name: string, of = '') => `TARGET_${name.toUpperCase()}${of}_URL`;
  const alone = [...targetRows.keys()].filter((name) => !targets.has(name));
  const lacking = [...targets.keys()].filter((name) => !targetRows.has(name));
  return [
    ...alone.map((name) => `${variable(name, '_ROWS')} needs ${variable(name)}`),
    ...(env.NODE_ENV === 'production' ? lacking : []).map(
      (name) =>
        `${variable(name)} needs ${variable(name, '_ROWS')} in production: what a table does runs with the rights of whoever writes its rows`,
    ),
  ];
}

/** Errors: StartupError with all problems. Empty variables count as unset. */
export function readConfig(variables: NodeJS.ProcessEnv): Config {
  const set = Object.fromEntries(Object.entries(variables).filter(([, value]) => value !== ''));
  const parsed = environment.safeParse(set);
  const { targets, targetReaders, targetRows, targetOwners, problems: targetProblems } = readTargets(set);
  const problems = parsed.success
    ? listRefusals(parsed.data)
    : parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
  if (parsed.success) problems.push(...listLoginRefusals(parsed.data, set, targets, targetRows));
  const { sources, problems: sourceProblems } = readSources(set);
  problems.push(...targetProblems, ...sourceProblems);
  if (!parsed.success || problems.length > 0) {
    throw new StartupError(`The environment is not usable: ${problems.join('; ')}.`);
  }
  const env = parsed.data;
  const vault = readVault(env);
  const withOwn = (own: string | undefined, others: ReadonlyMap<string, string>) =>
    new Map<string | undefined, string>([...(own === undefined ? [] : [[undefined, own] as const]), ...others]);
  return {
    port: env.PORT,
    host: env.HOST,
    metricsPort: env.METRICS_PORT,
    metricsHost: env.METRICS_HOST,
    lameDuckMs: env.LAME_DUCK_SECONDS * 1000,
    role: env.ROLE,
    transitMount: env.VAULT_TRANSIT_MOUNT,
    targets,
    sources,
    readers: withOwn(env.DATABASE_READER_URL, targetReaders),
    rows: withOwn(env.DATABASE_ROWS_URL, targetRows),
    targetOwners,
    home: resolve(env.FIELDKEEP_HOME),
    policyFile: resolve(env.FIELDKEEP_POLICY),
    logLevel: env.LOG_LEVEL,
    production: env.NODE_ENV === 'production',
    ...present({ vault, families: env.FIELDKEEP_FAMILIES?.split(','), maxConnections: env.MAX_CONNECTIONS }),
    ...present({ databaseUrl: env.DATABASE_URL, databaseOwnerUrl: env.DATABASE_OWNER_URL }),
    ...present({ databaseWorkerUrl: env.DATABASE_WORKER_URL }),
    ...(env.TLS_CERT_FILE !== undefined && { tls: { certFile: env.TLS_CERT_FILE, keyFile: env.TLS_KEY_FILE! } }),
  };
}
