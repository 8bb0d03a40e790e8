/**
 * What became of a stream in a database that may have lost its last commits. Pure.
 *
 *     the database has                               so
 *     the last group that was acknowledged           nothing is wrong
 *     fewer groups, as we know them                  those that we keep are stored again under their numbers
 *     … and we do not keep all that it lacks         the others are lost: recorded, a new stream begins
 *     other groups under our numbers, or more        diverged: recorded, what we keep is stored again in a new stream
 *     no such stream, or somebody else's             its number was lost: what we keep is stored again in a new stream
 *
 * Commits that survive are a prefix of the commits there were, and a stream sends a group after the one before it was
 * acknowledged: a database never lacks a group of which it has the successor. A stream whose process has ended therefore
 * just ends earlier, without a gap.
 */
import { present } from '../present.ts';
import type { Chain, Group } from './chain.ts';

/** First and last number, both included. */
export interface Range {
  readonly first: number;
  readonly last: number;
}

/** What the database has of a stream. */
export interface Stored {
  /** Whether the stream is there and its writer is who we are. */
  readonly isOurs: boolean;
  /** The last number; 0: no group. */
  readonly head: number;
  /** Hashes by number, from the one before the first group that is kept. */
  readonly hashes: ReadonlyMap<number, Buffer>;
}

/** What is to be done about a stream. All but `behind` end it: a new one begins. */
export interface Setback {
  readonly kind: 'behind' | 'lost' | 'diverged' | 'renumbered';
  readonly stream: string;
  /** Groups that are stored again as they were. */
  readonly again: readonly Group[];
  /** Groups whose contents are stored again in the new stream. */
  readonly moved: readonly Group[];
  readonly lost?: Range;
  readonly diverged?: Range;
}

/** Whether the last group that the database has is the last one of the chain, or the one that was sent after it. */
export function isWhole(chain: Chain, last: { seq: number; hash?: Buffer | undefined }, sent?: Group): boolean {
  if (last.seq === chain.seq) return last.seq === 0 || last.hash?.equals(chain.hash) === true;
  return last.seq === chain.seq + 1 && sent?.stream === chain.stream && last.hash?.equals(sent.hash) === true;
}

function range(first: number, last: number): Range | undefined {
  return first <= last ? { first, last } : undefined;
}

/** For a chain that is not whole. */
export function compare(chain: Chain, { isOurs, head, hashes }: Stored): Setback {
  const { stream, kept, seq: end } = chain;
  const first = kept[0]?.seq ?? end + 1;
  if (!isOurs) return { kind: 'renumbered', stream, again: [], moved: kept, ...present({ lost: range(1, first - 1) }) };
  const from = findDivergence(kept, hashes) ?? (head > end ? end + 1 : undefined);
  if (from !== undefined) {
    const moved = kept.filter(({ seq }) => seq >= from);
    return { kind: 'diverged', stream, again: [], moved, diverged: { first: from, last: Math.max(head, end) } };
  }
  const again = kept.filter(({ seq }) => !hashes.has(seq));
  const lost = range(head + 1, first - 1);
  return lost === undefined
    ? { kind: 'behind', stream, again, moved: [] }
    : { kind: 'lost', stream, again, moved: [], lost };
}

/** The first number, from the one before what is kept, under which the database has another group. */
function findDivergence(kept: readonly Group[], hashes: ReadonlyMap<number, Buffer>): number | undefined {
  const [oldest] = kept;
  if (oldest === undefined) return undefined;
  if (hashes.get(oldest.seq - 1)?.equals(oldest.prevHash) === false) return oldest.seq - 1;
  return kept.find(({ seq, hash }) => hashes.get(seq)?.equals(hash) === false)?.seq;
}
