import assert from 'node:assert/strict';
import { findClosed, joinLimits, liftLimits, toLimits } from '../../src/policy/limits.ts';
import { isTimeZone, isWithin } from '../../src/policy/schedule.ts';
import { parsePolicy, PolicyError } from '../../src/policy/policy.ts';
import { readText } from './support.ts';

const night = { from: '22:00', to: '06:00', zone: 'Europe/Berlin' };
const at = (iso: string) => new Date(iso);

describe('policy/limits', () => {
  it('knows the usual ones, and keeps what a class says', () => {
    assert.deepEqual(toLimits(), { concurrency: 1, batchMsMax: 100, lagMibMax: 64, hours: [] });
    const given = toLimits({ concurrency: 4, rowsPerSecondMax: 500, hours: night });
    assert.deepEqual(given, { concurrency: 4, rowsPerSecondMax: 500, batchMsMax: 100, lagMibMax: 64, hours: [night] });
  });

  it('takes the strictest of several classes, and all of their hours', () => {
    const one = toLimits({ concurrency: 4, rowsPerSecondMax: 500, lagMibMax: 10 });
    const other = toLimits({ concurrency: 2, batchMsMax: 50, hours: night });
    const joined = joinLimits([one, other]);
    assert.deepEqual(joined, { concurrency: 2, rowsPerSecondMax: 500, batchMsMax: 50, lagMibMax: 10, hours: [night] });
    assert.deepEqual(joinLimits([]), toLimits());
  });

  it('opens up in an emergency: no rate, no hours; replicas still count', () => {
    const lifted = liftLimits(toLimits({ rowsPerSecondMax: 5, hours: night, lagMibMax: 7 }));
    assert.equal(lifted.rowsPerSecondMax, undefined);
    assert.deepEqual([lifted.hours, lifted.lagMibMax], [[], 7]);
    assert.ok(lifted.batchMsMax > 100);
  });

  it('goes by the clock on the wall of its zone, over midnight and over changes to summer time', () => {
    assert.ok(isWithin(night, at('2027-01-10T21:00:00Z'))); // 22:00 in Berlin
    assert.ok(!isWithin(night, at('2027-01-10T20:59:59Z')));
    assert.ok(isWithin(night, at('2027-01-11T04:59:00Z')));
    assert.ok(!isWithin(night, at('2027-01-11T05:00:00Z'))); // 06:00
    assert.ok(isWithin(night, at('2027-07-10T20:00:00Z'))); // 22:00 in summer
    assert.ok(!isWithin(night, at('2027-07-10T04:00:00Z')));
    const day = { from: '09:00', to: '17:30', zone: 'America/New_York' };
    assert.ok(isWithin(day, at('2027-01-11T14:00:00Z')));
    assert.ok(!isWithin(day, at('2027-01-11T22:30:00Z')));
    assert.ok(isWithin({ from: '00:00', to: '00:00', zone: 'UTC' }, at('2027-01-11T12:00:00Z')), 'the whole day');
  });

  it('names the hours that are closed', () => {
    const limits = joinLimits([
      toLimits({ hours: night }),
      toLimits({ hours: { from: '00:00', to: '12:00', zone: 'UTC' } }),
    ]);
    assert.deepEqual(findClosed(limits, at('2027-01-10T21:30:00Z'))?.zone, 'UTC');
    assert.deepEqual(findClosed(limits, at('2027-01-11T02:00:00Z')), undefined);
  });

  it('are read from a class of the policy, and refused with their place', () => {
    const file = JSON.parse(readText('keys-policy.json')) as { classes: Record<string, Record<string, unknown>> };
    file.classes['ssn']!['rotation'] = { concurrency: 3, hours: night };
    assert.equal(parsePolicy(JSON.stringify(file)).classes.get('ssn')!.rotation.concurrency, 3);
    file.classes['ssn']!['rotation'] = {
      concurrency: 0,
      rowsPerSecond: 5,
      hours: { ...night, zone: 'Europe/Nowhere', to: '24:00' },
    };
    assert.throws(
      () => parsePolicy(JSON.stringify(file)),
      (error) => {
        assert.ok(error instanceof PolicyError);
        const paths = error.problems.map((problem) => problem.path);
        for (const path of ['concurrency', 'rowsPerSecond', 'hours.zone', 'hours.to']) {
          assert.ok(paths.includes(`classes.ssn.rotation.${path}`), `${path} among ${paths.join(', ')}`);
        }
        return true;
      },
    );
    assert.ok(isTimeZone('Europe/Berlin') && !isTimeZone('Europe/Nowhere'));
  });
});
