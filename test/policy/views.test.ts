/** What each view shows: never more than it says. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import type { FieldClass } from '../../src/policy/policy.ts';
import { parseDecimal, reveal } from '../../src/policy/views.ts';
import { shipped } from './support.ts';

const ssn = shipped.classes.get('ssn')!;
const bank = shipped.classes.get('bank')!;
const salary = shipped.classes.get('salary')!;
const { normalise: _, ...plain } = bank;
const last4 = (fieldClass: FieldClass, value: string) => reveal(fieldClass, 'last4', value);
const bucket = (value: string, edges = salary.edges!) => reveal({ ...salary, edges }, 'bucket', value);
const masked = (fieldClass: FieldClass) => ({ view: 'masked', value: fieldClass.mask });

describe('policy/views', () => {
  it('full is the value as it is; masked is the mask; exists never shows more', () => {
    for (const value of ['', '078-05-1120', ' \ufeff\0', 'x'.repeat(16_384)]) {
      assert.deepEqual(reveal(ssn, 'full', value), { view: 'full', value });
      assert.deepEqual(reveal(ssn, 'masked', value), { view: 'masked', value: '***-**-****' });
      assert.deepEqual(reveal(ssn, 'exists', value), masked(ssn));
    }
  });

  it('last4 is taken of what counts', () => {
    assert.deepEqual(last4(ssn, '078-05-1120'), { view: 'last4', value: '1120' });
    assert.deepEqual(last4(ssn, '078051120'), { view: 'last4', value: '1120' });
    assert.deepEqual(last4(ssn, '078-05-11 2 0  '), { view: 'last4', value: '1120' });
    assert.deepEqual(last4(bank, 'GB29 NWBK 6016 1331 9268 19'), { view: 'last4', value: '6819' });
    assert.deepEqual(last4(bank, 'gb29nwbk60161331926abc'), { view: 'last4', value: '6ABC' });
    assert.deepEqual(last4(plain, 'GB29 NWBK 6016 1331 9268 19'), { view: 'last4', value: '8 19' });
  });

  it('last4 of a value that is too short is masked, counted in what counts', () => {
    for (const value of ['', '1', '1234', '1234567', '123-45-67', 'abcdefghijklmnop1234', '٠٧٨٠٥١١٢٠']) {
      assert.deepEqual(last4(ssn, value), masked(ssn), value);
    }
    assert.deepEqual(last4(ssn, '12345678'), { view: 'last4', value: '5678' });
    assert.deepEqual(last4(bank, 'AB - 12 . 3'), masked(bank));
  });

  it('last4 counts code points and cuts none in two', () => {
    assert.deepEqual(last4(plain, '🂡🂢🂣🂤🂥🂦🂧🂨'), { view: 'last4', value: '🂥🂦🂧🂨' });
    assert.deepEqual(last4(plain, '🂡🂢🂣🂤🂥🂦🂧'), masked(plain));
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 30 }), (value) => {
        const shown = last4(plain, value);
        const letters = [...value];
        if (letters.length < 8) assert.deepEqual(shown, masked(plain));
        else assert.deepEqual(shown, { view: 'last4', value: letters.slice(-4).join('') });
        assert.ok(shown.value.isWellFormed());
      }),
    );
  });

  it('buckets begin at their edge and end before the next', () => {
    const cases: [string, string][] = [
      ['0', '<50000'],
      ['49999.99', '<50000'],
      ['49999.99999999999999999999', '<50000'],
      ['50000', '50000-100000'],
      ['50000.00', '50000-100000'],
      ['050000', '50000-100000'],
      ['50000.01', '50000-100000'],
      ['99999.99999999999999999999', '50000-100000'],
      ['100000', '>=100000'],
      ['100000.0', '>=100000'],
      [' 100001\n', '>=100000'],
      ['9'.repeat(40), '>=100000'],
      ['-1', '<50000'],
      ['-100000', '<50000'],
      ['-0', '<50000'],
    ];
    for (const [value, expected] of cases) assert.deepEqual(bucket(value), { view: 'bucket', value: expected }, value);
    const edges = ['-10', '0', '0.5'];
    const signed = ['-10.01', '-10', '-0.01', '-0', '0', '0.49', '0.5'].map((value) => bucket(value, edges).value);
    assert.deepEqual(signed, ['<-10', '-10-0', '-10-0', '0-0.5', '0-0.5', '0-0.5', '>=0.5']);
    assert.deepEqual(bucket('7', ['7']), { view: 'bucket', value: '>=7' });
  });

  it('what is no plain decimal is masked', () => {
    const values = [
      '',
      ' ',
      '1e5',
      '1E5',
      '+1',
      '--1',
      '1.',
      '.5',
      '1,000',
      '50 000',
      '$5',
      '0x10',
      '٥',
      'NaN',
      'Infinity',
    ];
    for (const value of [...values, '-', '1.1.1', '1\n2', '9'.repeat(41), `0.${'1'.repeat(21)}`]) {
      assert.deepEqual(bucket(value), masked(salary), value);
    }
    const { edges: _edges, ...without } = salary;
    assert.deepEqual(reveal(without, 'bucket', '5'), masked(salary));
  });

  it('compares decimals exactly', () => {
    assert.ok(parseDecimal('0.1')! + parseDecimal('0.2')! === parseDecimal('0.3')!);
    assert.ok(parseDecimal('9007199254740993')! > parseDecimal('9007199254740992.99')!);
    fc.assert(
      fc.property(fc.maxSafeInteger(), fc.maxSafeInteger(), (one, two) => {
        assert.equal(parseDecimal(`${one}`)! < parseDecimal(`${two}`)!, one < two);
      }),
    );
  });
});
