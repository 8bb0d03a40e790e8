/**
 * A Postgres server of its own that can fail over to a standby that was behind: a copy of its folder, made while it was
 * down, is started in its place on the same port. What was committed after the copy was made is gone.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isRunning } from '../../src/embedded/home.ts';
import { placePostgres } from '../../src/embedded/postgres-place.ts';
import { startPostgres, type EmbeddedPostgres } from '../../src/embedded/postgres.ts';
import { migrateAll, type TestDatabase } from './database.ts';

export interface FailoverServer extends TestDatabase {
  /** From here on the standby gets nothing more. Breaks all connections. */
  leaveBehind(): Promise<void>;
  /** Kills the server, and promotes the standby. */
  promote(): Promise<void>;
}

const settings = { fsync: 'off' };

export async function openFailoverServer(): Promise<FailoverServer> {
  const home = mkdtempSync(join(tmpdir(), 'fieldkeep-failover-'));
  chmodSync(home, 0o711); // as root, Postgres runs as another user below it
  let server: EmbeddedPostgres = await startPostgres({ home, settings });
  const { ownerUrl, apiUrl, workerUrl, rowsUrl } = server;
  await migrateAll(server);
  const { id } = JSON.parse(readFileSync(join(home, 'postgres.json'), 'utf8')) as { id: string };
  const { data } = placePostgres(home, id);
  const standby = `${data}.standby`;

  async function start(): Promise<void> {
    server = await startPostgres({ home, settings });
    if (server.workerUrl !== workerUrl) throw new Error('The server did not get its port again.');
  }

  return {
    ownerUrl,
    apiUrl,
    workerUrl,
    rowsUrl,
    async leaveBehind() {
      await server.stop();
      rmSync(standby, { recursive: true, force: true });
      execFileSync('cp', ['-a', data, standby]);
      await start();
    },
    async promote() {
      process.kill(server.pid, 'SIGQUIT'); // writes nothing more
      for (let tries = 0; isRunning(server.pid); tries += 1) {
        if (tries > 1_000) throw new Error('The server does not end.');
        await sleep(10);
      }
      rmSync(data, { recursive: true, force: true });
      execFileSync('cp', ['-a', standby, data]);
      await start();
    },
    async drop() {
      await server.stop();
      rmSync(home, { recursive: true, force: true });
    },
  };
}
