/** Starts and ends what a whole run shares, in the process that the others of a parallel run are started by. */
import { startCluster } from './database.ts';

let stop: () => Promise<void>;

export async function mochaGlobalSetup(): Promise<void> {
  stop = await startCluster();
}

export async function mochaGlobalTeardown(): Promise<void> {
  await stop();
}
