/**
 * Makes audit entries durable before anything they tell of is revealed. Many requests share one commit:
 *
 *     append → queue → group → one row of the intake, one commit → every waiting append is acknowledged
 *
 * One group is under way at a time; whatever came meanwhile is the next group, so there is no timer and no delay when
 * there is nothing to share. The commit is conditional on the epoch that the answers were computed under. A connection
 * that is lost is made again also when nothing is to be written: a failover may have taken what was acknowledged.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client, Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { isSameEpoch, type Epoch } from '../keys/epoch.ts';
import type { KeyVersion } from '../keys/version.ts';
import type { Content } from './chain.ts';
import { AuditStream, type StreamOptions } from './stream.ts';

export interface AuditRecord {
  /** The entry's canonical JSON. */
  readonly line: string;
  /** Of a batch: its items' lines, joined by line feeds. */
  readonly items?: string;
  /** Key versions that a request used for it; what the engine does is no use. */
  readonly uses?: ReadonlySet<KeyUse>;
}

/** A version of a family. */
export type KeyUse = Pick<KeyVersion, 'family' | 'version'>;

export interface Receipt {
  /** performance.now() before the commit was sent: the entry became durable no earlier. */
  readonly sentAt: number;
}

/** How long after its entry an answer may leave: what a policy takes away is gone within two seconds of its file. */
export const freshMaxMs = 1_500;

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
const healEveryMs = 1_000;
/** So often an idle stream is looked at: a server that is gone may leave the connection standing. */
const compareEveryMs = 10_000;
const groupEntriesMax = 2_000;
const groupCharsMax = 4 * 1024 * 1024;
const queueAppendsMax = 20_000;
const queueCharsMax = 64 * 1024 * 1024;

interface Append {
  readonly records: readonly AuditRecord[];
  readonly epoch: Epoch;
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

function joinGroup(group: readonly Append[]): Content {
  const records = group.flatMap((append) => append.records);
  const lines = records.map((record) => record.line).join('\n');
  const uses = formatUses(records);
  const content = { lines, entries: records.length, ...(uses !== '' && { uses }) };
  if (records.every((record) => record.items === undefined)) return content;
  return { ...content, items: records.map((record) => (record.items ?? '').replaceAll('\n', '\t')).join('\n') };
}

/** "ssn.1 bank.2": every version once. */
function formatUses(records: readonly AuditRecord[]): string {
  const found = new Set<string>();
  for (const { uses } of records) {
    if (uses !== undefined) for (const { family, version } of uses) found.add(`${family}.${version}`);
  }
  return [...found].join(' ');
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
  #healedAt = performance.now();
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

  /** What databases did not have any more after they were acknowledged: for metrics, they only grow. */
  get losses(): AuditStream['losses'] {
    return this.#stream.losses;
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
  append(records: readonly AuditRecord[], epoch: Epoch, writes?: (tx: Client) => Promise<void>): Promise<Receipt> {
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

  async #heal(): Promise<void> {
    await this.#stream.heal();
    this.#healedAt = performance.now();
    await this.#run(); // what came meanwhile
  }

  /**
   * The next appends that can share a row: of one epoch, bounded in size, and one with writes alone. Those of another epoch
   * come after them: which of two is the older one only the database can say.
   */
  #takeGroup(): Append[] {
    const [first] = this.#queue;
    const group: Append[] = [];
    const rest: Append[] = [];
    let [entries, chars] = [0, 0];
    for (const append of this.#queue) {
      const fits = entries + append.records.length <= groupEntriesMax && chars + append.chars <= groupCharsMax;
      const shares = fits && append.writes === undefined && first!.writes === undefined;
      if (append !== first && !(shares && isSameEpoch(append.epoch, first!.epoch))) {
        rest.push(append);
        continue;
      }
      group.push(append);
      entries += append.records.length;
      chars += append.chars;
    }
    this.#queue = rest;
    this.#queuedChars -= chars;
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
    const healAfterMs = this.#stream.isConnected ? compareEveryMs : healEveryMs;
    if (now - this.#healedAt >= healAfterMs) this.#running ??= this.#heal();
    if (!this.#queue.some((append) => append.settled)) return;
    this.#queue = this.#queue.filter((append) => !append.settled);
    this.#queuedChars = this.#queue.reduce((sum, append) => sum + append.chars, 0);
  }
}
