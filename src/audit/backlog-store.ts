/** How far putting entries in order is behind. */
import type { Queryable } from '../db.ts';

export interface Backlog {
  /** Groups that are no entries yet; counted up to a limit in each stream. */
  readonly groups: number;
  /** Since when the oldest of them waits. */
  readonly seconds: number;
}

const backlogCountMax = 10_000;

/** What was acknowledged and cannot be read as entries yet. */
export async function findBacklog(db: Queryable): Promise<Backlog> {
  const { rows } = await db.query<Backlog>({
    name: 'audit-backlog',
    text: `
    select count(*)::int as groups, coalesce(extract(epoch from clock_timestamp() - min(g.committed_at)), 0)::float8 as seconds
    from fieldkeep.audit_streams s
    cross join lateral (
      select coalesce((select u.seq from fieldkeep.audit_unfolded u where u.stream = s.stream
                       order by u.seq desc limit 1), 0) as seq
    ) done
    cross join lateral (
      select committed_at from fieldkeep.audit_intake where stream = s.stream and seq > done.seq order by seq limit $1
    ) g`,
    values: [backlogCountMax],
  });
  return rows[0]!;
}
