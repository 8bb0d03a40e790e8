/**
 * SQL of the audit log, one function a statement. What it relies on:
 *
 *   - a stream sends group n + 1 only after group n was acknowledged, so a group that can be seen has all before it, except
 *     what audit_lost says (compare.ts);
 *   - a group is unfolded once: audit_unfolded and the entries are written in one transaction, under one lock;
 *   - the lock on audit_intake is taken before the snapshot that reads the epoch, so that waiting out the lock's holders
 *     waits out every group that still saw an older epoch.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { transaction, type Pool, type Queryable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { Epoch } from '../keys/epoch.ts';
import { epochIs } from '../keys/epoch-store.ts';
import type { Group } from './chain.ts';
import { proofOf } from '../session.ts';

/** Answers the new stream's number. */
export async function insertStream(db: Queryable, instanceId: string): Promise<string> {
  const { rows } = await db.query<{ stream: string }>(
    'insert into fieldkeep.audit_streams (instance) values ($1) returning stream',
    [instanceId],
  );
  return rows[0]!.stream;
}

/** What is stored outlives a crash of the server, and its table takes no changes later. */
const isDurable = proofOf({ synchronous_commit: 'on', session_replication_role: 'origin' });

/**
 * False, and nothing is stored, when the epoch is another, or when the stream has a loss on record: unfolding may have
 * passed the number already.
 */
export async function insertGroup(db: Queryable, group: Group, epoch: Epoch): Promise<boolean> {
  const stands = epochIs(epoch, 9);
  const { rowCount } = await db.query({
    name: 'audit-insert-group',
    text: `insert into fieldkeep.audit_intake (stream, seq, lines, items, entries, prev_hash, hash, uses)
           select $1, $2, $3, $4, $5, $6, $7, $8 from fieldkeep.epoch where ${stands.sql}
             and not exists (select from fieldkeep.audit_lost l where l.stream = $1) and ${isDurable}`,
    values: [
      group.stream,
      group.seq,
      group.lines,
      group.items ?? null,
      group.entries,
      group.prevHash,
      group.hash,
      group.uses ?? null,
      ...stands.values,
    ],
  });
  return rowCount === 1;
}

export async function hasGroup(db: Queryable, group: Group): Promise<boolean> {
  const { rowCount } = await db.query(
    'select from fieldkeep.audit_intake where stream = $1 and seq = $2 and hash = $3',
    [group.stream, group.seq, group.hash],
  );
  return rowCount === 1;
}

/** A server process that serves one of our connections; the start tells it from a later one with the same number. */
export interface Backend {
  readonly pid: number;
  readonly start: string;
}

export async function getBackend(db: Queryable): Promise<Backend> {
  const { rows } = await db.query<Backend>(
    'select pid, backend_start::text as start from pg_stat_activity where pid = pg_backend_pid()',
  );
  return rows[0]!;
}

/** Answers whether the backend was still there. Once it is not, nothing that was sent to it can be committed any more. */
export async function terminateBackend(db: Queryable, backend: Backend): Promise<boolean> {
  const { rowCount } = await db.query(
    'select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and backend_start::text = $2',
    [backend.pid, backend.start],
  );
  return (rowCount ?? 0) > 0;
}

/** Transactions, by their virtual ids, that are writing to the intake; of `among` alone where that is given. */
async function listIntakeWriters(db: Queryable, among?: readonly string[]): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `select distinct virtualtransaction as id from pg_locks
     where locktype = 'relation' and relation = 'fieldkeep.audit_intake'::regclass and mode = 'RowExclusiveLock'
       and database = (select oid from pg_database where datname = current_database())
       and ($1::text[] is null or virtualtransaction = any ($1))`,
    [among ?? null],
  );
  return rows.map((row) => row.id);
}

const waitOutPollMs = 2;
const waitOutMaxMs = 30_000;

/**
 * Waits until every transaction has ended that was writing to the intake when this was called; to be called after the
 * transaction that raised the epoch has committed. From then on nothing computed under the epoch before is stored.
 * Errors: `database_unavailable` when one does not end within 30 s.
 */
export async function waitOutIntake(pool: Pool): Promise<void> {
  const deadline = performance.now() + waitOutMaxMs;
  let writers = await listIntakeWriters(pool);
  while (writers.length > 0) {
    if (performance.now() > deadline) {
      throw new FieldkeepError('database_unavailable', 'A transaction that writes to the audit intake does not end.');
    }
    await sleep(waitOutPollMs);
    writers = await listIntakeWriters(pool, writers);
  }
}

/** One unfolder at a time, over all workers; false when another is at work. */
async function tryLockUnfolding(tx: Queryable): Promise<boolean> {
  const { rowCount } = await tx.query('select from fieldkeep.unfolding for update skip locked');
  return rowCount === 1;
}

async function makePartitions(tx: Queryable): Promise<void> {
  await tx.query('select fieldkeep.audit_make_partitions()');
}

interface Unfolded {
  /** Entries made. */
  readonly entries: number;
  /** Whether more was waiting than the limit allowed. */
  readonly rest: boolean;
  /** Whether groups are left behind a gap that is not recorded as lost. */
  readonly held: boolean;
}

/**
 * Takes the next groups of every stream, as far as no gap is in the way, by the time of their commit, up to `linesMax`
 * entries but at least one group, and makes entries of them. Entries pass as text, and as `json` only to have columns read from them; an escaped NUL,
 * which no text column can hold, would make that fail and so is U+FFFD in the columns.
 */
async function unfoldGroups(tx: Queryable, linesMax: number): Promise<Unfolded> {
  const { rows } = await tx.query<Unfolded>({
    name: 'audit-unfold',
    text: `
    with reached as (
      select coalesce((select first_index + entries from fieldkeep.audit_unfolded order by first_index desc limit 1), 0)
        as index
    ), found as (
      select s.stream, g.seq, g.entries, g.at, g.reached
      from fieldkeep.audit_streams s
      cross join lateral (
        select coalesce((select u.seq from fieldkeep.audit_unfolded u where u.stream = s.stream
                         order by u.seq desc limit 1), 0) as seq
      ) done
      cross join lateral (
        select i.seq, i.entries, bool_and(i.follows) over by_seq as reached, max(i.committed_at) over by_seq as at
        from (
          select w.seq, w.entries, w.committed_at, w.seq = w.before + 1 or exists (
            select from fieldkeep.audit_lost l where l.stream = s.stream and l.reason = 'lost'
              and l.first_seq <= w.before + 1 and l.last_seq >= w.seq - 1) as follows
          from (select seq, entries, committed_at, lag(seq, 1, done.seq) over (order by seq) as before
                from fieldkeep.audit_intake where stream = s.stream and seq > done.seq order by seq limit $1) w
        ) i
        window by_seq as (order by i.seq)
      ) g
    ), waiting as (
      select stream, seq, entries, at from found where reached
    ), counted as (
      select *, sum(entries) over (order by at, stream, seq) as until from waiting
    ), chosen as (
      select stream, seq, entries, index + until - entries as first_index, until
      from counted cross join reached where until <= $1 or until = entries
    ), recorded as (
      insert into fieldkeep.audit_unfolded (stream, seq, first_index, entries)
      select stream, seq, first_index, entries from chosen
    ), used as (
      -- Joined as text: whoever may write there could write anything, and nothing may stop this.
      insert into fieldkeep.key_uses as k (family, version, last_used_at)
      select v.family, v.version, max(i.committed_at)
      from chosen c join fieldkeep.audit_intake i using (stream, seq)
      cross join lateral string_to_table(i.uses, ' ') as u (name)
      join fieldkeep.key_versions v on u.name = v.family || '.' || v.version
      group by v.family, v.version order by v.family, v.version
      on conflict (family, version) do update set last_used_at = greatest(k.last_used_at, excluded.last_used_at)
    ), placed as (
      select c.first_index + l.n - 1 as index, l.line, l.items
      from chosen c join fieldkeep.audit_intake i using (stream, seq)
      cross join lateral rows from (string_to_table(i.lines, E'\\n'), string_to_table(i.items, E'\\n'))
        with ordinality as l (line, items, n)
    ), listed as (
      insert into fieldkeep.audit_items (index, items, row_digests)
      select index, replace(items, E'\\t', E'\\n'),
             array(select distinct m[1] from regexp_matches(items, '"(?:rowDigest|toRowDigest)":"([^"]+)"', 'g') m)
      from placed where items <> ''
    ), made as (
      insert into fieldkeep.audit_entries (index, line, "time", request_id, tenant, agent, person, class, view, action,
        outcome, row_digest, to_row_digest)
      select p.index, p.line, f."time", f."requestId", f.tenant, f.agent, f.person, f.class, f.view, f.action,
        f.outcome, f."rowDigest", f."toRowDigest"
      from placed p
      cross join lateral json_to_record(replace(p.line, '\\u0000', '\\ufffd')::json) as f ("time" timestamptz,
        "requestId" text, tenant text, agent text, person text, class text, view text, action text, outcome text,
        "rowDigest" text, "toRowDigest" text)
      order by p.index
    )
    select coalesce(sum(entries), 0)::int as entries, count(*) < (select count(*) from waiting) as rest,
           exists (select from found where not reached) as held from chosen`,
    values: [linesMax],
  });
  return rows[0]!;
}

/** Undefined when another unfolder is at work. */
async function tryUnfold(pool: Pool, linesMax: number): Promise<Unfolded | undefined> {
  return transaction(pool, async (tx) => {
    if (!(await tryLockUnfolding(tx))) return undefined;
    await makePartitions(tx); // a statement of its own: the next one could not insert into what it made
    return unfoldGroups(tx, linesMax);
  });
}

/** Makes entries of waiting groups: how many, and 0 also when another unfolder is at work. */
export async function unfold(pool: Pool, linesMax: number): Promise<number> {
  return (await tryUnfold(pool, linesMax))?.entries ?? 0;
}

const unfoldLinesMax = 5_000;
const unfoldPollMs = 5;

const heldPollMs = 100;

/**
 * Whatever was acknowledged before the call is an entry afterwards. A gap that nothing explains is waited for until it is
 * recorded (loss-store.ts): entries behind it are never left out without a word. Errors: `database_unavailable` after 30 s.
 */
export async function unfoldAcknowledged(pool: Pool): Promise<void> {
  const deadline = performance.now() + waitOutMaxMs;
  for (;;) {
    const unfolded = await tryUnfold(pool, unfoldLinesMax);
    if (unfolded?.rest === false && !unfolded.held) return;
    if (performance.now() > deadline) {
      throw new FieldkeepError('database_unavailable', 'Audit entries are still being put in order.');
    }
    if (unfolded === undefined) await sleep(unfoldPollMs);
    else if (unfolded.held && !unfolded.rest) await sleep(heldPollMs);
  }
}

/** Has workers put entries in order at once. */
export const unfoldChannel = 'fieldkeep_unfold';
const waitUnfoldedMaxMs = 5_000;
const waitUnfoldedPollMs = 10;

/**
 * For a process that does not unfold: waits until workers have made entries of whatever was acknowledged before the call.
 * Errors: `database_unavailable` after 5 s.
 */
export async function waitUnfolded(pool: Pool): Promise<void> {
  const { rows } = await pool.query<{ stream: string; last: string }>(
    `select stream, last from (
       select s.stream, (select i.seq from fieldkeep.audit_intake i where i.stream = s.stream order by i.seq desc limit 1) as last,
         (select u.seq from fieldkeep.audit_unfolded u where u.stream = s.stream order by u.seq desc limit 1) as done
       from fieldkeep.audit_streams s) reached
     where last > coalesce(done, 0)`,
  );
  if (rows.length === 0) return;
  await pool.query(`notify ${unfoldChannel}`);
  const asked = [rows.map(({ stream }) => stream), rows.map(({ last }) => last)];
  const deadline = performance.now() + waitUnfoldedMaxMs;
  for (;;) {
    const { rows: found } = await pool.query<{ done: boolean }>(
      `select bool_and(exists (select from fieldkeep.audit_unfolded u where u.stream = a.stream and u.seq = a.last)) as done
       from unnest($1::bigint[], $2::bigint[]) a (stream, last)`,
      asked,
    );
    if (found[0]!.done) return;
    if (performance.now() > deadline) {
      const detail = 'The newest audit entries are not in order yet: a process with ROLE=worker puts them there.';
      throw new FieldkeepError('database_unavailable', detail, { retryAfterSeconds: 1 });
    }
    await sleep(waitUnfoldedPollMs);
  }
}

/** All optional, all must hold. For a batch, one of its items having the value suffices. */
export interface EntryFilter {
  readonly tenant?: string;
  readonly agent?: string;
  readonly person?: string;
  readonly class?: string;
  readonly view?: string;
  readonly action?: string;
  readonly outcome?: string;
  readonly rowDigest?: string;
  readonly requestId?: string;
  /** ISO 8601, inclusive. */
  readonly from?: string;
  /** ISO 8601, exclusive. */
  readonly to?: string;
}

interface EntryPage {
  readonly items: readonly { readonly index: number; readonly line: string }[];
  readonly nextCursor?: string;
}

/** A condition on a member that entries have, or, where a batch's items differ in it, the items do. */
function orItem(column: string, member: string): (n: number) => string {
  const needle = (n: number) => `'"${member}":' || to_json($${n}::text)::text`;
  return (n) => `(e.${column} = $${n} or ((e.${column} is null or e.${column} = 'partial') and exists (
    select from fieldkeep.audit_items i where i.index = e.index and strpos(i.items, ${needle(n)}) > 0)))`;
}

/** Filters with an index of their own; what they find is looked through first, whatever the planner believes of sizes. */
const finders = {
  requestId: (n: number) => `select index from fieldkeep.audit_entries where request_id = $${n}`,
  rowDigest: (n: number) => `(select index from fieldkeep.audit_entries where row_digest = $${n}
    union select index from fieldkeep.audit_entries where to_row_digest = $${n}
    union select index from fieldkeep.audit_items where row_digests @> array[$${n}::text])`,
};

const conditions: Readonly<Record<Exclude<keyof EntryFilter, keyof typeof finders>, (n: number) => string>> = {
  tenant: (n) => `e.tenant = $${n}`,
  agent: (n) => `e.agent = $${n}`,
  person: (n) => `e.person = $${n}`,
  class: orItem('class', 'class'),
  view: orItem('view', 'view'),
  action: (n) => `e.action = $${n}`,
  outcome: orItem('outcome', 'outcome'),
  from: (n) => `e."time" >= $${n}::timestamptz`,
  to: (n) => `e."time" < $${n}::timestamptz`,
};

/**
 * A page of entries, newest first, `limit` at most; whatever was acknowledged before the call is considered, which is what
 * `inOrder` sees to: a process that may not unfold waits for those that do.
 * `cursor` is the nextCursor of the page before. Errors: `request_invalid` for any other cursor.
 */
export async function findEntries(
  pool: Pool,
  filter: EntryFilter,
  limit: number,
  cursor?: string,
  inOrder: (pool: Pool) => Promise<void> = unfoldAcknowledged,
): Promise<EntryPage> {
  if (cursor !== undefined && !/^[0-9]{1,15}$/.test(cursor)) {
    throw new FieldkeepError('request_invalid', 'The cursor is not one that a page ended with.');
  }
  await inOrder(pool);
  const values: (string | number)[] = [limit + 1];
  const apply = <N extends keyof EntryFilter>(by: Record<N, (n: number) => string>): string[] =>
    (Object.keys(by) as N[]).flatMap((name) => {
      const value = filter[name];
      return value === undefined ? [] : [by[name](values.push(value))];
    });
  const found = apply(finders).join(' intersect ');
  const where = ['true', ...apply(conditions)];
  if (cursor !== undefined) where.push(`e.index < $${values.push(cursor)}`);
  const { rows } = await pool.query<{ index: string; line: string }>(
    `${found === '' ? '' : `with found as materialized (${found})`}
     select e.index, e.line from ${found === '' ? '' : 'found join'} fieldkeep.audit_entries e
     ${found === '' ? '' : 'using (index)'} where ${where.join(' and ')} order by e.index desc limit $1`,
    values,
  );
  const items = rows.slice(0, limit).map(({ index, line }) => ({ index: Number(index), line }));
  const last = items.at(-1);
  return rows.length > limit && last !== undefined ? { items, nextCursor: String(last.index) } : { items };
}
