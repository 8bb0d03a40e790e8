/** Bringing keys back from the mirrors in the targets, where Fieldkeep's own database is lost or older. */
import type { Config } from '../../src/config.ts';
import type { Pool } from '../../src/db.ts';
import { StartupError } from '../../src/errors.ts';
import { listTargets } from '../../src/keys/mirror.ts';
import { restoreFromMirrors } from '../../src/keys/restore.ts';
import { readPolicy } from '../../src/policy-watch.ts';
import { openTargets, variableOf } from '../../src/targets/targets.ts';
import { tellOf } from './told.ts';

/** Every target that the policy names must be connected: the one that is missing may know the newest keys. */
export async function importMirrors(config: Config, databaseUrl: string, pool: Pool): Promise<void> {
  const policy = readPolicy(config.policyFile);
  const names = [...new Set([...listTargets(policy).keys(), ...config.targets.keys()])];
  const missing = names.filter((name) => !config.targets.has(name)).map((name) => variableOf(name));
  if (missing.length > 0)
    throw new StartupError(`The policy names targets that are not connected: set ${missing.join(', ')}.`);
  if (names.length === 0)
    throw new StartupError('There are no targets: only databases of TARGET_<NAME>_URL have mirrors.');
  const targets = openTargets(databaseUrl, config.targets);
  try {
    const mirrors = new Map(names.map((name) => [name, targets.find(name)!]));
    const { families, versions, dataKeys, closed } = await restoreFromMirrors(pool, mirrors, policy, tellOf('mirrors'));
    process.stdout.write(
      `Added ${families} families, ${versions} versions and ${dataKeys} wrapped data keys from the mirrors of ${names.join(', ')}.\n`,
    );
    for (const family of closed) {
      process.stdout.write(
        `No version of ${family} seals: its newest one is compromised. Start the service, then: npm run rotate -- ${family}\n`,
      );
    }
  } finally {
    await targets.close();
  }
}
