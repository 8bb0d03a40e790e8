/**
 * Knows how the keeper of root keys is, by asking it every few seconds, and tells the log when that changes. Keys in the
 * cache outlive an outage; once it has lasted longer than they do, or from a start that never saw the keeper well, nothing
 * can be opened: only then is it `lost`.
 */
import type { Log } from '../log.ts';
import { lifetimeMs } from './keyring.ts';
import type { RootKeys } from './root-keys.ts';

const lookEveryMs = 2_000;

export interface KeeperWatch {
  /** What the last look came to; `lost`: keys can no longer be expected to be at hand. */
  state(): { readonly problem?: string; readonly lost: boolean };
  stop(): void;
}

/** Looks once before it answers. */
export async function watchKeeper(
  rootKeys: Pick<RootKeys, 'findProblem'>,
  log: Pick<Log, 'warn'>,
): Promise<KeeperWatch> {
  let problem: string | undefined;
  let wellAt: number | undefined;
  let looking: Promise<void> | undefined;

  async function look(): Promise<void> {
    const before = problem;
    problem = await rootKeys.findProblem();
    looking = undefined;
    if (problem === undefined) wellAt = performance.now();
    if (problem === before) return;
    if (problem === undefined) log.warn({}, 'The keeper of root keys is back.');
    else log.warn({ problem }, 'The keeper of root keys is away; data keys at hand go on working.');
  }

  await look();
  // One look at a time: a Vault that does not answer takes longer than the time between two.
  const timer = setInterval(() => void (looking ??= look()), lookEveryMs);
  return {
    state() {
      const lost = wellAt === undefined || performance.now() - wellAt > lifetimeMs;
      return { lost, ...(problem !== undefined && { problem }) };
    },
    stop: () => clearInterval(timer),
  };
}
