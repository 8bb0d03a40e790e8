/** SQL of the processes that are alive, and of what they can use. */
import type { Queryable } from '../db.ts';

/** An instance without a heartbeat for this long is dead, by the database's clock. */
const deadAfterMs = 10_000;

/** That the instance whose id an SQL expression names is alive. */
export function aliveSql(id: string): string {
  return `exists (select from fieldkeep.instances i where i.id = ${id} and i.heartbeat_at > now() - interval '${deadAfterMs} ms')`;
}

/** What a process says of itself. */
export interface InstanceState {
  /** Families that it serves, null for all. */
  readonly families: readonly string[] | null;
  readonly role?: 'api' | 'worker' | 'all';
  /** The version of the policy that it goes by. */
  readonly policy?: string;
}

export async function deleteInstance(db: Queryable, id: string): Promise<void> {
  await db.query('delete from fieldkeep.instances where id = $1', [id]);
}

/** Also takes the dead away; one that was only asleep finds its row missing and inserts it again. */
export async function upsertHeartbeat(db: Queryable, id: string, state: InstanceState): Promise<void> {
  await db.query(
    `insert into fieldkeep.instances as i (id, families, role, policy, policy_since) values ($1, $2, $3, $4, now())
     on conflict (id) do update set heartbeat_at = now(), policy = excluded.policy,
       policy_since = case when i.policy = excluded.policy then i.policy_since else now() end`,
    [id, state.families, state.role ?? null, state.policy ?? null],
  );
  await db.query(
    `delete from fieldkeep.instances where heartbeat_at < now() - make_interval(secs => $1::float8 / 1000)`,
    [deadAfterMs],
  );
}

export async function insertReady(db: Queryable, id: string, family: string, version: number): Promise<void> {
  await db.query(
    `insert into fieldkeep.instance_ready (instance, family, version)
     select id, $2, $3 from fieldkeep.instances where id = $1 on conflict do nothing`,
    [id, family, version],
  );
}

/** Living instances that serve the family and have not yet shown that they can use the version. */
export async function countUnready(db: Queryable, family: string, version: number): Promise<number> {
  const { rows } = await db.query<{ n: number }>(
    `select count(*)::int as n from fieldkeep.instances i
     where heartbeat_at >= now() - make_interval(secs => $3::float8 / 1000)
       and (i.families is null or $1 = any (i.families)) and not exists
       (select 1 from fieldkeep.instance_ready r where r.instance = i.id and r.family = $1 and r.version = $2)`,
    [family, version, deadAfterMs],
  );
  return rows[0]!.n;
}
