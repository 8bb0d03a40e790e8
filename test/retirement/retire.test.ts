import assert from 'node:assert/strict';
import type { KeyFamily, KeyVersion, VersionState } from '../../src/keys/version.ts';
import { toRetireRule } from '../../src/policy/limits.ts';
import {
  describeMissing,
  goneSince,
  guardDate,
  guardVersion,
  isWaivable,
  listMissing,
  type RetireFacts,
} from '../../src/retirement/retire.ts';

const rule = toRetireRule();
const day = (n: number) => new Date(Date.UTC(2026, 10, n, 14));

/** States of versions 1, 2, …, activated on the first, the second, … of November. */
function familyOf(...states: VersionState[]): KeyFamily {
  const versions = states.map((state, i): [number, KeyVersion] => [
    i + 1,
    {
      ...{
        family: 'ssn',
        version: i + 1,
        state,
        transitVersion: i + 1,
        bind: 'row',
        indexes: [],
        createdAt: day(i + 1),
      },
      ...(state !== 'pending' && { activatedAt: day(i + 1) }),
    },
  ]);
  const active = states.indexOf('active') + 1;
  return { family: 'ssn', versions: new Map(versions), ...(active > 0 && { active }) };
}

const place = { table: 'demo.employees', column: 'ssn' };

function factsOf(more: Partial<RetireFacts> = {}): RetireFacts {
  const family = familyOf('decrypt-only', 'active');
  return { now: day(3), family, version: 1, rule, columns: [place], rotation: undefined, ...more };
}

const told = (facts: RetireFacts, withoutGuards = false) => listMissing(facts, withoutGuards).map(describeMissing);

describe('what a version lacks before it may be destroyed', () => {
  it('is told with the dates that time alone will bring', () => {
    assert.deepEqual(told(factsOf()), [
      'a guard on demo.employees.ssn (handoffMax P7D) by 2026-11-09 14:00 UTC',
      'the end of backups that hold its rows (backupHorizon P35D) by 2026-12-14 14:00 UTC',
      'nobody to use it for P7D (unreadFor) by 2026-11-09 14:00 UTC',
    ]);
  });

  it('counts backups from the guard that came last, and from no guard of its own version', () => {
    const guarded = { ...place, guard: { version: 2, validatedAt: day(10) } };
    const other = { table: 'hr:app.people', column: 'ssn', guard: { version: 3, validatedAt: day(12) } };
    const facts = factsOf({ now: day(20), columns: [guarded, other] });
    assert.deepEqual(told(facts), [
      'the end of backups that hold its rows (backupHorizon P35D) by 2026-12-17 14:00 UTC',
    ]);
    assert.deepEqual(told({ ...facts, now: day(12 + 35) }), []);
    assert.equal(told({ ...facts, now: new Date(day(12 + 35).getTime() - 1) }).length, 1);
    const own = { ...place, guard: { version: 1, validatedAt: day(10) } };
    assert.match(told(factsOf({ now: day(100), columns: [own] })).join(), /^a guard on demo\.employees\.ssn,/);
  });

  it('counts reads from the last one, or from its successor where there was none', () => {
    const columns = [{ ...place, guard: { version: 2, validatedAt: day(3) } }];
    const facts = factsOf({ now: day(60), columns });
    assert.deepEqual(told(facts), []);
    assert.deepEqual(told({ ...facts, lastUsedAt: day(55) }), [
      'nobody to use it for P7D (unreadFor) by 2027-01-01 14:00 UTC',
    ]);
    assert.deepEqual(told({ ...facts, lastUsedAt: day(53) }), []);
  });

  it('says what keeps a guard from being made, and cannot say when it will be', () => {
    const columns = [{ ...place, problem: 'its database lacks fieldkeep.fe_guard_add' }];
    const [first] = listMissing(factsOf({ now: day(30), columns }));
    assert.deepEqual(first, {
      kind: 'guard',
      what: 'a guard on demo.employees.ssn (its database lacks fieldkeep.fe_guard_add)',
    });
  });

  it('is its turn, a family with an active version, and no rotation', () => {
    const family = familyOf('decrypt-only', 'decrypt-only', 'active');
    const facts = factsOf({ family, version: 2, now: day(99), columns: [], rotation: 'a run' });
    assert.deepEqual(told(facts), ['version 1 to be destroyed first', 'the end of the rotation that is under way']);
    assert.deepEqual(told({ ...facts, version: 1, rotation: undefined }), []);
    const closed = familyOf('decrypt-only', 'compromised');
    assert.deepEqual(told({ ...facts, family: closed, version: 1, rotation: undefined }), ['an active version']);
    assert.match(told({ ...facts, family: closed, version: 2, rotation: undefined }).join(), /nobody to use it/);
  });

  it('may go without guards, counting from the last rotation, and without nothing else', () => {
    const facts = factsOf({ now: day(60), doneAt: day(5) });
    assert.deepEqual(
      listMissing(facts, true).map((each) => [each.kind, isWaivable(each)]),
      [['guard', true]],
    );
    assert.deepEqual(goneSince(facts, true), day(5));
    assert.equal(goneSince(facts, false), undefined);
    const late = { ...facts, doneAt: day(50), lastUsedAt: day(58) };
    assert.deepEqual(
      listMissing(late, true).map((each) => [each.kind, isWaivable(each)]),
      [
        ['guard', true],
        ['backups', false],
        ['reads', false],
      ],
    );
    const { doneAt: _, ...never } = facts;
    assert.deepEqual(
      listMissing({ ...never, now: day(999) }, true).map(({ kind }) => kind),
      ['guard', 'backups'],
      'no rotation ever counted that it is gone',
    );
    assert.ok(!isWaivable({ kind: 'turn', what: '' }) && !isWaivable({ kind: 'rotation', what: '' }));
  });
});

describe('when columns are guarded', () => {
  it('is handoffMax after the successor became active; at once where that is nothing', () => {
    const family = familyOf('decrypt-only', 'active');
    assert.deepEqual(guardDate(family, 1, rule), day(9));
    assert.equal(guardDate(family, 2, rule), undefined);
    assert.equal(guardVersion(family, rule, new Date(day(9).getTime() - 1)), undefined);
    assert.equal(guardVersion(family, rule, day(9)), 2);
    assert.equal(guardVersion(family, { ...rule, handoffMax: 'P0D' }, day(2)), 2);
  });

  it('goes by the newest whose predecessors’ time is over, and never by what is pending or first', () => {
    const family = familyOf('destroyed', 'decrypt-only', 'active', 'pending');
    assert.equal(guardVersion(family, rule, day(9)), 2);
    assert.equal(guardVersion(family, rule, day(99)), 3);
    assert.equal(guardVersion(familyOf('active'), rule, day(99)), undefined);
    assert.equal(guardVersion(familyOf('decrypt-only', 'compromised'), rule, day(99)), undefined);
  });
});
