import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import fc from 'fast-check';
import { leafHash, nodeHash, rootHash } from '../../src/audit/merkle.ts';

const own = new URL('../vectors/fe1-audit-log-vectors.json', import.meta.url);
const rfc6962 = new URL('../../../shared/vectors/tlog/merkle/rfc6962-eight-leaves.json', import.meta.url);

/** Section 2.1 of the RFC, word for word. */
function rootByDefinition(leaves: readonly Buffer[]): Buffer {
  if (leaves.length === 0) return rootHash([]);
  if (leaves.length === 1) return leaves[0]!;
  let k = 1;
  while (k * 2 < leaves.length) k *= 2;
  return nodeHash(rootByDefinition(leaves.slice(0, k)), rootByDefinition(leaves.slice(k)));
}

describe('merkle tree', () => {
  it('has the leaf hashes and roots of the audit log vectors', () => {
    const vectors = JSON.parse(readFileSync(own, 'utf8')) as {
      records: string[];
      leafHashes: string[];
      checkpoints: string[];
    };
    const leaves = vectors.records.map((record) => leafHash(record));
    assert.deepEqual(
      leaves.map((leaf) => leaf.toString('hex')),
      vectors.leafHashes,
    );
    assert.ok(vectors.checkpoints.length > 0);
    for (const checkpoint of vectors.checkpoints) {
      const [, size, root] = checkpoint.split('\n');
      assert.equal(rootHash(leaves.slice(0, Number(size))).toString('base64'), root);
    }
  });

  it("has the roots of RFC 6962's eight-leaf tree", function () {
    if (!existsSync(rfc6962)) {
      console.log('      skipped: the shared vectors are not here');
      this.skip();
    }
    const { leavesHex, rootsHexBySize } = JSON.parse(readFileSync(rfc6962, 'utf8')) as Record<string, string[]>;
    const leaves = leavesHex!.map((leaf) => leafHash(Buffer.from(leaf, 'hex')));
    rootsHexBySize!.forEach((root, size) => {
      assert.equal(rootHash(leaves.slice(0, size)).toString('hex'), root);
    });
  });

  it('splits every size as the RFC defines', () => {
    const leaves = Array.from({ length: 70 }, (_, i) => leafHash(String(i)));
    for (let size = 0; size <= leaves.length; size += 1) {
      assert.deepEqual(rootHash(leaves.slice(0, size)), rootByDefinition(leaves.slice(0, size)));
    }
  });

  it('hashes text as its UTF-8 bytes', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), (text) => {
        assert.deepEqual(leafHash(text), leafHash(Buffer.from(text)));
      }),
    );
  });
});
