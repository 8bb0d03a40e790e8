/**
 * Hears of changes of key state and, in a worker, of calls that other processes ask: LISTEN on a connection of its own. A notice only makes a process learn sooner; what keeps a late process from answering under old state is the epoch
 * that its audit entries commit under.
 */
import { connect } from '../db.ts';
import { epochChannel } from './store.ts';

const reconnectAfterMs = 1_000;

interface Listeners {
  /** Called at every change and after every reconnection: something may have been missed. */
  readonly onChange: () => Promise<void>;
  /** More channels, and what a notice there has done. Anybody may send one, so it only has somebody look. */
  readonly others?: Readonly<Record<string, () => void>>;
}

export function watchKeyState(
  databaseUrl: string,
  onError: (error: unknown) => void,
  { onChange, others = {} }: Listeners,
): { stop: () => Promise<void> } {
  let stopped = false;
  let client: Awaited<ReturnType<typeof connect>> | undefined;
  let retry: NodeJS.Timeout | undefined;

  const changed = () => void onChange().catch(onError);

  function heard({ channel }: { channel: string }): void {
    if (channel === epochChannel) changed();
    else others[channel]?.();
  }

  function lost(error: unknown): void {
    client = undefined;
    if (stopped) return;
    onError(error);
    retry = setTimeout(() => void listen(), reconnectAfterMs);
  }

  async function listen(): Promise<void> {
    try {
      const fresh = await connect(databaseUrl, { name: 'notices' });
      fresh.on('notification', heard);
      fresh.once('end', () => lost(new Error('The connection that listens for key state ended.')));
      client = fresh;
      await fresh.query(`listen ${epochChannel}`);
      for (const channel of Object.keys(others)) await fresh.query(`listen ${channel}`);
      if (stopped) await fresh.end();
      else changed();
    } catch (error) {
      if (client === undefined) lost(error); // otherwise its 'end' tells
    }
  }

  void listen();
  return {
    async stop() {
      stopped = true;
      clearTimeout(retry);
      await client?.end();
    },
  };
}
