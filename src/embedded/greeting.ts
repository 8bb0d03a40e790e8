/** What a start prints: where the service is, what is only for a laptop, and three commands to try. */
import { mkdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import type { Config } from '../config.ts';
import { writePrivate } from './home.ts';

/** Just enough of an operation to make the examples' envelope with it. */
export type Encrypt = (agent: string, body: object) => Promise<unknown>;

export interface Greeting {
  /** Absent in a worker. */
  readonly url?: string;
  readonly metricsUrl: string;
  readonly config: Config;
  readonly embedded: boolean;
  /** Whether the example requests could be written. */
  readonly examples: boolean;
}

const context = { table: 'demo.employees', column: 'bank', row: '1' };
const value = 'GB29 NWBK 6016 1331 9268 19';

/**
 * Writes the requests that the printed commands send: an envelope made by the service itself, as the payroll agent, with
 * an audit entry like any other. False when the policy in force has no such agent or class.
 */
export async function writeExamples(encrypt: Encrypt, home: string): Promise<boolean> {
  let envelope: string;
  try {
    ({ envelope } = (await encrypt('payroll-agent', { class: 'bank', value, context })) as { envelope: string });
  } catch {
    return false;
  }
  const folder = join(home, 'try');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  writePrivate(join(folder, 'bank.json'), JSON.stringify({ envelope, context }));
  writePrivate(join(folder, 'bank-full.json'), JSON.stringify({ envelope, context, view: 'full' }));
  return true;
}

function quote(path: string): string {
  return /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

function command(url: string, home: string, agent: string, file: string): string {
  const near = relative(process.cwd(), home);
  const at = (name: string) => quote(join(near.startsWith('..') || near === '' ? home : near, name));
  const elsewhere = near === '.fieldkeep' ? '' : `FIELDKEEP_HOME=${at('')} `;
  const token = `$(${elsewhere}npm run -s token -- --agent ${agent})`;
  return `  curl -sw '\\n' --cacert ${at('tls/ca.pem')} -H "authorization: Bearer ${token}" -H content-type:application/json -d @${at(`try/${file}`)} ${url}/v1/decrypt`;
}

function describeKeeper({ vault }: Config): string {
  if (vault === undefined) return 'Not for production: root keys are a file.';
  return `Root keys: ${vault.address}, ${vault.mount}/ · login: ${vault.auth.method}`;
}

/** What a worker prints: it answers nobody, so there is nothing to try. */
function greetWorker({ metricsUrl, config }: Greeting): string {
  return [
    'Fieldkeep works: it makes data keys, rotates and re-encrypts.',
    describeKeeper(config),
    `Policy: ${config.policyFile} · metrics and probes: ${metricsUrl}`,
    'Stop: Ctrl-C',
    '',
  ].join('\n');
}

export function greet(greeting: Greeting): string {
  const { url, config, embedded, examples } = greeting;
  if (url === undefined) return greetWorker(greeting);
  const lines = [`Fieldkeep listens on ${url}`, ''];
  if (embedded && config.vault === undefined) {
    lines.push(
      `Not for production: Postgres is embedded, root keys are a file, certificate and token issuer are local.`,
    );
  } else {
    if (embedded) lines.push('Not for production: Postgres is embedded, certificate and token issuer are local.');
    lines.push(describeKeeper(config));
  }
  if (config.families !== undefined) lines.push(`This process serves ${config.families.join(', ')} only.`);
  lines.push(`State: ${config.home} · policy: ${config.policyFile}`, '');
  if (examples) {
    lines.push(
      'Try, in another terminal, the same bank account for three agents:',
      '',
      '  # payroll may see all of it',
      command(url, config.home, 'payroll-agent', 'bank-full.json'),
      '  # invoicing gets a mask unless it asks for the last four',
      command(url, config.home, 'invoice-agent', 'bank.json'),
      '  # recruiting gets a refusal',
      command(url, config.home, 'recruit-agent', 'bank.json'),
      '',
    );
  }
  lines.push(
    'The whole story on 100,000 rows: npm run demo      How things stand: npm run status      Stop: Ctrl-C',
    '',
  );
  return lines.join('\n');
}
