import assert from 'node:assert/strict';
import fc from 'fast-check';
import { backoffMs, batchRowsMax, batchRowsMin, BatchSize } from '../../src/rotation/pace.ts';

/** A database that takes `perRow` ms for a row and `fixed` ms for a statement; answers the sizes it was given. */
function play(size: BatchSize, perRow: number, fixed: number, statements: number): number[] {
  return Array.from({ length: statements }, () => {
    const { rows } = size;
    size.observe(rows, fixed + rows * perRow);
    return rows;
  });
}

describe('rotation/pace: the size of a batch', () => {
  it('starts small and grows until a statement takes nearly its time', () => {
    const sizes = play(new BatchSize(100), 0.05, 1, 10);
    assert.ok(sizes[0]! <= 200);
    const last = sizes.at(-1)!;
    assert.ok(last * 0.05 > 60 && last * 0.05 <= 100, `${last} rows`);
    assert.ok(
      sizes.every((rows, i) => i === 0 || rows <= 2 * sizes[i - 1]!),
      'never more than doubled',
    );
  });

  it('shrinks at once when statements become slow, and halves when somebody is in the way', () => {
    const size = new BatchSize(100);
    play(size, 0.02, 0, 10);
    const before = size.rows;
    size.observe(before, 1_000);
    assert.ok(size.rows < before / 5, `${size.rows} of ${before}`);
    const slow = size.rows;
    size.halve();
    assert.equal(size.rows, Math.max(batchRowsMin, Math.floor(slow / 2)));
  });

  it('learns nothing of larger batches from one that the end of the data cut short', () => {
    const size = new BatchSize(100);
    const before = size.rows;
    size.observe(3, 0.1);
    assert.equal(size.rows, before);
  });

  it('stays within its bounds, whatever is seen, and keeps to its time where a row takes the same each', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0.001, max: 20, noNaN: true }),
        fc.integer({ min: 5, max: 1000 }),
        (perRow, target) => {
          const size = new BatchSize(target);
          const sizes = play(size, perRow, 0, 30);
          assert.ok(sizes.every((rows) => rows >= batchRowsMin && rows <= batchRowsMax));
          const last = sizes.at(-1)!;
          assert.ok(last * perRow <= target || last === batchRowsMin, `${last} rows of ${perRow} ms for ${target} ms`);
        },
      ),
    );
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(5000), fc.double({ min: 0, max: 1e6, noNaN: true }), fc.boolean())),
        (seen) => {
          const size = new BatchSize(100);
          for (const [rows, ms, blocked] of seen) {
            if (blocked) size.halve();
            else size.observe(rows, ms);
            assert.ok(Number.isInteger(size.rows) && size.rows >= batchRowsMin && size.rows <= batchRowsMax);
          }
        },
      ),
    );
  });

  it('backs off longer with every try, half of it by chance, up to a bound', () => {
    assert.equal(
      backoffMs(1, () => 0),
      25,
    );
    assert.equal(
      backoffMs(1, () => 1),
      50,
    );
    assert.equal(
      backoffMs(4, () => 1),
      400,
    );
    assert.equal(
      backoffMs(40, () => 1),
      5_000,
    );
  });
});
