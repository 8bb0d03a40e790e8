import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Entry } from '../../src/audit/entry.ts';
import { FieldkeepError } from '../../src/errors.ts';
import { openRefusals, type RefusalsOptions } from '../../src/http/refusals.ts';
import { sourceOf } from '../../src/http/source.ts';

const principal = { agent: 'hr-agent', tenant: 'acme', system: false };

function open(more: Partial<RefusalsOptions> = {}) {
  const stored: Entry[][] = [];
  const test = { stored, fails: false, held: false };
  const refusals = openRefusals({
    store: (entries) => {
      if (test.fails) return Promise.reject(new FieldkeepError('audit_unavailable', 'No.'));
      stored.push([...entries]);
      return Promise.resolve();
    },
    mayStore: () => !test.held,
    ...more,
  });
  const refuse = (address: string, code: 'unauthenticated' | 'keys_not_ready' = 'unauthenticated') =>
    refusals.refuse({
      ...{ requestId: 'r1', action: 'decrypt', known: false, address },
      error: new FieldkeepError(code, 'Detail.'),
    });
  return Object.assign(test, { refusals, refuse });
}

describe('http/source', () => {
  it('is an address, and a /64 of IPv6', () => {
    assert.equal(sourceOf('203.0.113.7'), '203.0.113.7');
    assert.equal(sourceOf('::ffff:203.0.113.7'), '203.0.113.7');
    assert.equal(sourceOf('2001:db8::1'), '2001:db8:0:0::/64');
    assert.equal(sourceOf('2001:DB8:0:0:ffff::2'), '2001:db8:0:0::/64');
    assert.equal(sourceOf('2001:db8:0:1:2:3:4:5'), '2001:db8:0:1::/64');
    assert.equal(sourceOf('fe80::1%eth0'), 'fe80:0:0:0::/64');
    assert.equal(sourceOf('::1'), '0:0:0:0::/64');
    assert.equal(sourceOf('64:ff9b::203.0.113.7'), '64:ff9b:0:0::/64');
    assert.equal(sourceOf(undefined), 'unknown');
  });
});

describe('http/refusals', () => {
  it('writes the first of a source at once and the others as one entry with their number', async () => {
    const { refusals, refuse, stored } = open();
    for (let n = 0; n < 5; n += 1) await refuse('203.0.113.7');
    await refuse('203.0.113.7', 'keys_not_ready');
    await refuse('::ffff:203.0.113.7');
    await refuse('2001:db8::1');
    await refuse('2001:db8::2');
    assert.equal(stored.length, 2);
    const [first] = stored[0]!;
    assert.deepEqual(
      { ...first, time: '' },
      {
        ...{ v: 1, time: '', requestId: 'r1', action: 'decrypt', decision: 'deny', outcome: 'denied' },
        ...{ code: 'unauthenticated', purpose: 'source 203.0.113.7' },
      },
    );
    await refusals.close();
    const [summary, other] = stored[2]!;
    assert.equal(stored[2]!.length, 2);
    assert.equal(summary!.action, 'authenticate');
    assert.equal(summary!.outcome, 'denied');
    assert.equal(summary!.code, 'unauthenticated');
    assert.equal(summary!.count, 6);
    assert.match(summary!.purpose!, /^source 203\.0\.113\.7, \S+Z to \S+Z: unauthenticated 5, keys_not_ready 1$/);
    assert.equal(other!.count, 1);
    assert.match(other!.purpose!, /^source 2001:db8:0:0::\/64, /);
  });

  it('writes one entry a minute of a source that goes on, and a first one again after a quiet minute', async () => {
    const { refusals, refuse, stored } = open({ minuteMs: 100 });
    const until = performance.now() + 450;
    let asked = 0;
    while (performance.now() < until) {
      await refuse('203.0.113.7');
      asked += 1;
      await sleep(5);
    }
    await sleep(120);
    assert.equal(stored[0]![0]!.action, 'decrypt');
    assert.ok(stored.length >= 4 && stored.length <= 7, `${stored.length} commits`);
    for (const entries of stored.slice(1))
      assert.deepEqual(
        entries.map(({ action }) => action),
        ['authenticate'],
      );
    assert.equal(
      stored.flat().reduce((sum, { count }) => sum + (count ?? 1), 0),
      asked,
    );
    await sleep(220);
    await refuse('203.0.113.7');
    assert.equal(stored.at(-1)![0]!.action, 'decrypt');
    await refusals.close();
  });

  it('answers 429 above the number of a minute, counts on, and writes nothing more', async () => {
    const { refusals, refuse, stored } = open({ perMinuteMax: 3 });
    for (let n = 0; n < 3; n += 1) await refuse('203.0.113.7');
    await assert.rejects(refuse('203.0.113.7'), (error: FieldkeepError) => {
      assert.equal(error.code, 'rate_limited');
      assert.ok(error.extras.retryAfterSeconds! >= 1 && error.extras.retryAfterSeconds! <= 60);
      return true;
    });
    await refuse('203.0.113.8'); // another source
    assert.equal(stored.length, 2);
    await refusals.close();
    assert.equal(stored[2]![0]!.count, 3);
  });

  it('leaves an entry of each with a good credential, which no limit by address touches', async () => {
    const { refusals, stored } = open({ perMinuteMax: 1 });
    const error = new FieldkeepError('request_invalid', 'Detail.');
    const request = { requestId: 'r1', action: 'decrypt', principal, address: '203.0.113.7', error };
    for (let n = 0; n < 5; n += 1) await refusals.refuse({ ...request, known: true });
    assert.equal(stored.length, 5);
    assert.equal(stored[4]![0]!.agent, 'hr-agent');
    await refusals.refuse({ ...request, known: false });
    await assert.rejects(refusals.refuse({ ...request, known: false }), /Too many requests/);
    assert.equal(stored.length, 6);
    await refusals.close();
    assert.equal(stored[6]![0]!.count, 1);
  });

  it('counts sources beyond a number as one', async () => {
    const { refusals, refuse, stored } = open({ sourcesMax: 3 });
    for (let n = 0; n < 50; n += 1) await refuse(`203.0.113.${n}`);
    assert.equal(stored.length, 4);
    assert.equal(stored[3]![0]!.purpose, 'source other');
    await refusals.close();
    assert.deepEqual(
      stored[4]!.map(({ count }) => count),
      [46],
    );
  });

  it('keeps what could not be written, and answers 503 to the first', async () => {
    const test = open();
    test.fails = true;
    await assert.rejects(test.refuse('203.0.113.7'), /No\./);
    await test.refuse('203.0.113.7');
    test.fails = false;
    await test.refusals.close();
    assert.equal(test.stored[0]![0]!.count, 2);
    const kept = open({ minuteMs: 50 });
    await kept.refuse('203.0.113.7');
    kept.fails = true;
    await kept.refuse('203.0.113.7');
    await sleep(120);
    await kept.refuse('203.0.113.7');
    kept.fails = false;
    await kept.refusals.close();
    assert.equal(
      kept.stored.flat().reduce((sum, { count }) => sum + (count ?? 1), 0),
      3,
    );
  });

  it('writes nothing while the reserve of the disk is all that is left, and counts', async () => {
    const test = open();
    test.held = true;
    await test.refuse('203.0.113.7');
    await test.refuse('203.0.113.7');
    assert.equal(test.stored.length, 0);
    test.held = false;
    await test.refusals.close();
    assert.equal(test.stored[0]![0]!.count, 2);
  });
});
