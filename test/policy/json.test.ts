/** The scanner and JSON.parse are of one mind about what JSON is. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { findFlaw } from '../../src/policy/json.ts';

function parses(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

describe('policy/json', () => {
  it('finds no flaw in what JSON.stringify writes', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 5 }), fc.constantFrom(0, 2, '\t'), (value, indent) => {
        assert.equal(findFlaw(JSON.stringify(value, undefined, indent)), undefined);
      }),
    );
  });

  it('agrees with JSON.parse on damaged texts, but for names that stand twice', () => {
    const letters = fc.constantFrom(...'{}[]":,\\/ \n\t\r\0.+-eE019utfnlrsaAé\u2028\ufeff\u00a0');
    fc.assert(
      fc.property(
        fc.json({ maxDepth: 3 }),
        fc.nat(),
        fc.nat(3),
        fc.array(letters, { maxLength: 3 }),
        (text, at, cut, put) => {
          const place = at % (text.length + 1);
          const damaged = text.slice(0, place) + put.join('') + text.slice(place + cut);
          const flaw = findFlaw(damaged);
          if (flaw?.message.includes('twice') === true) return;
          assert.equal(flaw === undefined, parses(damaged), JSON.stringify(damaged));
          if (flaw !== undefined) assert.ok(flaw.offset >= 0 && flaw.offset <= damaged.length);
        },
      ),
      { numRuns: 2000 },
    );
    for (const text of ['{"a":1,"b":{"a":1}}', '[{"a":1},{"a":1}]', '{"__proto__":1}', '{"":1}', ' 1 ', '"\\ud800"']) {
      assert.equal(findFlaw(text), undefined);
    }
    for (const text of [
      '{"a":1,"a":1}',
      '{"a":1,"\\u0061":1}',
      '{"__proto__":1,"__proto__":1}',
      '[{"x":{"":1,"":1}}]',
    ]) {
      assert.match(findFlaw(text)!.message, /twice/);
    }
  });

  it('takes no longer for a string that is never closed', () => {
    const started = performance.now();
    for (const unit of ['a', '\\n', '\\u0041', 'a\\"']) {
      assert.equal(findFlaw(`{"a": "${unit.repeat(200_000)}`)?.offset, 6);
      assert.equal(findFlaw(`"${unit.repeat(200_000)}"`), undefined);
    }
    assert.ok(performance.now() - started < 1_000);
  });
});
