/**
 * Makes audit entries durable before anything they tell of is revealed. Many requests share one commit:
 *
 *     append → queue → group → one row of the intake, one commit → every waiting append is acknowledged
 *
 * One group is under way at a time; whatever came meanwhile is the next group, so there is no timer and no delay when
 * there is nothing to share. The commit is conditional on the epoch that the answers were computed under.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client, Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { AuditStream, type Batch, type StreamOptions } from './stream.ts';

export interface AuditRecord {
  /** The entry's canonical JSON. */
  readonly line: string;
  /** Of a batch: its items' lines, joined by line feeds. */
  readonly items?: string;
}

export interface Receipt {
  /** performance.now() before the commit was sent: the entry became durable no earlier. */
  readonly sentAt: number;
}

const freshMaxMs = 5_000;

/** Whether an answer may still leave: a key that was retired since may have taken its last answers out of account. */
export function isFresh(receipt: Receipt): boolean {
  return performance.now() - receipt.sentAt <= freshMaxMs;
}

/** The epoch moved: nothing was stored, and the answer has to be computed again. */
export class StaleEpoch extends Error {
  constructor() {
    super('The epoch has moved since this was computed.');
    this.name = 'StaleEpoch';
  }
}

const appendMaxMs = 5_000;
const sweepEveryMs = 250;
const groupEntriesMax = 2_000;
const groupCharsMax = 4 * 1024 * 1024;
const queueAppendsMax = 20_000;
const queueCharsMax = 64 * 1024 * 1024;

interface Append {
  readonly records: readonly AuditRecord[];
  readonly epoch: number;
  readonly writes?: (tx: Client) => Promise<void>;
  readonly chars: number;
  readonly deadline: number;
  readonly resolve: (receipt: Receipt) => void;
  readonly reject: (error: unknown) => void;
  /** Its caller has an answer. */
  settled: boolean;
}

function unavailable(): FieldkeepError {
  return new FieldkeepError('audit_unavailable', 'The audit entry could not be made durable.', {
    retryAfterSeconds: 1,
  });
}

/** Separators between lines and items must not occur inside; canonical JSON escapes them. */
function checkRecord({ line, items }: AuditRecord): void {
  if (line === '' || line.includes('\n') || items?.includes('\t')) {
    throw new FieldkeepError('internal', 'An audit record is not canonical JSON.');
  }
}

function joinGroup(group: readonly Append[]): Pick<Batch, 'lines' | 'items' | 'entries'> {
  const records = group.flatMap((append) => append.records);
  const lines = records.map((record) => record.line).join('\n');
  if (records.every((record) => record.items === undefined)) return { lines, entries: records.length };
  const items = records.map((record) => (record.items ?? '').replaceAll('\n', '\t')).join('\n');
  return { lines, items, entries: records.length };
}

export class AuditLog {
  /** For metrics; they only grow. */
  readonly counters = { groups: 0, lines: 0, staleGroups: 0, unavailable: 0 };
  readonly #stream: AuditStream;
  readonly #sweeper: NodeJS.Timeout;
  #queue: Append[] = [];
  #queuedChars = 0;
  #underWay: readonly Append[] = [];
  #running: Promise<void> | undefined;
  #closed = false;

  private constructor(stream: AuditStream) {
    this.#stream = stream;
    this.#sweeper = setInterval(() => this.#sweep(), sweepEveryMs);
  }

  /** Opens a stream for this start of this process, on a connection of its own. */
  static async open(databaseUrl: string, pool: Pool, options: StreamOptions): Promise<AuditLog> {
    return new AuditLog(await AuditStream.open(databaseUrl, pool, options));
  }

  /** The number of this process's stream. */
  get stream(): string {
    return this.#stream.stream;
  }

  /** How often a group had to be looked for or sent again. */
  get retries(): number {
    return this.#stream.retries;
  }

  /** How full the queue is, 0 to 1, and the stream's last failure when nothing could be stored since. */
  get state(): { readonly fill: number; readonly failed: AuditStream['failed'] } {
    const fill = Math.max(this.#queue.length / queueAppendsMax, this.#queuedChars / queueCharsMax);
    return { fill, failed: this.#stream.failed };
  }

  /** Appends that wait for their commit. */
  get queued(): number {
    return this.#queue.length;
  }

  /**
   * Resolves once the records are durable, all in one commit; `writes` (run once at most) is part of that commit and may
   * raise the epoch. Rejects with StaleEpoch, with what `writes` threw, or with `audit_unavailable`: after that nothing
   * must be revealed, but the entry may stand.
   */
  append(records: readonly AuditRecord[], epoch: number, writes?: (tx: Client) => Promise<void>): Promise<Receipt> {
    return new Promise((resolve, reject) => {
      records.forEach(checkRecord);
      const chars = records.reduce((sum, { line, items }) => sum + line.length + (items?.length ?? 0), 0);
      const full = this.#queue.length >= queueAppendsMax || this.#queuedChars + chars > queueCharsMax;
      if (this.#closed || full) {
        this.counters.unavailable += 1;
        reject(unavailable());
        return;
      }
      const deadline = performance.now() + appendMaxMs;
      const append = { records, epoch, chars, deadline, resolve, reject, settled: false };
      this.#queue.push(writes === undefined ? append : { ...append, writes });
      this.#queuedChars += chars;
      this.#running ??= this.#run();
    });
  }

  /** Takes nothing more, waits for what was taken (no longer than its deadline), and ends the connection. */
  async close(): Promise<void> {
    this.#closed = true;
    while (this.#queue.length > 0 || this.#underWay.some((append) => !append.settled)) {
      await sleep(5);
    }
    clearInterval(this.#sweeper);
    await this.#stream.close();
    await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#queue.length > 0) {
      await new Promise((resolve) => setImmediate(resolve)); // whoever was just answered, or read, joins in
      const group = this.#takeGroup();
      if (group.length > 0) await this.#commit(group);
    }
    this.#running = undefined;
  }

  /** The next appends that can share a row: one epoch, bounded in size, and one with writes alone. */
  #takeGroup(): Append[] {
    let [taken, entries, chars, epoch] = [0, 0, 0, 0];
    for (const append of this.#queue) {
      const fits = entries + append.records.length <= groupEntriesMax && chars + append.chars <= groupCharsMax;
      if (taken > 0 && (!fits || append.writes !== undefined)) break;
      taken += 1;
      entries += append.records.length;
      chars += append.chars;
      epoch = Math.max(epoch, append.epoch);
      if (append.writes !== undefined) break;
    }
    const group = this.#queue.splice(0, taken);
    this.#queuedChars -= chars;
    for (const append of group) if (append.epoch < epoch) this.#settle(append, () => append.reject(new StaleEpoch()));
    return group.filter((append) => !append.settled);
  }

  async #commit(group: readonly Append[]): Promise<void> {
    const { epoch, writes } = group[0]!;
    const batch = joinGroup(group);
    this.#underWay = group;
    const stored = await this.#stream.store({
      ...batch,
      epoch,
      ...(writes !== undefined && { writes }),
      isWanted: () => group.some((append) => !append.settled),
    });
    this.#underWay = [];
    if (stored.result === 'stored') {
      this.counters.groups += 1;
      this.counters.lines += batch.entries;
    } else if (stored.result === 'stale') {
      this.counters.staleGroups += 1;
    }
    for (const append of group) {
      this.#settle(append, () => {
        if (stored.result === 'stored') append.resolve({ sentAt: stored.sentAt });
        else if (stored.result === 'stale') append.reject(new StaleEpoch());
        else append.reject(stored.error ?? unavailable());
      });
    }
  }

  #settle(append: Append, answer: () => void): void {
    if (append.settled) return;
    append.settled = true;
    answer();
  }

  /** Nobody waits longer than the deadline; what is under way is still followed to its end. */
  #sweep(): void {
    const now = performance.now();
    const late = (append: Append) => append.deadline <= now && !append.settled;
    for (const append of [...this.#underWay, ...this.#queue].filter(late)) {
      this.counters.unavailable += 1;
      this.#settle(append, () => append.reject(unavailable()));
    }
    if (!this.#queue.some((append) => append.settled)) return;
    this.#queue = this.#queue.filter((append) => !append.settled);
    this.#queuedChars = this.#queue.reduce((sum, append) => sum + append.chars, 0);
  }
}
