/**
 * Writes changes to a table of the customer's, in statements sized by how long they take. What may go away by itself (a
 * lock, a timeout, a deadlock, a serialization failure) is tried again with backoff and half as many rows. A row that the
 * database will not take (a constraint, a trigger, a type that cuts) is found by halving and told; the others are stored.
 * A row whose update a trigger drops without a word is told, too.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { sqlState, type Queryable } from '../db.ts';
import { writeBatch, type Change, type Key, type UpdateColumns } from './batch.ts';
import type { TableShape } from '../targets/catalog.ts';
import { backoffMs, type BatchSize } from './pace.ts';

/** lock_not_available, query_canceled (statement_timeout), deadlock_detected, serialization_failure */
const transientStates: ReadonlySet<string> = new Set(['55P03', '57014', '40P01', '40001']);
/** Data exceptions, constraints, a row that was stored otherwise, WITH CHECK OPTION, an error raised by a trigger. */
const refusedStates = /^(22|23|27|44|P0)/;
const triesMax = 6;
/** More rows than these refused at once are no odd rows: something is wrong with the table. */
const refusedMax = 100;
/** Stands where an SQLSTATE would: the row was locked as it was read, and the UPDATE came back without it. */
const swallowedState = 'no_row';

export interface Destination {
  /** One connection: a statement that failed has let go of its rows before the next one looks at them. */
  readonly db: Queryable;
  readonly table: TableShape;
  readonly columns: UpdateColumns;
  /** Locked rows are passed over, or waited for as long as the session's lock_timeout says. */
  readonly skipLocked: boolean;
}

export interface Written {
  /** Rows that were updated; others had been changed, or were locked. */
  readonly keys: readonly Key[];
  /** Rows that the database did not take, and the SQLSTATE it gave, or `swallowedState`. */
  readonly refused: readonly { readonly key: Key; readonly state: string }[];
  /** Spent in statements that stored something. */
  readonly ms: number;
  /** Whether something was in the way. */
  readonly contended: boolean;
}

/** Errors: those of the database that are about more than a row, and transient ones that stay. */
export async function writeChanges(to: Destination, changes: readonly Change[], size: BatchSize): Promise<Written> {
  const keys: Key[] = [];
  const refused: { key: Key; state: string }[] = [];
  const swallowed: Key[] = [];
  const waiting: (readonly Change[])[] = changes.length === 0 ? [] : [changes];
  let { skipLocked } = to;
  let [ms, tries, contended] = [0, 0, false];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const slice = next.slice(0, size.rows);
    if (slice.length < next.length) waiting.push(next.slice(slice.length));
    const started = performance.now();
    try {
      const stored = await writeBatch(to.db, to.table, to.columns, slice, skipLocked);
      for (const key of stored.keys) keys.push(key);
      for (const key of stored.swallowed) swallowed.push(key);
      const took = performance.now() - started;
      size.observe(slice.length, took);
      ms += took;
      tries = 0;
    } catch (error) {
      const state = sqlState(error) ?? '';
      if (transientStates.has(state)) {
        tries += 1;
        if (tries > triesMax) throw error;
        if (state === '55P03') skipLocked = true; // the next pass comes back for those
        contended = true;
        size.halve();
        waiting.push(slice);
        await sleep(backoffMs(tries));
      } else if (!refusedStates.test(state) || refused.length >= refusedMax) {
        throw error;
      } else if (slice.length === 1) {
        refused.push({ key: slice[0]!.key, state });
      } else {
        const middle = slice.length >> 1;
        waiting.push(slice.slice(middle), slice.slice(0, middle));
      }
    }
  }
  const dropped = swallowed.map((key) => ({ key, state: swallowedState }));
  return { keys, refused: [...refused, ...dropped], ms, contended };
}
