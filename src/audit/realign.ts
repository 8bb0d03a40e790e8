/**
 * Brings a process's streams and the database together again, on every new connection: compares (compare.ts), and in one
 * transaction stores again what is kept, records what is lost, and begins a new stream whose first entries say so.
 */
import { randomUUID } from 'node:crypto';
import type { Client } from '../db.ts';
import { Chain, trim, type Content, type Group } from './chain.ts';
import { compare, isWhole, type Range, type Setback } from './compare.ts';
import { formatEntry } from './entry.ts';
import { findLast, insertGroups, insertLoss, listHashes } from './loss-store.ts';
import { insertStream } from './store.ts';

/** What a process knows of its streams. */
export interface Known {
  readonly instanceId: string;
  /** Oldest first; the last one is written to. */
  readonly chains: readonly Chain[];
  /** The group that was sent and not answered. */
  readonly sent?: Group | undefined;
}

export interface Aligned {
  readonly chains: readonly Chain[];
  /** The server that was compared with, as in an epoch. */
  readonly server: string;
  /** Whether the group that was sent is stored, where the comparison has shown it. */
  readonly isSentThere?: boolean;
}

/** Runs a statement, or a few, within the time that an answer may take. */
type Ask = <T>(work: () => Promise<T>) => Promise<T>;

const insertGroupsMax = 500;
const insertCharsMax = 4 * 1024 * 1024;

/**
 * Answers the chains to go on with. `report` is told what is wrong, before anything is changed. Errors: those of the database; nothing, or all of it, was then done, and it is to be called again.
 */
export async function realign(
  client: Client,
  known: Known,
  ask: Ask,
  report: (setback: Setback) => void,
): Promise<Aligned> {
  const { chains, instanceId, sent } = known;
  const current = chains.at(-1)!;
  const setbacks: Setback[] = [];
  let server = '';
  let [isClosed, isSentThere] = [false, false];
  for (const chain of chains) {
    const last = await ask(() => findLast(client, chain.stream, instanceId));
    server = last.server;
    if (chain === current) isClosed = last.isClosed;
    if (last.isOurs && isWhole(chain, last, sent)) {
      if (last.seq > chain.seq) isSentThere = true;
      continue;
    }
    const from = Math.max(1, (chain.kept[0]?.seq ?? chain.seq + 1) - 1);
    const hashes = await ask(() => listHashes(client, chain.stream, from));
    setbacks.push(compare(chain, { isOurs: last.isOurs, head: last.seq, hashes }));
  }
  if (setbacks.length === 0 && !isClosed) return { chains, server, isSentThere };
  setbacks.forEach(report);
  await ask(() => client.query('begin'));
  for (const { again } of setbacks) await insertAll(client, ask, again);
  for (const setback of setbacks) await ask(() => record(client, setback, instanceId));
  const isEnded = isClosed || setbacks.some(({ kind }) => kind !== 'behind');
  const next = isEnded ? await ask(() => beginStream(client, instanceId, setbacks)) : undefined;
  await insertAll(client, ask, next?.kept ?? []);
  await ask(() => client.query('commit'));
  if (next === undefined) return { chains, server };
  // What has diverged stays so; what was kept of it is in the new stream.
  const over = setbacks.filter(({ kind }) => kind === 'diverged' || kind === 'renumbered').map(({ stream }) => stream);
  return { chains: trim([...chains.filter(({ stream }) => !over.includes(stream)), next]), server };
}

/** A few rows a statement, so that each is done within its time. */
async function insertAll(client: Client, ask: Ask, groups: readonly Group[]): Promise<void> {
  let some: Group[] = [];
  let chars = 0;
  for (const group of groups) {
    some.push(group);
    chars += group.lines.length + (group.items?.length ?? 0);
    if (some.length < insertGroupsMax && chars < insertCharsMax) continue;
    await ask(() => insertGroups(client, some));
    [some, chars] = [[], 0];
  }
  if (some.length > 0) await ask(() => insertGroups(client, some));
}

async function record(client: Client, { stream, lost, diverged }: Setback, instance: string): Promise<void> {
  if (lost !== undefined) await insertLoss(client, { stream, instance, reason: 'lost', ...lost });
  if (diverged !== undefined) await insertLoss(client, { stream, instance, reason: 'diverged', ...diverged });
}

/** The new stream with all that it begins with, of which only the stream itself is stored yet. */
async function beginStream(client: Client, instanceId: string, setbacks: readonly Setback[]): Promise<Chain> {
  const chain = new Chain(await insertStream(client, instanceId));
  const lines = setbacks.flatMap(describe);
  const told: Content[] = lines.length === 0 ? [] : [{ lines: lines.join('\n'), entries: lines.length }];
  for (const content of [...told, ...setbacks.flatMap(({ moved }) => moved)]) chain.advance(chain.next(content));
  return chain;
}

/** Lines of entries for what is lost, or differs. */
function describe({ stream, lost, diverged }: Setback): string[] {
  const line = (code: string, what: string, { first, last }: Range) =>
    formatEntry({
      ...{ v: 1, time: new Date().toISOString(), requestId: randomUUID(), action: 'audit', agent: 'fieldkeep' },
      ...{ decision: 'allow', outcome: 'failed', code, count: last - first + 1 },
      purpose: `groups ${first} to ${last} of stream ${stream} ${what}`,
    });
  return [
    ...(lost === undefined ? [] : [line('audit_lost', 'were acknowledged and are lost', lost)]),
    ...(diverged === undefined ? [] : [line('audit_diverged', 'are others than were acknowledged', diverged)]),
  ];
}
