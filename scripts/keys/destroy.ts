/**
 * Destroying a key version: the operator asks, other people agree, the operator repeats the call, and whoever can carries it
 * out: the service itself where its root keys are a file, an operator's own login at Vault elsewhere.
 */
import { randomUUID } from 'node:crypto';
import { userInfo } from 'node:os';
import { AuditLog } from '../../src/audit/log.ts';
import type { Config } from '../../src/config.ts';
import { openPool, type Pool } from '../../src/db.ts';
import { findEmbeddedRows } from '../../src/embedded/postgres.ts';
import { StartupError } from '../../src/errors.ts';
import { Keyring } from '../../src/keys/keyring.ts';
import { openVaultRootKeys } from '../../src/keys/vault-open.ts';
import { readPolicy } from '../../src/policy-watch.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { carryOut } from '../../src/retirement/destroy.ts';
import { findDestruction, type Destruction } from '../../src/retirement/destroy-store.ts';
import { openSources } from '../../src/rotation/sources.ts';
import { openReaders, openTargets } from '../../src/targets/targets.ts';
import { describeVotes, type Approval } from '../approvals.ts';
import { findService, home, mustBeOk, openApi, operator, quote, type Api, type RunningService } from '../support.ts';
import { getDatabaseUrl } from './database.ts';

export interface Asked {
  readonly family: string;
  readonly version: number;
  readonly reason: string | undefined;
  readonly approval: string | undefined;
  readonly withoutGuards: boolean;
  readonly callOff: boolean;
}

/** How the API tells it. */
interface Told {
  readonly status: 'pending' | 'destroying' | 'calling-off' | 'destroyed' | 'refused';
  readonly approvalId?: string;
  readonly refused?: string;
  readonly problem?: string;
  readonly certificate?: string;
}

const waitMaxMs = 30_000;
const pollMs = 250;

/** What has to happen before anything can be carried out. */
function describeWay({ family, version }: Asked): string {
  const path = `/v1/keys/${family}/versions/${version}/destroy`;
  return (
    `Nobody has agreed to destroying version ${version} of family ${family}. Where the service runs, ask with ` +
    `npm run keys -- destroy ${family} ${version} --reason "…" (POST ${path}); when the people whom the policy names in ` +
    'approvals.destroy have agreed, repeat it with --approval ID; then run this again.'
  );
}

function describePending(asked: Asked, approval: Approval): string {
  const { family, version, reason, withoutGuards } = asked;
  const { guards = [], waived = [] } = approval.details;
  const again = [`destroy ${family} ${version} --reason ${quote(reason!)}`, withoutGuards ? ' --without-guards' : ''];
  const then = `  npm run keys -- ${again.join('')} --approval ${approval.id}\n`;
  return [
    `Approval ${approval.id} is about destroying version ${version} of ${family} for good:\n`,
    ...guards.map((each) => `  ${each.table}.${each.column}: guarded since ${each.validatedAt}\n`),
    ...waived.map((each) => `  goes without ${each}\n`),
    describeVotes(approval, then),
  ].join('');
}

/** Asks, or with an approval has it begun. Answers how it stands, and sentences for people where others have to agree. */
async function ask(api: Api, asked: Asked): Promise<{ told: Told; text?: string }> {
  const { family, version, reason, approval, withoutGuards } = asked;
  const path = `/v1/keys/${encodeURIComponent(family)}/versions/${version}/destroy`;
  const headers = approval === undefined ? {} : { 'approval-id': approval };
  const body = { reason, ...(withoutGuards && { withoutGuards }) };
  const told = mustBeOk(await api.call(operator, 'POST', path, body, headers)) as unknown as Told;
  if (told.status !== 'pending') return { told };
  const found = mustBeOk(await api.call(operator, 'GET', `/v1/approvals/${told.approvalId!}`));
  return { told, text: describePending(asked, found as unknown as Approval) };
}

async function follow(api: Api, { family, version }: Asked): Promise<Told> {
  const deadline = performance.now() + waitMaxMs;
  for (;;) {
    const { versions } = mustBeOk(await api.call(operator, 'GET', `/v1/keys/${encodeURIComponent(family)}`));
    const found = (versions as { version: number; destruction: Told }[]).find((each) => each.version === version);
    const told = found!.destruction;
    const isOver = !['destroying', 'calling-off'].includes(told.status) && told.certificate !== 'unsigned';
    if (isOver || told.problem !== undefined || performance.now() > deadline) return told;
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

/** Nothing of a running service is needed; its processes learn of it through the database. */
async function carry(config: Config, asked: Asked): Promise<Destruction> {
  const databaseUrl = getDatabaseUrl(config);
  const pool = openPool(databaseUrl, { max: 2, name: 'keys', statementTimeoutMs: 600_000 });
  try {
    const found = await findDestruction(pool, asked.family, asked.version);
    if (found === undefined || found.refusedAt !== undefined) throw new StartupError(describeWay(asked));
    return found.finishedAt === undefined ? await carryFurther(config, databaseUrl, pool, found.id) : found;
  } finally {
    await pool.end();
  }
}

async function carryFurther(config: Config, databaseUrl: string, pool: Pool, id: string): Promise<Destruction> {
  const quiet = { warn: () => undefined, error: () => undefined };
  const { rootKeys } = openVaultRootKeys(config.vault!, quiet);
  const rows = config.databaseUrl === undefined ? new Map([[undefined, findEmbeddedRows(home)]]) : config.rows;
  const targets = openTargets(databaseUrl, config.targets, { rows, statementTimeoutMs: 3_600_000 });
  const readers = openReaders(config.readers);
  const keyring = await Keyring.open({ pool, rootKeys, onError: () => undefined });
  const instanceId = randomUUID();
  const audit = await AuditLog.open(databaseUrl, pool, { instanceId });
  try {
    const policy = readPolicy(config.policyFile);
    const catalog = await loadCatalog(targets, policy.columns);
    const shop = {
      ...{ instanceId, pool, targets, readers, keyring, audit },
      ...{ policy, catalog, rootKeys, sources: openSources() },
    };
    return await carryOut(shop, id, { person: userInfo().username });
  } finally {
    await audit.close();
    keyring.close();
    rootKeys.close();
    await targets.close();
    await readers.close();
  }
}

function toTold({ destroyedAt, refused, problem, signature }: Destruction): Told {
  const told = { ...(problem !== undefined && { problem }), ...(refused !== undefined && { refused }) };
  if (destroyedAt === undefined) return { status: refused === undefined ? 'destroying' : 'refused', ...told };
  return { status: 'destroyed', certificate: signature === undefined ? 'unsigned' : 'signed', ...told };
}

/** Errors: StartupError where it is not as it was asked for: destroyed, or kept. */
function tell({ family, version, callOff }: Asked, { status, refused, problem, certificate }: Told): void {
  const name = `Version ${version} of family ${family}`;
  if (callOff) {
    if (status === 'destroyed') throw new StartupError(`${name} is destroyed: its root key was gone before.`);
    const how =
      status === 'refused' ? `stays as it was. ${refused}` : `is not kept yet: ${problem ?? 'it is on its way.'}`;
    process.stdout.write(`${name} ${how}\n`);
    return;
  }
  if (status === 'refused') throw new StartupError(`${name} is not destroyed: ${refused}`);
  if (status !== 'destroyed') throw new StartupError(`${name} is not destroyed yet: ${problem ?? 'it is on its way.'}`);
  const signed =
    certificate === 'signed'
      ? `Its certificate: npm run keys -- certificate ${family} ${version} FILE`
      : `Its certificate is not signed yet: ${problem ?? 'it is on its way.'}`;
  process.stdout.write(
    `${name} is destroyed: the keeper of root keys has confirmed that its root key is gone.\n` +
      `What is left of it are snapshots of Vault itself from before this moment.\n${signed}\n`,
  );
}

/** Asks the service that runs here, if one does and there is a reason; then carries out what was agreed to, if we can. */
export async function destroy(config: Config, asked: Asked): Promise<void> {
  const found = findService();
  const service = typeof found?.url === 'string' && asked.reason !== undefined ? found : undefined;
  if (asked.callOff) {
    if (service !== undefined) return await callOff(service, asked);
    throw new StartupError('Calling it off wants a --reason, and a service with an API that runs here.');
  }
  if (service === undefined && config.vault === undefined) {
    throw new StartupError(
      'A service with an API must be running here, to be asked with --reason; or VAULT_ADDR and the login of an operator ' +
        'are needed, to carry out what was agreed to.',
    );
  }
  if (service !== undefined && !(await askHere(service, config, asked))) return;
  if (config.vault !== undefined) tell(asked, toTold(await carry(config, asked)));
}

/** Takes back what was agreed to; the service's worker ends it, unless Vault wants an operator for that. */
async function callOff(service: RunningService, asked: Asked): Promise<void> {
  const api = await openApi(service);
  try {
    const path = `/v1/keys/${encodeURIComponent(asked.family)}/versions/${asked.version}/destroy/call-off`;
    mustBeOk(await api.call(operator, 'POST', path, { reason: asked.reason }));
    tell(asked, await follow(api, asked));
  } finally {
    api.close();
  }
}

/** True when it was agreed to, and somebody with a login at Vault has to go on. */
async function askHere(service: RunningService, config: Config, asked: Asked): Promise<boolean> {
  const api = await openApi(service);
  try {
    const { told, text } = await ask(api, asked);
    if (text !== undefined) process.stdout.write(text);
    if (told.status === 'pending') return false;
    if (config.vault === undefined) tell(asked, await follow(api, asked));
    return true;
  } finally {
    api.close();
  }
}
