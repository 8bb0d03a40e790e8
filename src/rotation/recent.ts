/**
 * The rows of a family that were opened lately, by the audit log. In an emergency they are brought up to date before all
 * others: until then they are closed to almost everybody, and these are the ones that are missed.
 *
 *     gather   the log names rows by digests under a key of their tenant: those of the last accesses, newest first
 *     walk     the family's stale rows in key order, each digested as an access of it would have been
 *
 * This only decides what comes first. It is bounded in time and memory, and whatever stands in its way makes the answer
 * smaller, and is never an error.
 */
import { findStretchSince, listOpenedBatches, listOpenedRows, type Stretch } from '../audit/recent-store.ts';
import { unfoldAcknowledged } from '../audit/store.ts';
import { rowDigest, type DataKey } from '../crypto/data-key.ts';
import type { Pool } from '../db.ts';
import { auditFamily } from '../keys/version.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import type { Key, Row } from './batch.ts';
import { formatRow } from '../targets/catalog.ts';
import type { Workshop } from './scan.ts';
import { staleVersions } from './work.ts';

type RecentShop = Pick<Workshop, 'pool' | 'keyring' | 'policy'>;
type NamedRow = Pick<Row, 'key' | 'tenant'>;

/**
 * Rows of a table in which the column is of the version, whose key is greater than `after`, in key order; an empty answer
 * is the end.
 */
export type ReadKeys = (
  table: string,
  column: string,
  version: number,
  after: Key | undefined,
) => Promise<readonly NamedRow[]>;

/** Of one table. */
const rowsMax = 100_000;
const digestsMax = 500_000;
/** What an emergency waits for this at most: every row comes to its turn anyhow. */
const gatherMaxMs = 15_000;
const walkMaxMs = 15_000;
const stretchEntries = 20_000;
const batchesAtOnce = 20;
const hourMs = 3_600_000;

/** Digests of rows of which a value of the class was opened, newest first, until there are enough or the time is up. */
async function gather(pool: Pool, className: string, since: Date): Promise<ReadonlySet<string>> {
  const deadline = performance.now() + gatherMaxMs;
  const digests = new Set<string>();
  const isEnough = () => digests.size >= digestsMax || performance.now() > deadline;
  const { first, end } = await findStretchSince(pool, since);
  for (let top = end; top > first && !isEnough(); top -= stretchEntries) {
    const stretch = { first: Math.max(first, top - stretchEntries), end: top };
    for (const digest of await listOpenedRows(pool, className, stretch)) digests.add(digest);
    for (let rest: Stretch | undefined = stretch; rest !== undefined && !isEnough();) {
      const batches = await listOpenedBatches(pool, className, rest, batchesAtOnce);
      for (const { rowDigests } of batches) for (const digest of rowDigests) digests.add(digest);
      rest = batches.length < batchesAtOnce ? undefined : { first: stretch.first, end: batches.at(-1)!.index };
    }
  }
  return digests;
}

/** What a walk looks for, and until when. */
interface Search {
  readonly shop: RecentShop;
  /** Of the tenants' digest keys. */
  readonly digestVersion: number;
  readonly opened: ReadonlySet<string>;
  readonly deadline: number;
}

/** Adds the names of the rows that were opened to `names`. */
async function pick(
  { shop: { keyring }, digestVersion, opened }: Search,
  { address, column }: RegisteredColumn,
  rows: readonly NamedRow[],
  names: Set<string>,
): Promise<void> {
  const keys = new Map<string, DataKey | undefined>();
  for (const { key, tenant } of rows) {
    if (tenant === null || tenant === '' || names.size >= rowsMax) continue;
    if (!keys.has(tenant)) keys.set(tenant, await keyring.get(tenant, auditFamily, digestVersion));
    const digestKey = keys.get(tenant);
    if (digestKey === undefined) continue; // nobody ever asked for anything of this tenant
    const name = formatRow(key);
    if (opened.has(rowDigest(digestKey, digestVersion, address, column, name))) names.add(name);
  }
}

async function walk(search: Search, column: RegisteredColumn, read: ReadKeys, names: Set<string>): Promise<void> {
  for (const version of staleVersions(search.shop.keyring.state, column.class)) {
    for (let after: Key | undefined; names.size < rowsMax && performance.now() < search.deadline;) {
      const rows = await read(column.address, column.column, version, after);
      if (rows.length === 0) break;
      await pick(search, column, rows, names);
      after = rows.at(-1)!.key;
    }
  }
}

async function listInto(
  found: Map<string, Set<string>>,
  shop: RecentShop,
  read: ReadKeys,
  family: string,
  since: Date,
): Promise<void> {
  const digestVersion = shop.keyring.state.families.get(auditFamily)?.active;
  if (digestVersion === undefined) return;
  await unfoldAcknowledged(shop.pool);
  const opened = await gather(shop.pool, family, since);
  if (opened.size === 0) return;
  const search = { shop, digestVersion, opened, deadline: performance.now() + walkMaxMs };
  for (const column of shop.policy.columns) {
    if (column.class !== family) continue;
    const names = found.get(column.address) ?? new Set();
    found.set(column.address, names);
    await walk(search, column, read, names);
  }
}

/**
 * Names of the family's stale rows that an agent or a person opened (decrypt, match) in the last `sinceHours`, by the
 * address of their table; at most 100,000 of a table, and what is found within half a minute.
 */
export async function listRecentRows(
  shop: RecentShop,
  read: ReadKeys,
  family: string,
  sinceHours = 24,
): Promise<Map<string, string[]>> {
  const found = new Map<string, Set<string>>();
  const since = new Date(Date.now() - sinceHours * hourMs);
  await listInto(found, shop, read, family, since).catch(() => undefined); // what was found by then will do
  return new Map([...found].filter(([, names]) => names.size > 0).map(([address, names]) => [address, [...names]]));
}
