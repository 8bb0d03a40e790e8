/** The scanner and JSON.parse are of one mind about what JSON is, and places are where the values are. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { parentOf, pathOf, scanJson } from '../../src/policy/json.ts';

const findFlaw = (text: string) => scanJson(text).flaws[0];
/** What JSON.parse has nothing against. */
const ours = /twice|cannot be used|half a character/;

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
        const flaws = scanJson(JSON.stringify(value, undefined, indent)).flaws;
        assert.deepEqual(
          flaws.filter(({ message }) => !ours.test(message)),
          [],
        );
      }),
    );
  });

  it('agrees with JSON.parse on damaged texts, but for what it refuses itself', () => {
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
          const flaw = scanJson(damaged).flaws.find(({ message }) => !ours.test(message));
          assert.equal(flaw === undefined, parses(damaged), JSON.stringify(damaged));
          if (flaw !== undefined) assert.ok(flaw.offset >= 0 && flaw.offset <= damaged.length);
        },
      ),
      { numRuns: 2000 },
    );
    for (const text of ['{"a":1,"b":{"a":1}}', '[{"a":1},{"a":1}]', '{"":1}', ' 1 ', '"\\ud83d\\ude00"']) {
      assert.equal(findFlaw(text), undefined);
    }
    for (const text of ['{"a":1,"a":1}', '{"a":1,"\\u0061":1}', '[{"x":{"":1,"":1}}]']) {
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

  it('refuses names that would be passed over, and texts that nobody could name again', () => {
    for (const text of ['{"__proto__":1}', '[{"a":{"__proto\\u005f_":{}}}]']) {
      assert.match(findFlaw(text)!.message, /cannot be used/);
    }
    for (const text of ['"\\ud800"', '"\ud800"', '["a\\u0000b"]', '{"\\udc00":1}']) {
      assert.match(findFlaw(text)!.message, /half a character/);
    }
  });

  it('finds every flaw up to where it is no JSON any more', () => {
    const { flaws } = scanJson('{"a":1,"a":2,\n"b":["\\u0000"],"__proto__":nope,"a":3}');
    assert.deepEqual(
      flaws.map(({ offset }) => offset),
      [7, 19, 29, 41],
    );
  });

  it('knows where every value stands', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 4 }), fc.constantFrom(0, 2), (value, indent) => {
        const text = JSON.stringify(value, undefined, indent);
        const { places } = scanJson(text);
        const visit = (each: unknown, path: string): void => {
          if (typeof each !== 'object' || each === null) return;
          for (const [key, member] of Object.entries(each) as [string, unknown][]) {
            const step = Array.isArray(each) ? Number(key) : key;
            const at = pathOf(path, step);
            assert.equal(parentOf(at), path);
            const begin: string = Array.isArray(each)
              ? JSON.stringify(member, undefined, 0).slice(0, 1)
              : JSON.stringify(key);
            assert.ok(text.startsWith(begin, places.get(at)), `${at} in ${text}`);
            visit(member, at);
          }
        };
        visit(value, '');
      }),
    );
  });
});
