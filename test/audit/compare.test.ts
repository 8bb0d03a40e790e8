import assert from 'node:assert/strict';
import { Chain, trim } from '../../src/audit/chain.ts';
import { compare, isWhole } from '../../src/audit/compare.ts';

/** A chain of `length` groups that has forgotten the first `forgotten`. */
function makeChain(length: number, forgotten = 0, stream = '7'): Chain {
  const chain = new Chain(stream);
  for (let n = 1; n <= length; n += 1) chain.advance(chain.next({ lines: `{"n":${n}}`, entries: 1 }));
  for (let n = 0; n < forgotten; n += 1) chain.forgetOldest();
  return chain;
}

/** What a database has that got the first `head` groups of the chain. */
function firstOf(chain: Chain, head: number) {
  const hashes = makeChain(head).kept.map(({ seq, hash }) => [seq, hash] as const);
  const from = (chain.kept[0]?.seq ?? 1) - 1;
  return { isOurs: true, head, hashes: new Map(hashes.filter(([seq]) => seq >= from)) };
}

const seqs = (groups: readonly { seq: number }[]) => groups.map(({ seq }) => seq);
const other = Buffer.alloc(32, 1);

describe('comparing a stream with the database', () => {
  it('finds nothing wrong when the last group is the same, or the one that was sent', () => {
    const chain = makeChain(5);
    const sent = chain.next({ lines: '{}', entries: 1 });
    assert.ok(isWhole(chain, { seq: 5, hash: chain.hash }));
    assert.ok(isWhole(chain, { seq: 6, hash: sent.hash }, sent));
    assert.ok(isWhole(new Chain('7'), { seq: 0 }));
    assert.ok(!isWhole(chain, { seq: 6, hash: sent.hash }));
    assert.ok(!isWhole(chain, { seq: 6, hash: other }, sent));
    assert.ok(!isWhole(chain, { seq: 5, hash: other }));
    assert.ok(!isWhole(chain, { seq: 4, hash: chain.kept[3]!.hash }));
    assert.ok(!isWhole(chain, { seq: 0 }));
    assert.ok(!isWhole(new Chain('7'), { seq: 1, hash: other }));
  });

  it('stores again what the database lacks and is kept, for every length of both', () => {
    for (let head = 0; head < 6; head += 1) {
      for (let forgotten = 0; forgotten < 6; forgotten += 1) {
        const chain = makeChain(6, forgotten);
        const setback = compare(chain, firstOf(chain, head));
        const first = Math.max(head, forgotten) + 1;
        assert.deepEqual(seqs(setback.again), [1, 2, 3, 4, 5, 6].slice(first - 1), `${head} ${forgotten}`);
        const lost = forgotten > head ? { first: head + 1, last: forgotten } : undefined;
        assert.deepEqual(setback.lost, lost);
        assert.equal(setback.kind, lost === undefined ? 'behind' : 'lost');
        assert.deepEqual([setback.diverged, setback.moved], [undefined, []]);
      }
    }
  });

  it('takes another group under one of our numbers for a divergence, and moves what follows', () => {
    const chain = makeChain(6, 2);
    const { hashes } = firstOf(chain, 5);
    const within = compare(chain, { isOurs: true, head: 5, hashes: new Map([...hashes, [5, other]]) });
    assert.equal(within.kind, 'diverged');
    assert.deepEqual(within.diverged, { first: 5, last: 6 });
    assert.deepEqual(seqs(within.moved), [5, 6]);
    const before = compare(chain, { isOurs: true, head: 9, hashes: new Map([[2, other]]) });
    assert.deepEqual(before.diverged, { first: 2, last: 9 });
    assert.deepEqual(seqs(before.moved), [3, 4, 5, 6]);
  });

  it('takes groups that we never sent for a divergence', () => {
    const chain = makeChain(3);
    const setback = compare(chain, { ...firstOf(chain, 3), head: 5 });
    assert.deepEqual(setback.diverged, { first: 4, last: 5 });
    assert.deepEqual([setback.again, setback.moved], [[], []]);
  });

  it('moves everything when the number of the stream is not ours any more', () => {
    const chain = makeChain(4, 1);
    const setback = compare(chain, { isOurs: false, head: 9, hashes: new Map([[2, other]]) });
    assert.equal(setback.kind, 'renumbered');
    assert.deepEqual(seqs(setback.moved), [2, 3, 4]);
    assert.deepEqual(setback.lost, { first: 1, last: 1 });
  });
});

describe('what a process keeps of its streams', () => {
  it('is bounded in characters and groups, oldest first, and the last group always stays', () => {
    const [past, current] = [makeChain(5, 0, '1'), makeChain(5, 0, '2')];
    assert.deepEqual(trim([past, current]), [past, current]);
    assert.deepEqual(trim([past, current], 1e9, 7), [past, current]);
    assert.deepEqual(
      [seqs(past.kept), seqs(current.kept)],
      [
        [4, 5],
        [1, 2, 3, 4, 5],
      ],
    );
    assert.deepEqual(trim([past, current], 1e9, 3), [current]);
    assert.deepEqual(seqs(current.kept), [3, 4, 5]);
    trim([current], 2 * '{"n":1}'.length, 100);
    assert.deepEqual(seqs(current.kept), [4, 5]);
    assert.equal(current.keptChars, 2 * '{"n":1}'.length);
    assert.deepEqual(trim([current], 0, 0), [current]);
    assert.deepEqual(seqs(current.kept), [5]);
  });
});
