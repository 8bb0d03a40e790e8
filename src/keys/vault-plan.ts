/**
 * Everything that Vault needs for a policy, as a list of steps: the transit engine, its keys, one ACL policy per duty and
 * family, and roles to log in with. Pure: what to send, and whether what stands there is that.
 *
 *     fieldkeep-api-<family>      faces agents: unwraps data keys of the family, nothing else
 *     fieldkeep-worker-<family>   faces nobody: makes data keys, rotates, unwraps; opens what others sealed while it is adopted
 *     fieldkeep-audit             signs checkpoints
 *     fieldkeep-operator          raises minimal versions and trims, so that destroyed versions are gone, and signs that
 *
 * Nobody may export, back up, restore or delete a key. The operator's `config` takes the two minimums only: with all of it
 * `exportable` could be set, for ever, and a copy from before a trim opens what was destroyed.
 */
import { rootKeySettings, signingKeyName, signingKeySettings, transitKeyName } from './transit.ts';
import type { VaultAnswer } from './vault.ts';
import { auditFamily } from './version.ts';

interface PlanOptions {
  /** Where transit is or will be mounted. */
  readonly mount: string;
  /** The classes of the policy. */
  readonly classes: readonly string[];
  /** What workers of a class need beside its root key: keys and secrets of others that values to be adopted are sealed with. */
  readonly needs?: readonly VaultNeed[];
  readonly kubernetes: {
    /** Where the service accounts fieldkeep-api, fieldkeep-worker and fieldkeep-audit live. */
    readonly namespace: string;
    /** The API server that Vault asks about them; without it the auth method is left unconfigured. */
    readonly host?: string;
    /** PEM of the API server's authority. Without it Vault runs in that cluster itself and finds its own. */
    readonly ca?: string;
  };
}

export interface VaultNeed {
  readonly family: string;
  readonly path: string;
  readonly capability: 'update' | 'read';
}

export interface Step {
  /** As people say it: `policy fieldkeep-api-ssn`. */
  readonly what: string;
  /** Where it can be read; a 404 there means that it is missing. */
  readonly read: string;
  /** What is sent to make it. */
  readonly path: string;
  readonly body: Readonly<Record<string, unknown>>;
  /** What differs in what stands there, in a few words each; empty when it is as it should be. */
  readonly differences: (found: VaultAnswer) => string[];
  /** What is sent to mend it where that is another call; undefined when it cannot be mended. */
  readonly mend?: { readonly path: string; readonly body: Readonly<Record<string, unknown>> };
}

const ttlSeconds = { token_ttl: 3600, token_max_ttl: 86_400 };

function allow(path: string, capabilities: readonly string[], parameters?: readonly string[]): string {
  const list = capabilities.map((each) => `"${each}"`).join(', ');
  if (parameters === undefined) return `path "${path}" { capabilities = [${list}] }`;
  const allowed = parameters.map((name) => `    "${name}" = []`).join('\n');
  return `path "${path}" {\n  capabilities = [${list}]\n  allowed_parameters = {\n${allowed}\n  }\n}`;
}

const minimums = ['min_decryption_version', 'min_encryption_version'];

/** Name and text of every ACL policy. */
function listPolicies(mount: string, families: readonly string[], needs: readonly VaultNeed[]): Map<string, string> {
  const policies = new Map<string, string>();
  const operator: string[] = [];
  for (const family of families) {
    const key = transitKeyName(family);
    const unwrap = allow(`${mount}/decrypt/${key}`, ['update']);
    policies.set(`fieldkeep-api-${family}`, `${unwrap}\n`);
    const worker = [
      unwrap,
      allow(`${mount}/datakey/wrapped/${key}`, ['update']),
      allow(`${mount}/keys/${key}`, ['read']),
      allow(`${mount}/keys/${key}/rotate`, ['update']),
      ...needs.filter((need) => need.family === family).map(({ path, capability }) => allow(path, [capability])),
    ];
    policies.set(`fieldkeep-worker-${family}`, `${worker.join('\n')}\n`);
    operator.push(
      allow(`${mount}/keys/${key}`, ['read']),
      allow(`${mount}/keys/${key}/config`, ['update'], minimums),
      allow(`${mount}/keys/${key}/trim`, ['update'], ['min_available_version']),
    );
  }
  const sign = [
    allow(`${mount}/keys/${signingKeyName}`, ['read']),
    allow(`${mount}/sign/${signingKeyName}`, ['update']),
  ];
  policies.set('fieldkeep-audit', `${sign.join('\n')}\n`);
  policies.set('fieldkeep-operator', `${[...operator, ...sign].join('\n')}\n`);
  return policies;
}

/** Name and ACL policies of every role that a process logs in with. */
function listRoles(families: readonly string[]): Map<string, string[]> {
  const roles = new Map([
    ['fieldkeep-api', families.map((family) => `fieldkeep-api-${family}`)],
    ['fieldkeep-worker', families.map((family) => `fieldkeep-worker-${family}`)],
    ['fieldkeep-audit', ['fieldkeep-audit']],
  ]);
  for (const family of families.filter((each) => each !== auditFamily)) {
    roles.set(`fieldkeep-api-${family}`, [`fieldkeep-api-${family}`, `fieldkeep-api-${auditFamily}`]);
  }
  return roles;
}

const list = (value: unknown) =>
  Array.isArray(value) ? (value as unknown[]).map(String).sort().join(',') : String(value);

/** Differences of the members of `wanted` in `found`; lists have no order. */
function compare(wanted: Readonly<Record<string, unknown>>, found: Readonly<Record<string, unknown>>): string[] {
  return Object.entries(wanted).flatMap(([name, value]) =>
    list(found[name]) === list(value) ? [] : [`${name} is ${list(found[name])} instead of ${list(value)}`],
  );
}

function keyStep(mount: string, name: string, body: Readonly<Record<string, unknown>>): Step {
  const path = `${mount}/keys/${name}`;
  // What it was made with cannot be taken back; these can.
  const mendable = { deletion_allowed: false, auto_rotate_period: 0 };
  return {
    what: `key ${name}`,
    read: path,
    path,
    body,
    differences: ({ data = {} }) => compare({ ...body, ...mendable }, data),
    mend: { path: `${path}/config`, body: mendable },
  };
}

function authStep(type: 'approle' | 'kubernetes'): Step {
  return {
    what: `auth method ${type}`,
    read: `sys/auth/${type}`,
    path: `sys/auth/${type}`,
    body: { type },
    differences: ({ data = {} }) => compare({ type }, data),
  };
}

/** What is made, and mended, by writing it whole. */
function writeStep(
  what: string,
  path: string,
  body: Readonly<Record<string, unknown>>,
  differences: Step['differences'] = ({ data = {} }) => compare(body, data),
): Step {
  return { what, read: path, path, body, differences, mend: { path, body } };
}

/** The steps in the order in which they must be made. */
export function planVault({ mount, classes, kubernetes, needs = [] }: PlanOptions): Step[] {
  const families = [...classes, auditFamily];
  const steps: Step[] = [
    {
      what: `transit engine at ${mount}/`,
      read: `sys/mounts/${mount}`,
      path: `sys/mounts/${mount}`,
      body: { type: 'transit', description: 'Root keys of Fieldkeep' },
      differences: ({ data = {} }) => compare({ type: 'transit' }, data),
    },
    ...families.map((family) => keyStep(mount, transitKeyName(family), rootKeySettings)),
    keyStep(mount, signingKeyName, signingKeySettings),
  ];
  for (const [name, policy] of listPolicies(mount, families, needs)) {
    const differences = ({ data = {} }: VaultAnswer) => (data.policy === policy ? [] : ['its rules are others']);
    steps.push(writeStep(`policy ${name}`, `sys/policies/acl/${name}`, { policy }, differences));
  }
  const roles = listRoles(families);
  const addRole = (method: string, name: string, body: Readonly<Record<string, unknown>>) =>
    steps.push(writeStep(`${method} role ${name}`, `auth/${method}/role/${name}`, body));
  steps.push(authStep('approle'));
  for (const [name, token_policies] of roles) addRole('approle', name, { token_policies, ...ttlSeconds });
  steps.push(authStep('kubernetes'));
  if (kubernetes.host !== undefined) {
    const { host, ca } = kubernetes;
    const apart = ca !== undefined && { kubernetes_ca_cert: ca, disable_local_ca_jwt: true };
    const body = { kubernetes_host: host, ...apart };
    steps.push(writeStep('kubernetes API server', 'auth/kubernetes/config', body));
  }
  for (const [name, token_policies] of roles) {
    addRole('kubernetes', name, {
      bound_service_account_names: [name],
      bound_service_account_namespaces: [kubernetes.namespace],
      token_policies,
      ...ttlSeconds,
    });
  }
  return steps;
}
