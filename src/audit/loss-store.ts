/** SQL of what a failover has taken from the audit log: what the database has of a stream, what is put back, what is gone. */
import type { Queryable } from '../db.ts';
import { serverSql } from '../keys/epoch-store.ts';
import type { Group } from './chain.ts';
import type { Range } from './compare.ts';

interface Last {
  readonly isOurs: boolean;
  /** A loss is on record: nothing more is added to the stream. */
  readonly isClosed: boolean;
  /** Of the last group; 0: there is none. */
  readonly seq: number;
  readonly hash?: Buffer;
  /** The server that answered, as in an epoch. */
  readonly server: string;
}

/** The last group of a stream, and whether `instance` writes it. */
export async function findLast(db: Queryable, stream: string, instance: string): Promise<Last> {
  const { rows } = await db.query<{
    ours: boolean;
    closed: boolean;
    seq: string | null;
    hash: Buffer | null;
    server: string;
  }>(
    `select exists (select from fieldkeep.audit_streams where stream = $1 and instance = $2) as ours,
            exists (select from fieldkeep.audit_lost where stream = $1) as closed,
            last.seq, last.hash, ${serverSql} as server
     from (select) one left join lateral
       (select seq, hash from fieldkeep.audit_intake where stream = $1 order by seq desc limit 1) last on true`,
    [stream, instance],
  );
  const { ours, closed, seq, hash, server } = rows[0]!;
  return { isOurs: ours, isClosed: closed, seq: Number(seq ?? 0), server, ...(hash !== null && { hash }) };
}

/** Hashes of a stream's groups by their numbers, from one on. */
export async function listHashes(db: Queryable, stream: string, from: number): Promise<Map<number, Buffer>> {
  const { rows } = await db.query<{ seq: string; hash: Buffer }>(
    'select seq, hash from fieldkeep.audit_intake where stream = $1 and seq >= $2',
    [stream, from],
  );
  return new Map(rows.map(({ seq, hash }) => [Number(seq), hash]));
}

/** Stores groups again. They are history: what they tell of was answered, whatever the epoch is now. */
export async function insertGroups(tx: Queryable, groups: readonly Group[]): Promise<void> {
  await tx.query(
    `insert into fieldkeep.audit_intake (stream, seq, lines, items, entries, prev_hash, hash)
     select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::int[], $6::bytea[], $7::bytea[])`,
    [
      groups.map(({ stream }) => stream),
      groups.map(({ seq }) => seq),
      groups.map(({ lines }) => lines),
      groups.map(({ items }) => items ?? null),
      groups.map(({ entries }) => entries),
      groups.map(({ prevHash }) => prevHash),
      groups.map(({ hash }) => hash),
    ],
  );
}

export interface Loss extends Range {
  readonly stream: string;
  readonly instance: string;
  readonly reason: 'lost' | 'diverged';
}

export async function insertLoss(tx: Queryable, { stream, first, last, reason, instance }: Loss): Promise<void> {
  await tx.query(
    `insert into fieldkeep.audit_lost (stream, first_seq, last_seq, reason, instance) values ($1, $2, $3, $4, $5)
     on conflict do nothing`,
    [stream, first, last, reason, instance],
  );
}

/** How long a gap stands before unfolding takes it for lost. */
const standsMs = 10_000;

/**
 * Records as lost the gaps that keep groups from being unfolded. Whoever writes a stream records its loss together with
 * what follows, and nobody fills a gap later, so such a gap was left by something else: an earlier release that went on
 * after a failover, or a stranger's row. Answers those that were recorded now, a stream's next one at a time.
 */
export async function recordStandingGaps(db: Queryable): Promise<readonly Loss[]> {
  const { rows } = await db.query<{ stream: string; first: string; last: string; instance: string }>(
    `insert into fieldkeep.audit_lost (stream, first_seq, last_seq, reason, instance)
     select s.stream, done.seq + 1, next.seq - 1, 'lost', s.instance
     from fieldkeep.audit_streams s
     cross join lateral (
       select coalesce((select u.seq from fieldkeep.audit_unfolded u where u.stream = s.stream
                        order by u.seq desc limit 1), 0) as seq
     ) done
     cross join lateral (
       select i.seq, i.committed_at from fieldkeep.audit_intake i where i.stream = s.stream and i.seq > done.seq
       order by i.seq limit 1
     ) next
     where next.seq > done.seq + 1 and next.committed_at < clock_timestamp() - make_interval(secs => $1::float8 / 1000)
       and not exists (select from fieldkeep.audit_lost l where l.stream = s.stream and l.reason = 'lost'
         and l.first_seq <= done.seq + 1 and l.last_seq >= next.seq - 1)
     on conflict do nothing
     returning stream, first_seq as first, last_seq as last, instance`,
    [standsMs],
  );
  return rows.map(({ first, last, ...rest }) => ({
    ...{ ...rest, first: Number(first), last: Number(last), reason: 'lost' as const },
  }));
}

/** How many groups are recorded as lost. */
export async function countLost(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ n: string }>(
    `select coalesce(sum(last_seq - first_seq + 1), 0) as n from fieldkeep.audit_lost where reason = 'lost'`,
  );
  return Number(rows[0]!.n);
}
