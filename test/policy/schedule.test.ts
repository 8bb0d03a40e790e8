/** When the next rotation is due, in UTC. */
import assert from 'node:assert/strict';
import { durationPattern, addDuration } from '../../src/policy/schedule.ts';

const next = (from: string, iso: string) => addDuration(new Date(from), iso).toISOString().replace('.000Z', 'Z');

describe('policy/schedule', () => {
  const cases: [string, string, string][] = [
    ['2026-01-15T08:30:00Z', 'P3M', '2026-04-15T08:30:00Z'],
    ['2026-11-15T08:30:00Z', 'P3M', '2027-02-15T08:30:00Z'],
    ['2026-01-31T00:00:00Z', 'P1M', '2026-02-28T00:00:00Z'],
    ['2028-01-31T00:00:00Z', 'P1M', '2028-02-29T00:00:00Z'],
    ['2026-08-31T23:59:59Z', 'P1M', '2026-09-30T23:59:59Z'],
    ['2026-11-30T12:00:00Z', 'P3M', '2027-02-28T12:00:00Z'],
    ['2026-12-31T12:00:00Z', 'P1M', '2027-01-31T12:00:00Z'],
    ['2028-02-29T00:00:00Z', 'P1Y', '2029-02-28T00:00:00Z'],
    ['2028-02-29T00:00:00Z', 'P4Y', '2032-02-29T00:00:00Z'],
    ['2096-02-29T00:00:00Z', 'P4Y', '2100-02-28T00:00:00Z'],
    ['2026-02-28T00:00:00Z', 'P1M', '2026-03-28T00:00:00Z'],
    ['2026-02-27T00:00:00Z', 'P1D', '2026-02-28T00:00:00Z'],
    ['2026-12-25T00:00:00Z', 'P2W', '2027-01-08T00:00:00Z'],
    ['2026-01-31T10:00:00Z', 'P1Y1M1W1DT1H1M1S', '2027-03-08T11:01:01Z'],
    ['2026-01-01T23:45:00Z', 'PT30M', '2026-01-02T00:15:00Z'],
    ['2026-01-01T00:00:00Z', 'PT36H', '2026-01-02T12:00:00Z'],
    ['2026-01-01T00:00:00Z', 'PT5S', '2026-01-01T00:00:05Z'],
    ['2026-03-29T00:30:00Z', 'P1D', '2026-03-30T00:30:00Z'],
  ];
  for (const [from, iso, expected] of cases) {
    it(`${from} + ${iso}`, () => {
      const date = new Date(from);
      assert.equal(next(from, iso), expected);
      addDuration(date, iso);
      assert.equal(date.getTime(), Date.parse(from), 'the date itself is left alone');
    });
  }

  it('takes no other durations', () => {
    for (const iso of [
      '',
      'P',
      'PT',
      'P1DT',
      '3M',
      'p3m',
      'P3',
      'P-1M',
      'P1.5M',
      'P1M ',
      'P1D1M',
      'P1H',
      'P99999Y',
      'P1M\n',
    ]) {
      assert.throws(() => addDuration(new Date(0), iso), RangeError, iso);
      assert.doesNotMatch(iso, durationPattern);
    }
  });
});
