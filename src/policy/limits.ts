/** How gently rows of a class are re-encrypted, as the policy says it, and what that means for rows of several classes. Pure. */
import { isWithin, type Hours } from './schedule.ts';

export interface RotationLimits {
  /** Key ranges worked on at the same time, over all workers. */
  readonly concurrency: number;
  /** Over all workers. */
  readonly rowsPerSecondMax?: number;
  /** How long one UPDATE should take at most. */
  readonly batchMsMax: number;
  /** MiB that a replica may be behind. */
  readonly lagMibMax: number;
  /** Rows are worked on when all of these are open. */
  readonly hours: readonly Hours[];
}

const usual: RotationLimits = { concurrency: 1, batchMsMax: 100, lagMibMax: 64, hours: [] };

/** How long an UPDATE may take when rows must be out of a compromised key: applications feel it, and it is worth it. */
const emergencyBatchMs = 1_000;

type Given = { [K in Exclude<keyof RotationLimits, 'hours'>]?: RotationLimits[K] | undefined } & {
  readonly hours?: Hours | undefined;
};

/** The limits that a class names, the usual ones where it does not. */
export function toLimits(given: Given = {}): RotationLimits {
  const { hours, ...numbers } = given;
  const set = Object.fromEntries(Object.entries(numbers).filter(([, value]) => value !== undefined));
  return { ...usual, ...set, hours: hours === undefined ? [] : [hours] };
}

/** The strictest of several limits: what holds for rows that have columns of several classes. */
export function joinLimits(all: readonly RotationLimits[]): RotationLimits {
  if (all.length === 0) return usual;
  const least = (values: readonly number[]) => Math.min(...values);
  const rates = all.flatMap(({ rowsPerSecondMax }) => rowsPerSecondMax ?? []);
  return {
    concurrency: least(all.map((each) => each.concurrency)),
    batchMsMax: least(all.map((each) => each.batchMsMax)),
    lagMibMax: least(all.map((each) => each.lagMibMax)),
    hours: all.flatMap((each) => each.hours),
    ...(rates.length > 0 && { rowsPerSecondMax: least(rates) }),
  };
}

/** The limits of an emergency: no rate, no hours, longer batches. Replicas still count: the application reads them. */
export function liftLimits({ concurrency, lagMibMax }: RotationLimits): RotationLimits {
  return { concurrency: Math.max(2, concurrency), lagMibMax, batchMsMax: emergencyBatchMs, hours: [] };
}

/** The hours that are closed at this moment, if any. */
export function findClosed({ hours }: RotationLimits, at: Date): Hours | undefined {
  return hours.find((each) => !isWithin(each, at));
}
