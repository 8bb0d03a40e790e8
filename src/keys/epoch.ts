/**
 * The epoch under which an answer is computed. Pure.
 *
 *     n        raised by every change of key state or policy
 *     token    random, new at every raise: after a failover that lost commits a number is given again
 *     server   the start of the Postgres server that it was read from: a failover may also lose what raises no epoch,
 *              a tenant's first data key for instance
 *
 * An answer commits only under the epoch that it was computed under, all three of it.
 */
export interface Epoch {
  readonly n: number;
  readonly token: string;
  readonly server: string;
}

export function isSameEpoch(one: Epoch, other: Epoch): boolean {
  return one.n === other.n && one.token === other.token && one.server === other.server;
}

/**
 * Whether everything that the database held under `earlier` it must still hold under `later`. A server that was started
 * anew may be a standby that was behind; on the same server the number only grows.
 */
export function follows(later: Epoch, earlier: Epoch): boolean {
  if (later.server !== earlier.server) return false;
  return later.n > earlier.n || isSameEpoch(later, earlier);
}
