/** What `bench live` found, as tables. */
import type { Verdict } from '../../demo/verify.ts';
import { rate, type Pace } from '../pace.ts';
import type { Section } from '../table.ts';
import type { Application } from './application.ts';
import { secondsOf, type Span } from './latency.ts';
import type { Measured } from './phases.ts';
import type { Traffic } from './traffic.ts';

export function tellLatency(measured: Measured, traffic: Traffic, application: Application): Section['rows'] {
  const quiet = traffic.recorder.summarise([measured.quiet]);
  const phases: [name: string, when: readonly Span[]][] = [
    ['quiet', [measured.quiet]],
    ['beside raw UPDATEs', [measured.besideRaw]],
    ['beside rotations', measured.busy],
    ['beside rotations held back', measured.gentle],
  ];
  return phases.map(([name, when]) => {
    const { perSecond, failed, p50Ms, p99Ms } = traffic.recorder.summarise(when);
    const writes = application.recorder.summarise(when);
    const figures = {
      'req/s': perSecond,
      'p50 ms': p50Ms,
      'p99 ms': p99Ms,
      'of quiet p99': p99Ms / quiet.p99Ms,
      failed,
      'writes/s': writes.perSecond,
      'their p99 ms': writes.p99Ms,
    };
    return { name, figures };
  });
}

export function tellRates({ raw, engine, rotationSeconds, gentle, gentleEngine }: Measured): Section['rows'] {
  const row = (name: string, pace: Pace, seconds: number) => ({
    name,
    figures: { 'values/s': rate(pace), 'of raw': rate(pace) / rate(raw), values: pace.rows, 'whole s': seconds },
  });
  return [
    row('raw UPDATE, there and back', raw, raw.seconds),
    row('rotations of all families', engine, rotationSeconds),
    row('the same, held back', gentleEngine, secondsOf(gentle)),
  ];
}

/** How many values of one column are stale, and how long it took to find out. */
export interface Scan {
  readonly column: string;
  readonly stale: number;
  readonly ms: number;
}

export function tellProof(
  { opened, lost, mixed, closed, plaintext }: Verdict,
  scans: readonly Scan[],
): Section['rows'] {
  const stale = scans.reduce((sum, scan) => sum + scan.stale, 0);
  return [
    { name: 'every value', figures: { opened, lost, 'mixed up': mixed, 'not opening': closed, plaintext, stale } },
  ];
}

/** At once, when the version index still holds what the rotation left behind, and after a vacuum. */
export function tellScans(first: readonly Scan[], second: readonly Scan[]): Section['rows'] {
  return first.map(({ column, ms }, i) => ({ name: column, figures: { ms, 'after vacuum ms': second[i]!.ms } }));
}
