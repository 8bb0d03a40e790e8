/**
 * Hears of changes of key state: LISTEN on a connection of its own. A notice only makes a process learn sooner; what
 * keeps a late process from answering under old state is the epoch that its audit entries commit under.
 */
import { connect } from '../db.ts';
import { epochChannel } from './store.ts';

const reconnectAfterMs = 1_000;

/** Calls `onChange` at every notice and after every reconnection (something may have been missed), until stopped. */
export function watchKeyState(
  databaseUrl: string,
  onError: (error: unknown) => void,
  onChange: () => Promise<void>,
): { stop: () => Promise<void> } {
  let stopped = false;
  let client: Awaited<ReturnType<typeof connect>> | undefined;
  let retry: NodeJS.Timeout | undefined;

  const changed = () => void onChange().catch(onError);

  function lost(error: unknown): void {
    client = undefined;
    if (stopped) return;
    onError(error);
    retry = setTimeout(() => void listen(), reconnectAfterMs);
  }

  async function listen(): Promise<void> {
    try {
      const fresh = await connect(databaseUrl, { name: 'notices' });
      fresh.on('notification', changed);
      fresh.once('end', () => lost(new Error('The connection that listens for key state ended.')));
      client = fresh;
      await fresh.query(`listen ${epochChannel}`);
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
