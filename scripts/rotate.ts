/**
 * npm run rotate -- FAMILY [--wait] [--reason "…"] [--compromised] [--dry-run] [--json]
 *
 * Starts a rotation of a key family, as the operator; with --wait follows it to its end.
 */
import { parseArgs } from 'node:util';
import { StartupError } from '../src/errors.ts';
import { followRun, type RunProgress } from './progress.ts';
import { formatSeconds, getService, mustBeOk, openApi, run, type Caller } from './support.ts';

const usage = 'Usage: npm run rotate -- FAMILY [--wait] [--reason "…"] [--compromised] [--dry-run] [--json]';
const operator: Caller = { name: 'operator' };

function readArguments() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        wait: { type: 'boolean', default: false },
        reason: { type: 'string' },
        compromised: { type: 'boolean', default: false },
        'dry-run': { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
      },
    });
  } catch {
    throw new StartupError(usage);
  }
}

interface DryRun extends RunProgress {
  readonly sample: { readonly values: number; readonly failed: number };
  readonly predicted: { readonly seconds: number; readonly valuesPerSecond: number; readonly walBytes: number };
  readonly basis: 'measured' | 'assumed';
  readonly warnings: readonly string[];
  readonly nextRotationAt?: string;
}

const count = (n: number) => n.toLocaleString('en-US');

function describeDryRun({
  family,
  version,
  columns,
  sample,
  predicted,
  basis,
  warnings,
  nextRotationAt,
}: DryRun): string {
  const { seconds, valuesPerSecond, walBytes } = predicted;
  const from = basis === 'measured' ? 'as earlier runs took' : 'no run has been measured yet, so this is a guess';
  return [
    `A rotation of ${family} would make version ${version} and re-encrypt:`,
    ...columns.map(({ table, column, total }) => `  ${table}.${column}: ${count(total)} values`),
    `Tried ${count(sample.values)} of them: ${count(sample.values - sample.failed)} open.`,
    `About ${formatSeconds(seconds)} at ${count(valuesPerSecond)} values/s, ${count(Math.round(walBytes / 2 ** 20))} MiB of log (${from}).`,
    ...warnings.map((warning) => `Mind: ${warning}`),
    nextRotationAt === undefined ? 'It has no schedule.' : `By schedule it rotates on ${nextRotationAt.slice(0, 10)}.`,
  ].join('\n');
}

function describe(answer: RunProgress, dryRun: boolean): string {
  if (dryRun) return describeDryRun(answer as DryRun);
  return `Rotation ${answer.id} of ${answer.family} to version ${answer.version} has started. Follow it: npm run status`;
}

await run(async () => {
  const { values, positionals } = readArguments();
  const [family] = positionals;
  if (family === undefined || positionals.length > 1) throw new StartupError(usage);
  const api = await openApi(getService());
  try {
    const body = {
      ...(values.reason !== undefined && { reason: values.reason }),
      ...(values.compromised && { compromised: true }),
      ...(values['dry-run'] && { dryRun: true }),
    };
    const path = `/v1/keys/${encodeURIComponent(family)}/rotate`;
    const answer = mustBeOk(await api.call(operator, 'POST', path, body)) as unknown as RunProgress;
    if (!values.json) process.stdout.write(`${describe(answer, values['dry-run'])}\n`);
    const follow = values.wait && !values['dry-run'];
    const last = follow ? await followRun(api, answer.id, { quiet: values.json }) : answer;
    if (values.json) process.stdout.write(`${JSON.stringify(last)}\n`);
    if (last.phase === 'blocked') process.exitCode = 1;
  } finally {
    api.close();
  }
});
