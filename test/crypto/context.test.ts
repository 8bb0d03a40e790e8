/** No two contexts have the same bytes, and what is not text has none. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { open, seal } from '../../src/crypto/aead.ts';
import { encodeContext, encodeWrapContext, lengthPrefixed, u16, u32 } from '../../src/crypto/context.ts';
import { DataKey } from '../../src/crypto/data-key.ts';
import { context, family, part, refuses, version } from './support.ts';

const parts = ['tenant', 'table', 'column', 'row'] as const;
const place = { tenant: 'acme', table: 'demo.employees', column: 'ssn', row: '17' };
const names = { tenant: 'tenant', table: 'context.table', column: 'context.column', row: 'context.row' };

describe('crypto/context', () => {
  it('is the plain concatenation of its length-prefixed parts', () => {
    fc.assert(
      fc.property(family, version, context, (name, n, where) => {
        const lp = (text: string) => Buffer.concat([u16(Buffer.byteLength(text)), Buffer.from(text)]);
        const expected = [Buffer.from('fe1\0'), lp(name), u32(n), ...parts.map((each) => lp(where[each]))];
        assert.deepEqual(encodeContext(name, n, where), Buffer.concat(expected));
        assert.deepEqual(
          encodeWrapContext(where.tenant, name, n),
          Buffer.concat([Buffer.from('fe1/dek\0'), lp(where.tenant), lp(name), u32(n)]),
        );
      }),
    );
  });

  it('differs when any part differs', () => {
    fc.assert(
      fc.property(context, context, (one, two) => {
        const same = parts.every((each) => one[each] === two[each]);
        assert.equal(encodeContext('ssn', 1, one).equals(encodeContext('ssn', 1, two)), same);
      }),
    );
  });

  it('differs when a character moves over a boundary', () => {
    const key = DataKey.from(Buffer.alloc(64, 7));
    const pair = fc.constantFrom(...([0, 1, 2] as const));
    fc.assert(
      fc.property(context, pair, part, fc.nat(), (where, at, moving, cut) => {
        const [left, right] = [parts[at], parts[at + 1]!];
        const letters = [...moving, 'x'];
        const place = (cut % letters.length) + 1;
        const [stays, moves] = [letters.slice(0, place).join(''), letters.slice(place).join('') + 'y'];
        const one = { ...where, [left]: stays + moves, [right]: where[right] };
        const two = { ...where, [left]: stays, [right]: moves + where[right] };
        const [first, second] = [encodeContext('ssn', 1, one), encodeContext('ssn', 1, two)];
        assert.ok(!first.equals(second));
        refuses(() => open(key, seal(key, 'ssn', 1, first, 'v', 16), second), 'decryption_failed');
      }),
    );
    assert.ok(!encodeWrapContext('acmes', 'sn', 1).equals(encodeWrapContext('acme', 'ssn', 1)));
  });

  it('normalises nothing', () => {
    const spell = (row: string) => encodeContext('ssn', 1, { ...place, row }).toString('hex');
    assert.notEqual(spell('\u00e9'), spell('e\u0301'));
    assert.notEqual(spell('A'), spell('a'));
    assert.notEqual(spell('1'), spell('01'));
    assert.notEqual(spell('1'), spell('1 '));
    assert.notEqual(spell(''), spell('\0'));
  });

  for (const each of parts) {
    it(`${each}: 512 bytes at most, no lone surrogate, and the error names it`, () => {
      const encode = (text: string) => encodeContext('ssn', 1, { ...place, [each]: text });
      assert.equal(encode('x'.repeat(512)).length - encode('').length, 512);
      assert.equal(encode('é'.repeat(256)).length - encode('').length, 512);
      for (const bad of ['x'.repeat(513), 'é'.repeat(256) + 'x', '\ud83d', 'ab\udd25', '\udd25\ud83d', '🔥\ud83d']) {
        const error = refuses(() => encode(bad), 'request_invalid', bad);
        assert.ok(error.message.startsWith(`${names[each]} `), error.message);
      }
    });
  }

  it('refuses the same in wrap contexts and single parts', () => {
    refuses(() => encodeWrapContext('\ud800', 'ssn', 1), 'request_invalid');
    refuses(() => encodeWrapContext('x'.repeat(513), 'ssn', 1), 'request_invalid');
    assert.match(refuses(() => lengthPrefixed('\udc00', 'index'), 'request_invalid').message, /^index /);
    assert.equal(lengthPrefixed('', 'index').toString('hex'), '0000');
  });
});
