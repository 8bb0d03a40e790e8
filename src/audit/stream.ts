/**
 * The stream of one process: its groups in the intake, numbered 1, 2, 3, … without gaps, each hashing its predecessor
 * (chain.ts). One group at a time. When a connection is lost or an answer does not come, the group may be stored and it
 * may not ("failed but it happened"). Then, in this order:
 *
 *   1. end the server process that had the group, and see it gone: nothing sent to it can be committed any more
 *   2. compare what the database has with what was acknowledged: a standby that was promoted may have less (realign.ts)
 *   3. look (stream, seq) up: if the group is there, it is acknowledged
 *   4. it is not and never will be: send the same bytes again, or leave the number to another group
 *
 * so no number is ever used twice, nothing is stored twice, and nothing that was acknowledged is missing unseen.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, toUnavailable, type Client, type Pool } from '../db.ts';
import { describeError } from '../errors.ts';
import { isSameEpoch, type Epoch } from '../keys/epoch.ts';
import { lockEpoch, readEpoch } from '../keys/epoch-store.ts';
import { Chain, trim, type Content, type Group } from './chain.ts';
import type { Setback } from './compare.ts';
import { realign } from './realign.ts';
import * as store from './store.ts';

type Connection = Awaited<ReturnType<typeof connect>>;

/** What is to be stored as one row. */
export interface Batch extends Content {
  /** The epoch that everything in it was computed under. */
  readonly epoch: Epoch;
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

interface Sent {
  readonly chain: Chain;
  readonly group: Group;
  readonly at: number;
  /** Whether it is stored, when that is known. */
  readonly isThere?: boolean | undefined;
}

export interface StreamOptions {
  readonly instanceId: string;
  /** Told of every failure that is then mended or given up. */
  readonly onError?: (error: unknown) => void;
  /** Told of everything that the database did not have as it was acknowledged. */
  readonly onSetback?: (setback: Setback) => void;
}

/** An answer that has not come after this long counts as lost. */
const answerMaxMs = 4_000;
const statementMaxMs = 3_000;
const retryFirstMs = 20;
const retryMaxMs = 1_000;
const terminatePollMs = 5;

/** So that nothing of a writer that stands still stays locked for others: the epoch, the intake. */
const settings = { idle_in_transaction_session_timeout: '5s', lock_timeout: '2s' };

/** Writes one entry as a stream of its own, in a transaction of the caller's, which goes by no epoch. */
export async function storeWithin(tx: Client, line: string): Promise<void> {
  const chain = new Chain(await store.insertStream(tx, randomUUID()));
  await store.insertGroup(tx, chain.next({ lines: line, entries: 1 }), await lockEpoch(tx));
}

export class AuditStream {
  /** How often a group had to be looked for or sent again. */
  retries = 0;
  /** The last time that a group could not be stored, when none could be since: SQLSTATE or errno, on performance.now(). */
  failed: { readonly code: string; readonly at: number } | undefined;
  /** Groups that were acknowledged and are lost or had to be stored again; streams in which the database had others. */
  readonly losses = { lost: 0, resent: 0, diverged: 0 };
  readonly #url: string;
  readonly #instanceId: string;
  readonly #onError: (error: unknown) => void;
  readonly #onSetback: (setback: Setback) => void;
  /** Oldest first: the last one is written to; of the others groups are kept that a failover may still take. */
  #chains: readonly Chain[];
  /** The group that was sent and is neither acknowledged nor given up. */
  #sent: Sent | undefined;
  /** The server that the chains were compared with; undefined: they are to be compared before anything is sent. */
  #comparedWith: string | undefined;
  /** What was told of and is not mended yet. */
  readonly #told = new Set<string>();
  #client: Connection | undefined;
  #backend: store.Backend | undefined;
  /** Server processes of lost connections that have not been seen gone. */
  #lost: store.Backend[] = [];
  #closed = false;

  private constructor(url: string, stream: string, options: StreamOptions) {
    this.#url = url;
    this.#chains = [new Chain(stream)];
    this.#instanceId = options.instanceId;
    this.#onError = options.onError ?? (() => undefined);
    this.#onSetback = options.onSetback ?? (() => undefined);
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

  /** The number of the stream that is written to. */
  get stream(): string {
    return this.#chain.stream;
  }

  get isConnected(): boolean {
    return this.#client !== undefined && this.#comparedWith !== undefined;
  }

  get #chain(): Chain {
    return this.#chains.at(-1)!;
  }

  /** Connects again if the connection was lost, and compares: what a failover took is soon back. Does not throw. */
  async heal(): Promise<void> {
    this.#comparedWith = undefined;
    try {
      if (!this.#closed) await this.#connected();
    } catch (error) {
      this.#onError(error);
      this.#drop();
    }
  }

  /** Stores the batch as the next group. Does not throw; returns when it is known what became of it. */
  async store(batch: Batch): Promise<Stored> {
    this.#sent = undefined;
    for (let attempt = 0; !this.#closed; attempt += 1) {
      if (attempt > 0) await this.#pause(attempt);
      try {
        const client = await this.#connected(batch.epoch.server);
        const stored = await this.#answered(client, () => this.#send(client, batch, attempt > 0));
        if (stored.result === 'stored') this.#advance();
        // Another epoch, or another server behind the same connection, or a loss that somebody has recorded.
        if (stored.result === 'stale') this.#comparedWith = undefined;
        if (stored.result !== 'failed') this.failed = undefined;
        return stored;
      } catch (error) {
        this.failed = { code: describeError(error).code ?? 'no connection', at: performance.now() };
        this.#onError(error);
        this.#drop();
        if (this.#sent === undefined && !batch.isWanted()) return { result: 'failed' };
      }
    }
    return { result: 'failed' };
  }

  async #send(client: Connection, batch: Batch, isRepeated: boolean): Promise<Stored> {
    const sent = this.#sent;
    const isThere = sent !== undefined && (sent.isThere ?? (await store.hasGroup(client, sent.group)));
    if (isThere) return { result: 'stored', sentAt: sent.at };
    if (isRepeated && (batch.writes !== undefined || !batch.isWanted())) return { result: 'failed' };
    const [chain, at] = [this.#chain, performance.now()];
    const group = chain.next(batch);
    this.#sent = { chain, group, at };
    if (batch.writes !== undefined) return this.#storeWith(client, group, batch.epoch, batch.writes, at);
    return (await store.insertGroup(client, group, batch.epoch))
      ? { result: 'stored', sentAt: at }
      : { result: 'stale' };
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
    group: Group,
    epoch: Epoch,
    writes: (tx: Client) => Promise<void>,
    sentAt: number,
  ): Promise<Stored> {
    await client.query('begin');
    if (!isSameEpoch(await lockEpoch(client), epoch)) {
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
    // What it wrote may have raised the epoch.
    const isStored = await store.insertGroup(client, group, await readEpoch(client));
    await client.query(isStored ? 'commit' : 'rollback');
    return isStored ? { result: 'stored', sentAt } : { result: 'stale' };
  }

  #advance(): void {
    const { chain, group } = this.#sent!;
    chain.advance(group);
    this.#chains = trim(this.#chains);
  }

  async #pause(attempt: number): Promise<void> {
    this.retries += 1;
    if (attempt > 1) await sleep(Math.min(retryMaxMs, retryFirstMs * 2 ** Math.min(attempt, 10)));
  }

  /**
   * The connection, made anew if it was lost; then no earlier one of this stream has a server process any more, and what
   * was acknowledged has been compared with what the database has. `server`: what is to be sent was computed from it.
   */
  async #connected(server?: string): Promise<Connection> {
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
    if (this.#comparedWith === undefined || (server ?? this.#comparedWith) !== this.#comparedWith) {
      await this.#realign(client);
    }
    return client;
  }

  async #realign(client: Connection): Promise<void> {
    this.#comparedWith = undefined;
    const known = { instanceId: this.#instanceId, chains: this.#chains, sent: this.#sent?.group };
    const ask = <T>(work: () => Promise<T>) => this.#answered(client, work);
    const { chains, server, isSentThere } = await realign(client, known, ask, (setback) => this.#tell(setback));
    this.#chains = chains;
    this.#comparedWith = server;
    if (this.#sent !== undefined) this.#sent = { ...this.#sent, isThere: isSentThere };
    this.#told.clear();
  }

  /** Once, however often mending it has to be tried: its commit, too, may fail and have happened. */
  #tell(setback: Setback): void {
    const { kind, stream, again, moved, lost, diverged } = setback;
    const what = `${kind} ${stream} ${again[0]?.seq}`;
    if (this.#told.has(what)) return;
    this.#told.add(what);
    this.losses.resent += again.length + moved.length;
    if (lost !== undefined) this.losses.lost += lost.last - lost.first + 1;
    if (diverged !== undefined) this.losses.diverged += 1;
    this.#onSetback(setback);
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
    this.#comparedWith = undefined;
    if (client !== undefined) this.#end(client);
  }

  #end(client: Connection): void {
    client.end().catch(this.#onError);
  }
}
