/**
 * npm run vault:setup -- [--dry-run | --check] [--kubernetes-host URL [--kubernetes-ca FILE]]
 *                        [--kubernetes-namespace fieldkeep] [--json]
 *
 * Makes everything that Vault or OpenBao needs for the policy, with an operator's token (VAULT_ADDR, VAULT_TOKEN or another
 * login). Running it again changes nothing. --dry-run prints it as commands and asks nobody; --check changes nothing and
 * exits 1 when something drifted.
 */
import { readFileSync } from 'node:fs';
import { readConfig } from '../src/config.ts';
import { StartupError } from '../src/errors.ts';
import { VaultError, type Vault } from '../src/keys/vault.ts';
import { createLogin } from '../src/keys/vault-login.ts';
import { openClient } from '../src/keys/vault-open.ts';
import { planVault, type Step } from '../src/keys/vault-plan.ts';
import { readPolicy } from '../src/policy-watch.ts';
import { listVaultNeeds } from '../src/rotation/sources.ts';
import { flag, quote, readWords, run, text } from './support.ts';

const usage =
  'Usage: npm run vault:setup -- [--dry-run | --check] [--kubernetes-host URL [--kubernetes-ca FILE]] ' +
  '[--kubernetes-namespace fieldkeep] [--json]';

const options = {
  ...{ 'dry-run': flag, check: flag, json: flag, 'kubernetes-host': text, 'kubernetes-ca': text },
  'kubernetes-namespace': { ...text, default: 'fieldkeep' },
};

function readAuthority(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    throw new StartupError(`--kubernetes-ca: ${file} cannot be read.`);
  }
}

/** A step as a command of `vault` (or `bao`, which takes the same ones). */
function formatCommand({ path, body }: Step): string {
  const policy = body['policy'];
  if (typeof policy === 'string') {
    return `vault policy write ${path.split('/').at(-1)!} - <<'EOF'\n${policy}EOF`;
  }
  const fields = Object.entries(body).map(([name, value]) => {
    const text = Array.isArray(value) ? value.join(',') : String(value);
    // A PEM has line ends, which sh keeps inside quotes.
    return /^[\w,./:-]+$/.test(text) ? `${name}=${text}` : `${name}=${quote(text)}`;
  });
  return `vault write ${path} ${fields.join(' ')}`;
}

type Outcome = 'as it should be' | 'made' | 'mended' | 'missing' | 'drifted' | 'cannot be mended';

interface Report {
  readonly what: string;
  readonly outcome: Outcome;
  readonly differences?: readonly string[];
}

/** Vault's own words may be shown here: nothing that a step sends is a secret. */
function explain(what: string, error: unknown): unknown {
  if (!(error instanceof VaultError)) return error;
  if (error.status === 403) return new StartupError(`${what}: the token may not do that (403).`);
  return new StartupError(`${what}: ${error.message}${error.said === undefined ? '' : ` ${error.said}`}`);
}

/** Undefined when it is not there. OpenBao answers 400 for an auth method that is not enabled. */
async function find(vault: Vault, token: string, step: Step) {
  try {
    return await vault.call('GET', step.read, token);
  } catch (error) {
    if (error instanceof VaultError && (error.status === 404 || error.status === 400)) return undefined;
    throw explain(step.what, error);
  }
}

async function check(vault: Vault, token: string, step: Step): Promise<Report> {
  const found = await find(vault, token, step);
  if (found === undefined) return { what: step.what, outcome: 'missing' };
  const differences = step.differences(found);
  if (differences.length === 0) return { what: step.what, outcome: 'as it should be' };
  return { what: step.what, outcome: 'drifted', differences };
}

async function apply(vault: Vault, token: string, step: Step): Promise<Report> {
  const before = await check(vault, token, step);
  if (before.outcome === 'as it should be') return before;
  const change = before.outcome === 'missing' ? step : step.mend;
  if (change === undefined) return { ...before, outcome: 'cannot be mended' };
  try {
    await vault.call('POST', change.path, token, change.body);
  } catch (error) {
    throw explain(step.what, error);
  }
  const after = await check(vault, token, step);
  if (after.outcome !== 'as it should be') return { ...after, outcome: 'cannot be mended' };
  return { what: step.what, outcome: before.outcome === 'missing' ? 'made' : 'mended' };
}

const marks: Readonly<Record<Outcome, string>> = {
  'as it should be': '=',
  made: '+',
  mended: '~',
  missing: '-',
  drifted: '!',
  'cannot be mended': '!',
};

function format({ what, outcome, differences = [] }: Report): string {
  return `${marks[outcome]} ${what.padEnd(36)} ${outcome}${differences.map((each) => `\n    ${each}`).join('')}`;
}

await run(async () => {
  const { values } = readWords(usage, { options });
  const config = readConfig(process.env);
  const host = values['kubernetes-host'];
  const ca = values['kubernetes-ca'];
  const cluster = { ...(host !== undefined && { host }), ...(ca !== undefined && { ca: readAuthority(ca) }) };
  const { classes, columns } = readPolicy(config.policyFile);
  const steps = planVault({
    mount: config.transitMount,
    classes: [...classes.keys()],
    needs: listVaultNeeds(columns, config.sources),
    kubernetes: { namespace: values['kubernetes-namespace'], ...cluster },
  });
  if (values['dry-run']) {
    process.stdout.write(`${steps.map(formatCommand).join('\n')}\n`);
    return;
  }
  if (config.vault === undefined)
    throw new StartupError('VAULT_ADDR and a login (VAULT_TOKEN, …) say where to set up.');
  const vault = openClient(config.vault);
  try {
    const { token } = await createLogin(vault, config.vault.auth)();
    const handle = values.check ? check : apply;
    const reports: Report[] = [];
    for (const step of steps) {
      const report = await handle(vault, token, step);
      reports.push(report);
      if (!values.json) process.stdout.write(`${format(report)}\n`);
    }
    if (values.json) process.stdout.write(`${JSON.stringify(reports)}\n`);
    const bad = reports.filter(({ outcome }) => ['missing', 'drifted', 'cannot be mended'].includes(outcome));
    if (bad.length > 0) {
      process.exitCode = 1;
      process.stderr.write(`${bad.length} of ${reports.length} are not as they should be.\n`);
    }
  } finally {
    vault.close();
  }
});
