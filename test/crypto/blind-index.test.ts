/** Equal values meet under one token, others only by truncation, and no token is made of nothing. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { indexToken, normalise, stripToAscii } from '../../src/crypto/blind-index.ts';
import { DataKey } from '../../src/crypto/data-key.ts';
import { part, refuses, text } from './support.ts';

const key = DataKey.from(Buffer.alloc(64, 7));
const place = { tenant: 'acme', table: 'demo.employees', column: 'ssn', index: 'eq', bits: 256 };
const rules = ['digits', 'alnum', 'digits/fold', 'alnum/fold'] as const;
const forms = {
  ...{ digits: /^[0-9]*$/, alnum: /^[0-9A-Z]*$/ },
  ...{ 'digits/fold': /^[0-9]*$/, 'alnum/fold': /^[\p{L}\p{M}0-9]*$/u },
} as const;
const token = (value: string, bits = 256) => indexToken(key, 4, { ...place, bits }, value);

describe('crypto/blind-index', () => {
  it('normalises', () => {
    assert.equal(normalise('digits', ' 078-05-1120 '), '078051120');
    assert.equal(normalise('alnum', 'gb29 nwbk-6016.1331'), 'GB29NWBK60161331');
    assert.equal(normalise(undefined, ' as it is '), ' as it is ');
    assert.equal(normalise('digits', 'none'), '');
    fc.assert(
      fc.property(text(40), fc.constantFrom(...rules), (value, how) => {
        const once = normalise(how, value);
        if (once === undefined) return;
        assert.match(once, forms[how]);
        assert.equal(normalise(how, once), once);
      }),
      { numRuns: 2_000 },
    );
  });

  it('never drops what counts: a digit or a letter outside ASCII is refused, or folded where the rule says so', () => {
    const table: [string, string | undefined, string | undefined, string | undefined, string | undefined][] = [
      // value, digits, digits/fold, alnum, alnum/fold
      ['１２３-４５', undefined, '12345', undefined, '12345'],
      ['٣٤５६ a1', undefined, '34561', undefined, '3456A1'],
      ['𝟙𝟚𝟛', undefined, '123', undefined, '123'],
      ['12½', undefined, undefined, undefined, undefined],
      ['Ⅷ', undefined, undefined, undefined, undefined],
      ['10²', undefined, undefined, undefined, undefined],
      ['①②', undefined, undefined, undefined, undefined],
      ['12三', undefined, undefined, undefined, '12三'],
      ['㏠', undefined, undefined, undefined, undefined],
      ['Ж12', '12', '12', undefined, 'Ж12'],
      ['straße é', '', '', undefined, 'STRASSEÉ'],
      ['e\u0301', '', '', undefined, 'É'],
      ['ＧＢ２９', undefined, '29', undefined, 'GB29'],
      ['™', '', '', undefined, 'TM'],
      ['Ⓐ', '', '', undefined, 'A'],
      ['कि', '', '', undefined, 'कि'],
      ['1\ud800', undefined, undefined, undefined, undefined],
      ['1\ue000', undefined, undefined, undefined, undefined],
      ['1\u{e0fff}', undefined, undefined, undefined, undefined],
      ['12–34\u00a0“56” €\u200b', '123456', '123456', '123456', '123456'],
    ];
    for (const [value, ...wanted] of table) {
      const found = (['digits', 'digits/fold', 'alnum', 'alnum/fold'] as const).map((how) => normalise(how, value));
      assert.deepEqual(found, wanted, value);
    }
  });

  it('folds the digits of every script that this Node knows to their values', () => {
    const systems = Intl.supportedValuesOf('numberingSystem').filter((name) => name !== 'hanidec');
    assert.ok(systems.length > 50, `${systems.length} scripts`);
    for (const numberingSystem of systems) {
      const digits = new Intl.NumberFormat('en', { numberingSystem, useGrouping: false }).format(9_876_543_210);
      for (const how of ['digits/fold', 'alnum/fold'] as const) {
        assert.equal(normalise(how, digits), '9876543210', numberingSystem);
      }
    }
  });

  it('says the same of ASCII whether it folds or not, so that tokens stay when a class begins to fold', () => {
    const values = fc.string({ unit: 'binary-ascii' });
    fc.assert(
      fc.property(values, fc.constantFrom('digits' as const, 'alnum' as const), (value, how) => {
        assert.equal(normalise(`${how}/fold`, value), stripToAscii(how, value));
        assert.equal(normalise(how, value), stripToAscii(how, value));
      }),
    );
  });

  it('makes two values equal only by punctuation, symbols, spaces and case', () => {
    const counted = /[\p{L}\p{M}\p{N}]/gu;
    const upper = (value: string) => value.normalize('NFKC').toUpperCase().normalize('NFKC');
    fc.assert(
      fc.property(text(6), text(6), (one, other) => {
        const [left, right] = [normalise('alnum', one), normalise('alnum', other)];
        if (left === undefined || left !== right) return;
        assert.deepEqual(upper(one).match(counted), upper(other).match(counted));
      }),
      { numRuns: 5_000 },
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
