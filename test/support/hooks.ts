/** Ends what the whole run shared. */
import { stopCluster } from './database.ts';

export async function mochaGlobalTeardown(): Promise<void> {
  await stopCluster();
}
