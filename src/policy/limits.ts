/**
 * How gently rows of a class are re-encrypted, as the policy says it, and what that means for rows of several classes; and
 * when a version of it may be given up. Pure.
 */
import { present } from '../present.ts';
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

/** ISO 8601 durations, each from the moment that the one before it is over. */
export interface RetireRule {
  /** How long applications may hold an envelope before they store it. */
  readonly handoffMax: string;
  /** How long no request has opened a value of the version. */
  readonly unreadFor: string;
  /** How long backups of the databases are kept. */
  readonly backupHorizon: string;
  /** How long snapshots of Vault are kept. */
  readonly vaultBackupHorizon: string;
}

const usualRetirement: RetireRule = {
  handoffMax: 'P7D',
  unreadFor: 'P7D',
  backupHorizon: 'P35D',
  vaultBackupHorizon: 'P35D',
};

/** What a class says, the usual where it does not. */
export function toRetireRule(given: { [K in keyof RetireRule]?: string | undefined } = {}): RetireRule {
  return { ...usualRetirement, ...present(given) };
}

/** How long an UPDATE may take when rows must be out of a compromised key: applications feel it, and it is worth it. */
const emergencyBatchMs = 1_000;

type Given = { [K in Exclude<keyof RotationLimits, 'hours'>]?: RotationLimits[K] | undefined } & {
  readonly hours?: Hours | undefined;
};

/** The limits that a class names, the usual ones where it does not. */
export function toLimits(given: Given = {}): RotationLimits {
  const { hours, ...numbers } = given;
  return { ...usual, ...present(numbers), hours: hours === undefined ? [] : [hours] };
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
