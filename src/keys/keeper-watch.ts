/**
 * Knows how the keeper of root keys is, by asking it every few seconds, and tells the log when that changes. Keys in the
 * cache outlive an outage; once it has lasted longer than they do, or from a start that never saw the keeper well, nothing
 * can be opened: only then is it `lost`.
 */
import { lifetimeMs } from './keyring.ts';
import type { KeeperState, RootKeys } from './root-keys.ts';

const lookEveryMs = 2_000;

export interface KeeperWatch {
  /** What the last look came to; `lost`: keys can no longer be expected to be at hand. */
  state(): KeeperState & { readonly lost: boolean };
  stop(): void;
}

/** The part of a pino logger that is used here. */
export interface Log {
  warn(fields: object, message: string): void;
}

/** Looks once before it answers. */
export async function watchKeeper(rootKeys: Pick<RootKeys, 'look'>, log: Log): Promise<KeeperWatch> {
  let last: KeeperState = { figures: {} };
  let wellAt: number | undefined;

  async function look(): Promise<void> {
    const before = last.problem;
    last = await rootKeys.look();
    const { problem } = last;
    if (problem === undefined) wellAt = performance.now();
    if (problem === before) return;
    if (problem === undefined) log.warn({}, 'The keeper of root keys is back.');
    else log.warn({ problem }, 'The keeper of root keys is away; data keys at hand go on working.');
  }

  await look();
  const timer = setInterval(() => void look(), lookEveryMs);
  return {
    state: () => ({ ...last, lost: wellAt === undefined || performance.now() - wellAt > lifetimeMs }),
    stop: () => clearInterval(timer),
  };
}
