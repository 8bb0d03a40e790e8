/**
 * The stream of one process: its groups in the intake, numbered 1, 2, 3, … without gaps, each hashing its predecessor:
 *
 *     SHA-256(prevHash[32] | u64 stream | u64 seq | u64 length of lines | lines | 00, or 01 and items)
 *
 * One group at a time. When a connection is lost or an answer does not come, the group may be stored and it may not
 * ("failed but it happened"). Then, in this order:
 *
 *   1. end the server process that had the group, and see it gone: nothing sent to it can be committed any more
 *   2. look (stream, seq) up: if the group is there, it is acknowledged
 *   3. it is not and never will be: send the same bytes again, or leave the number to another group
 *
 * so no number is ever used twice and nothing is stored twice.
 */
import { hash, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, toUnavailable, type Client, type Pool } from '../db.ts';
import * as store from './store.ts';

type Connection = Awaited<ReturnType<typeof connect>>;

/** What is to be stored as one row. */
export interface Batch {
  readonly lines: string;
  readonly items?: string;
  readonly entries: number;
  /** The epoch that everything in it was computed under. */
  readonly epoch: number;
  /** Statements of the same transaction. Run once at most. */
  readonly writes?: (tx: Client) => Promise<void>;
  /** Whether anybody still waits; once nobody does, nothing is sent again. */
  readonly isWanted: () => boolean;
}

type Stored =
  | { readonly result: 'stored'; /** performance.now() before the commit was sent. */ readonly sentAt: number }
  /** The epoch is another; nothing is stored. */
  | { readonly result: 'stale' }
  /** Nothing is stored. */
  | { readonly result: 'failed'; /** What `writes` threw. */ readonly error?: unknown };

export interface StreamOptions {
  readonly instanceId: string;
  /** Told of every failure that is then mended or given up. */
  readonly onError?: (error: unknown) => void;
}

/** An answer that has not come after this long counts as lost. */
const answerMaxMs = 4_000;
const statementMaxMs = 3_000;
const retryFirstMs = 20;
const retryMaxMs = 1_000;
const terminatePollMs = 5;

/** So that nothing of a writer that stands still stays locked for others: the epoch, the intake. */
const settings = { idle_in_transaction_session_timeout: '5s', lock_timeout: '2s' };

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

/** Writes one entry as a stream of its own, in a transaction of the caller's, which goes by no epoch. */
export async function storeWithin(tx: Client, line: string): Promise<void> {
  const stream = await store.insertStream(tx, randomUUID());
  const [seq, prevHash] = [1, Buffer.alloc(32)];
  const group = { stream, seq, lines: line, entries: 1, prevHash, hash: chainHash(prevHash, stream, seq, line) };
  await store.lockEpoch(tx);
  await store.insertGroup(tx, group, await store.getEpoch(tx));
}

export class AuditStream {
  /** How often a group had to be looked for or sent again. */
  retries = 0;
  readonly stream: string;
  readonly #url: string;
  readonly #onError: (error: unknown) => void;
  #seq = 0;
  #hash: Buffer = Buffer.alloc(32);
  #client: Connection | undefined;
  #backend: store.Backend | undefined;
  /** Server processes of lost connections that have not been seen gone. */
  #lost: store.Backend[] = [];
  #closed = false;

  private constructor(url: string, stream: string, options: StreamOptions) {
    this.#url = url;
    this.stream = stream;
    this.#onError = options.onError ?? (() => undefined);
  }

  static async open(url: string, pool: Pool, options: StreamOptions): Promise<AuditStream> {
    const opened = new AuditStream(url, await store.insertStream(pool, options.instanceId), options);
    try {
      await opened.#connected();
    } catch (error) {
      opened.#drop();
      throw error;
    }
    return opened;
  }

  /** Stores the batch as the next group. Does not throw; returns when it is known what became of it. */
  async store(batch: Batch): Promise<Stored> {
    const { lines, items, entries } = batch;
    const seq = this.#seq + 1;
    const group: store.Group = {
      ...{ stream: this.stream, seq, lines, entries, prevHash: this.#hash },
      hash: chainHash(this.#hash, this.stream, seq, lines, items),
      ...(items !== undefined && { items }),
    };
    let sentAt: number | undefined;
    for (let attempt = 0; !this.#closed; attempt += 1) {
      if (attempt > 0) await this.#pause(attempt);
      try {
        const client = await this.#connected();
        const stored = await this.#answered(client, async (): Promise<Stored> => {
          if (sentAt !== undefined && (await store.hasGroup(client, group))) return { result: 'stored', sentAt };
          if (attempt > 0 && (batch.writes !== undefined || !batch.isWanted())) return { result: 'failed' };
          sentAt = performance.now();
          if (batch.writes !== undefined) return this.#storeWith(client, group, batch.epoch, batch.writes, sentAt);
          return (await store.insertGroup(client, group, batch.epoch))
            ? { result: 'stored', sentAt }
            : { result: 'stale' };
        });
        if (stored.result === 'stored') this.#advance(group);
        return stored;
      } catch (error) {
        this.#onError(error);
        this.#drop();
        if (sentAt === undefined && !batch.isWanted()) return { result: 'failed' };
      }
    }
    return { result: 'failed' };
  }

  /** Ends the connection; a group whose fate is unknown stays so. */
  async close(): Promise<void> {
    this.#closed = true;
    const client = this.#client;
    this.#client = undefined;
    await Promise.race([client?.end(), sleep(1_000, undefined, { ref: false })]);
  }

  /** Writes and group in one transaction, which holds the epoch from the check on and may itself raise it. */
  async #storeWith(
    client: Connection,
    group: store.Group,
    epoch: number,
    writes: (tx: Client) => Promise<void>,
    sentAt: number,
  ): Promise<Stored> {
    await client.query('begin');
    if ((await store.lockEpoch(client)) !== epoch) {
      await client.query('rollback');
      return { result: 'stale' };
    }
    try {
      await writes(client);
    } catch (error) {
      await client.query('rollback').catch((failure: unknown) => {
        this.#onError(failure);
        this.#drop(); // the server rolls back what was not committed
      });
      return { result: 'failed', error: toUnavailable(error) };
    }
    await store.insertGroup(client, group, await store.getEpoch(client));
    await client.query('commit');
    return { result: 'stored', sentAt };
  }

  #advance(group: store.Group): void {
    this.#seq = group.seq;
    this.#hash = group.hash;
  }

  async #pause(attempt: number): Promise<void> {
    this.retries += 1;
    if (attempt > 1) await sleep(Math.min(retryMaxMs, retryFirstMs * 2 ** Math.min(attempt, 10)));
  }

  /** The connection, made anew if it was lost; then no earlier one of this stream has a server process any more. */
  async #connected(): Promise<Connection> {
    if (this.#client === undefined) {
      const client = await connect(this.#url, { name: 'audit', statementTimeoutMs: statementMaxMs, settings });
      client.once('end', () => {
        if (this.#client === client) this.#drop();
      });
      this.#client = client;
      if (this.#closed) throw new Error('The audit stream was closed while it was connecting.');
      this.#backend = await this.#answered(client, () => store.getBackend(client));
    }
    const client = this.#client;
    while (this.#lost.length > 0) {
      const there = await this.#answered(client, () => store.terminateBackend(client, this.#lost[0]!));
      if (there) await sleep(terminatePollMs);
      else this.#lost.shift();
    }
    return client;
  }

  /** Ends the connection if `work` takes too long, and so makes it fail. */
  async #answered<T>(client: Connection, work: () => Promise<T>): Promise<T> {
    const timer = setTimeout(() => this.#end(client), answerMaxMs);
    try {
      return await work();
    } finally {
      clearTimeout(timer);
    }
  }

  #drop(): void {
    const client = this.#client;
    if (this.#backend !== undefined) this.#lost.push(this.#backend);
    this.#client = undefined;
    this.#backend = undefined;
    if (client !== undefined) this.#end(client);
  }

  #end(client: Connection): void {
    client.end().catch(this.#onError);
  }
}
