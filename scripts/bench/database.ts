/** An embedded Postgres of the benchmark's own, with our schema, in a folder that goes with it. */
import { chmodSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openPool, type Pool } from '../../src/db.ts';
import { startPostgres } from '../../src/embedded/postgres.ts';
import { migrate } from '../../src/migrate.ts';
import { workerSettings } from '../../src/targets/targets.ts';
import { atExit, removeFolder } from './ending.ts';

export interface BenchDatabase {
  readonly home: string;
  readonly ownerUrl: string;
  readonly apiUrl: string;
  readonly workerUrl: string;
  readonly rowsUrl: string;
  /** As the table's owner: fills tables, and does what is measured beside the engine. */
  readonly owner: Pool;
  /** The same role in sessions like those of a worker: the engine's statements refuse any other. */
  readonly asWorker: Pool;
  close(): Promise<void>;
}

const ownerConnections = 8;

export async function openDatabase(): Promise<BenchDatabase> {
  const home = mkdtempSync(join(tmpdir(), 'fieldkeep-bench-'));
  const forgetHome = atExit(() => removeFolder(home));
  chmodSync(home, 0o711); // as root, Postgres runs as another user below it
  const postgres = await startPostgres({ home });
  const forgetServer = atExit(() => process.kill(postgres.pid, 'SIGQUIT'));
  const { ownerUrl, apiUrl, workerUrl, rowsUrl } = postgres;
  await migrate(ownerUrl, {}, () => undefined);
  const options = { max: ownerConnections, name: 'bench', statementTimeoutMs: 600_000 };
  const owner = openPool(ownerUrl, options);
  const asWorker = openPool(ownerUrl, { ...options, settings: workerSettings });
  return {
    home,
    ownerUrl,
    apiUrl,
    workerUrl,
    rowsUrl,
    owner,
    asWorker,
    async close() {
      await owner.end();
      await asWorker.end();
      await postgres.stop();
      forgetServer();
      removeFolder(home);
      forgetHome();
    },
  };
}
