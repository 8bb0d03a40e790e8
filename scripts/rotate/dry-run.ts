/** What a rehearsal of a rotation says, for people. */
import type { RunProgress } from '../progress.ts';
import { formatCount as count, formatSeconds } from '../support.ts';

export interface DryRun extends RunProgress {
  readonly sample: { readonly values: number; readonly failed: number };
  readonly predicted: { readonly seconds: number; readonly valuesPerSecond: number; readonly walBytes: number };
  readonly basis: 'measured' | 'assumed';
  readonly warnings: readonly string[];
  readonly nextRotationAt?: string;
}

export function describeDryRun({
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
    ...(sample.values === 0
      ? [`About ${formatSeconds(seconds)}, for there is nothing to re-encrypt.`]
      : [
          `Tried ${count(sample.values)} of them: ${count(sample.values - sample.failed)} open.`,
          `About ${formatSeconds(seconds)} at ${count(valuesPerSecond)} values/s, ${count(Math.round(walBytes / 2 ** 20))} MiB of log (${from}).`,
        ]),
    ...warnings.map((warning) => `Mind: ${warning}`),
    nextRotationAt === undefined ? 'It has no schedule.' : `By schedule it rotates on ${nextRotationAt.slice(0, 10)}.`,
  ].join('\n');
}
