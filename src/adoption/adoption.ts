/**
 * Where the adoption of a column stands. Nothing of that is stored but the dates at which it was begun, compared, finished
 * and undone:
 *
 *     waiting → filling ⇄ filled → finishing → finished        filled: no plaintext waits for its envelope
 *                  ↘ undoing → undone, from any of them
 */
import type { Queryable } from '../db.ts';
import { addDuration } from '../policy/schedule.ts';
import { columnId, type Policy, type RegisteredColumn } from '../policy/policy.ts';
import { findAdoption, findColumnRun, type AdoptionDates } from '../rotation/adoption-store.ts';
import { lookUpStale, type Counts } from '../rotation/counts.ts';
import type { Catalog, TableShape } from '../targets/catalog.ts';
import { viewRun, type RunView } from '../rotation/progress.ts';
import { present } from '../present.ts';
import { findRun, type Run } from '../rotation/store.ts';
import type { Targets } from '../targets/targets.ts';
import { sourced, unadopted } from '../rotation/work.ts';

export type AdoptionState = 'waiting' | 'filling' | 'filled' | 'finishing' | 'finished' | 'undoing' | 'undone';

export interface AdoptionView extends AdoptionDates {
  readonly table: string;
  readonly column: string;
  readonly class: string;
  /** The column that it is filled from; absent: in place. */
  readonly from?: string;
  readonly tenants?: readonly string[];
  readonly state: AdoptionState;
  /** Values that wait for their envelope. */
  readonly unfilled?: number;
  /** Values that stand in the source, with an envelope beside them or not. */
  readonly plaintext?: number;
  /** When these were counted; they are absent until they could be, for the first time. */
  readonly countedAt?: Date;
  /** What keeps it from being worked on, in a sentence. */
  readonly problem?: string;
  /** The newest run about this column alone. */
  readonly run?: RunView;
  /** Where plaintext is left although the column holds none, in sentences. */
  readonly remains?: readonly string[];
}

export interface AdoptionShop {
  readonly pool: Queryable;
  readonly targets: Targets;
  readonly policy: Policy;
  readonly catalog: Catalog;
  readonly counts: Counts;
}

/** The registered column that is called `address.column`. */
export function findByName(columns: readonly RegisteredColumn[], name: string): RegisteredColumn | undefined {
  return columns.find(({ address, column }) => `${address}.${column}` === name);
}

/**
 * Why the plaintext of a column must not go to this one, in a sentence: what is somebody else's would be overwritten, by the
 * job or by the triggers. The column itself will do (in place), and so will its source. Pure.
 */
export function refuseDestination(
  columns: readonly RegisteredColumn[],
  { address, key, tenant, column }: RegisteredColumn,
  to: string,
): string | undefined {
  const place = `Column ${to} of table ${address}`;
  if (key.includes(to) || ('column' in tenant && tenant.column === to)) return `${place} is its key or its tenant.`;
  for (const other of columns.filter((each) => each.address === address)) {
    const own = other.column === column ? [] : [other.column, ...(other.from === undefined ? [] : [other.from])];
    if ([...own, ...other.index.map((index) => index.column)].includes(to)) {
      return `${place} belongs to ${address}.${other.column} by the policy.`;
    }
  }
  return undefined;
}

/** Pure. `unfilled` is undefined where nobody could count. */
export function stateOf(
  column: Pick<RegisteredColumn, 'from'>,
  dates: AdoptionDates,
  run: Pick<Run, 'kind' | 'doneAt'> | undefined,
  unfilled: number | undefined,
): AdoptionState {
  const working = run?.doneAt === undefined ? run?.kind : undefined;
  if (working === 'undo' || working === 'leave') return 'undoing';
  if (dates.undoneAt !== undefined) return 'undone';
  if (working === 'finish') return 'finishing';
  if (dates.finishedAt !== undefined && (unfilled ?? 0) === 0) return 'finished';
  if (column.from !== undefined && dates.startedAt === undefined) return 'waiting';
  return unfilled === 0 ? 'filled' : 'filling';
}

/** What a column that was emptied leaves behind, and until when. */
function listRemains({ policy }: AdoptionShop, column: RegisteredColumn, finishedAt: Date): string[] {
  const { schema, name, from, class: className } = column;
  const horizon = policy.classes.get(className)!.retire.backupHorizon;
  const until = addDuration(finishedAt, horizon).toISOString().slice(0, 10);
  return [
    `Dead rows and statistics hold plaintext of ${from} until: vacuum (full, analyze) ${schema}.${name};`,
    'Write-ahead log and its archive hold it for as long as they are kept.',
    `Backups hold it until ${until}, if they are kept for ${horizon} (backupHorizon), and so do replicas and exports.`,
  ];
}

type Shown = Pick<AdoptionView, 'unfilled' | 'plaintext' | 'countedAt'>;

async function count(
  shop: AdoptionShop,
  table: TableShape,
  column: RegisteredColumn,
  deadline: number,
): Promise<Shown> {
  const waiting = unadopted({ ...column, adopt: true });
  const unfilled = await lookUpStale(shop, table, column, 'unfilled', waiting, deadline);
  const plaintext =
    column.from === undefined
      ? unfilled
      : await lookUpStale(shop, table, column, 'plaintext', [sourced(column)], deadline);
  const countedAt = unfilled?.at ?? plaintext?.at;
  return present({ unfilled: unfilled?.value, plaintext: plaintext?.value, countedAt });
}

/** Counting may take until `deadline`; absent, nothing is counted. Errors: those of our own database. */
export async function viewAdoption(
  shop: AdoptionShop,
  column: RegisteredColumn,
  deadline?: number,
): Promise<AdoptionView> {
  const { address, from, tenants } = column;
  const dates = await findAdoption(shop.pool, address, column.column);
  const runId = await findColumnRun(shop.pool, address, column.column);
  const run = runId === undefined ? undefined : await findRun(shop.pool, runId);
  const table = shop.catalog.tables.get(address);
  const counts = table === undefined || deadline === undefined ? undefined : await count(shop, table, column, deadline);
  const state = stateOf(column, dates, run, counts?.unfilled);
  const isEmpty = state === 'finished' && dates.finishedAt !== undefined && from !== undefined;
  return {
    ...{ table: address, column: column.column, class: column.class, state, ...dates, ...counts },
    ...present({
      from,
      tenants,
      problem: shop.catalog.problems.get(address) ?? shop.catalog.unready.get(columnId(column)),
      run: run && (await viewRun(shop.pool, run)),
      remains: isEmpty ? listRemains(shop, column, dates.finishedAt) : undefined,
    }),
  };
}
