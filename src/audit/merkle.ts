/**
 * The Merkle tree of RFC 6962, section 2.1, over SHA-256. Pure: no I/O, so that service, client and auditor share it.
 *
 *     leaf: SHA-256(00 | data)    node: SHA-256(01 | left | right)    root of nothing: SHA-256()
 */
import { hash } from 'node:crypto';

const nodePrefix = Buffer.of(1);

/** Hash of a leaf; text counts as its UTF-8 bytes. */
export function leafHash(data: string | Uint8Array): Buffer {
  if (typeof data === 'string') return hash('sha256', `\0${data}`, 'buffer');
  return hash('sha256', Buffer.concat([Buffer.of(0), data]), 'buffer');
}

/** Hash of an inner node from those of its two children. */
export function nodeHash(left: Uint8Array, right: Uint8Array): Buffer {
  return hash('sha256', Buffer.concat([nodePrefix, left, right]), 'buffer');
}

/** Root hash of the tree over leaf hashes, in order. */
export function rootHash(leafHashes: readonly Buffer[]): Buffer {
  if (leafHashes.length === 0) return hash('sha256', '', 'buffer');
  // Pairing level by level, and lifting a last one without a partner, splits at the largest power of two as the RFC does.
  let level = leafHashes;
  while (level.length > 1) {
    const above: Buffer[] = [];
    for (let i = 0; i < level.length; i += 2) {
      const right = level[i + 1];
      above.push(right === undefined ? level[i]! : nodeHash(level[i]!, right));
    }
    level = above;
  }
  return level[0]!;
}
