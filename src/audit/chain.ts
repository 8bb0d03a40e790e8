/**
 * The groups of one stream, numbered 1, 2, 3, … without gaps, each hashing its predecessor:
 *
 *     SHA-256(prevHash[32] | u64 stream | u64 seq | u64 length of lines | lines | 00, or 01 and items)
 *
 * A chain keeps its last groups after they were acknowledged: a database that fails over to a standby that was behind
 * does not have them any more, and their writer is then the only one who does. Pure.
 */
import { hash } from 'node:crypto';

/** A group as it is stored. */
export interface Group {
  readonly stream: string;
  readonly seq: number;
  /** The entries' lines, joined by line feeds. */
  readonly lines: string;
  /** For every entry a line with its items' lines joined by tabs; absent when no entry is a batch. */
  readonly items?: string;
  /** Key versions that requests used for these entries, "ssn.1 bank.2"; absent when none. Not part of the hash. */
  readonly uses?: string;
  readonly entries: number;
  readonly prevHash: Buffer;
  readonly hash: Buffer;
}

/** What a group is made of, whatever its number. */
export type Content = Pick<Group, 'lines' | 'items' | 'uses' | 'entries'>;

const emptyHash: Buffer = Buffer.alloc(32);

function u64(n: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(n);
  return bytes;
}

/** The hash that the next group continues. */
export function chainHash(prevHash: Buffer, stream: string, seq: number, lines: string, items?: string): Buffer {
  const text = Buffer.from(lines);
  const head = [prevHash, u64(BigInt(stream)), u64(BigInt(seq)), u64(BigInt(text.length)), text];
  const tail = items === undefined ? [Buffer.of(0)] : [Buffer.of(1), Buffer.from(items)];
  return hash('sha256', Buffer.concat([...head, ...tail]), 'buffer');
}

function sizeOf({ lines, items }: Content): number {
  return lines.length + (items?.length ?? 0);
}

export class Chain {
  readonly stream: string;
  /** Of the last group that was acknowledged. */
  seq = 0;
  hash: Buffer = emptyHash;
  /** By number, without gaps up to the last one of the chain. */
  readonly #kept = new Map<number, Group>();
  #oldest = 1;
  /** Characters of the groups that are kept. */
  keptChars = 0;

  constructor(stream: string) {
    this.stream = stream;
  }

  get kept(): readonly Group[] {
    return [...this.#kept.values()];
  }

  get keptCount(): number {
    return this.#kept.size;
  }

  /** The group that follows, not yet part of the chain. */
  next(content: Content): Group {
    const { stream, hash: prevHash } = this;
    const seq = this.seq + 1;
    return { ...content, stream, seq, prevHash, hash: chainHash(prevHash, stream, seq, content.lines, content.items) };
  }

  /** The group was acknowledged. */
  advance(group: Group): void {
    this.seq = group.seq;
    this.hash = group.hash;
    this.#kept.set(group.seq, group);
    this.keptChars += sizeOf(group);
  }

  /** Gives up the oldest group that is kept. */
  forgetOldest(): void {
    const oldest = this.#kept.get(this.#oldest);
    if (oldest === undefined) return;
    this.#kept.delete(this.#oldest);
    this.#oldest += 1;
    this.keptChars -= sizeOf(oldest);
  }
}

/**
 * What all chains of a process keep. Memory is what it costs, so memory is the limit and not time: at full load these are the
 * last half second or so, at a hundred requests a second a minute. Sixteen times as much took 8 % of all requests, because
 * whatever is kept is copied by the garbage collector.
 */
const keptCharsMax = 2 * 1024 * 1024;
const keptGroupsMax = 50_000;

/** Has the chains, oldest first, keep no more than the limits. Answers those that still keep something, and the last. */
export function trim(chains: readonly Chain[], charsMax = keptCharsMax, groupsMax = keptGroupsMax): readonly Chain[] {
  const over = () =>
    chains.reduce((sum, chain) => sum + chain.keptChars, 0) > charsMax ||
    chains.reduce((sum, chain) => sum + chain.keptCount, 0) > groupsMax;
  const last = chains.at(-1);
  while (over()) {
    const oldest = chains.find((chain) => chain.keptCount > (chain === last ? 1 : 0));
    if (oldest === undefined) break; // the last group of all is kept, however long
    oldest.forgetOldest();
  }
  return chains.every((chain) => chain.keptCount > 0 || chain === last)
    ? chains
    : chains.filter((chain) => chain.keptCount > 0 || chain === last);
}
