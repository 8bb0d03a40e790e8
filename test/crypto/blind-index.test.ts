/** Equal values meet under one token, others only by truncation, and no token is made of nothing. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { indexToken, normalise } from '../../src/crypto/blind-index.ts';
import { DataKey } from '../../src/crypto/data-key.ts';
import { part, refuses, text } from './support.ts';

const key = DataKey.from(Buffer.alloc(64, 7));
const place = { tenant: 'acme', table: 'demo.employees', column: 'ssn', index: 'eq', bits: 256 };
const token = (value: string, bits = 256) => indexToken(key, 4, { ...place, bits }, value);

describe('crypto/blind-index', () => {
  it('normalises', () => {
    assert.equal(normalise('digits', ' 078-05-1120 '), '078051120');
    assert.equal(normalise('digits', '٣٤５६ a1'), '1', 'ASCII digits only');
    assert.equal(normalise('alnum', 'gb29 nwbk-6016.1331'), 'GB29NWBK60161331');
    assert.equal(normalise('alnum', 'straße ıé Ω'), 'STRAE', 'ASCII letters only, so upper case has one form');
    assert.equal(normalise(undefined, ' as it is '), ' as it is ');
    assert.equal(normalise('digits', 'none'), '');
    fc.assert(
      fc.property(text(40), fc.constantFrom('digits' as const, 'alnum' as const), (value, how) => {
        const once = normalise(how, value);
        assert.match(once, how === 'digits' ? /^[0-9]*$/ : /^[0-9A-Z]*$/);
        assert.equal(normalise(how, once), once);
      }),
    );
  });

  it('makes none of nothing, and refuses what is too long or no text', () => {
    assert.equal(token(''), undefined);
    assert.equal(typeof token('x'.repeat(512)), 'string');
    for (const bad of ['x'.repeat(513), '\ud800', 'a\udfff']) refuses(() => token(bad), 'request_invalid', bad);
    for (const each of ['tenant', 'table', 'column', 'index']) {
      refuses(() => indexToken(key, 4, { ...place, [each]: '\ud800' }, 'v'), 'request_invalid');
    }
  });

  it('cuts to the first bits, most significant first, the rest 0', () => {
    const bitsOf = (made: string) =>
      [...Buffer.from(made.slice(3), 'base64url')].map((byte) => byte.toString(2).padStart(8, '0')).join('');
    const whole = bitsOf(token('536221234')!);
    assert.equal(whole.length, 256);
    for (let bits = 1; bits <= 256; bits += 1) {
      const cut = bitsOf(token('536221234', bits)!);
      assert.equal(cut, whole.slice(0, bits).padEnd(Math.ceil(bits / 8) * 8, '0'));
    }
  });

  it('depends on every part and on the key, and not on the version but for its prefix', () => {
    fc.assert(
      fc.property(part, part, (one, two) => {
        fc.pre(one !== two && one !== '' && two !== '');
        for (const each of ['tenant', 'table', 'column', 'index']) {
          const [left, right] = [one, two].map((name) => indexToken(key, 1, { ...place, [each]: name }, 'v'));
          assert.notEqual(left, right);
        }
        assert.notEqual(token(one), token(two));
      }),
    );
    assert.notEqual(indexToken(DataKey.from(Buffer.alloc(64, 8)), 4, place, 'v'), token('v'));
    assert.equal(indexToken(key, 5, place, 'v'), token('v')!.replace('b4.', 'b5.'));
    const shifted = { ...place, table: 'demo.employeess', column: 'sn' };
    assert.notEqual(indexToken(key, 4, shifted, 'v'), token('v'));
  });
});
