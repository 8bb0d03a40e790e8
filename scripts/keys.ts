/**
 * npm run keys -- export FILE                              the wrapped data keys and the state of every version
 * npm run keys -- import FILE                              adds what is missing; before the service starts on a new database
 * npm run keys -- destroy FAMILY VERSION --reason "…"      for ever, at Vault; with an operator's login
 *
 * They use DATABASE_URL, or the embedded database of a running service; `destroy` also VAULT_ADDR and an operator's login.
 */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { userInfo } from 'node:os';
import { AuditLog } from '../src/audit/log.ts';
import { readConfig, type Config } from '../src/config.ts';
import { migrate, openPool, roleOf, type Pool } from '../src/db.ts';
import { writePrivate } from '../src/embedded/home.ts';
import { StartupError } from '../src/errors.ts';
import { exportKeys, importKeys, parseBackup } from '../src/keys/backup.ts';
import { Keyring } from '../src/keys/keyring.ts';
import { openVaultRootKeys } from '../src/keys/vault-open.ts';
import { destroyVersion } from '../src/rotation/destroy.ts';
import { openTargets } from '../src/rotation/targets.ts';
import { readPolicy } from '../src/policy-watch.ts';
import { findService, run } from './support.ts';

const usage = 'Usage: npm run keys -- export FILE | import FILE | destroy FAMILY VERSION --reason "…"';

function readArguments() {
  try {
    return parseArgs({ allowPositionals: true, options: { reason: { type: 'string' } } });
  } catch {
    throw new StartupError(usage);
  }
}

function getDatabaseUrl(config: Config): string {
  const url = config.databaseUrl ?? findService()?.databaseUrl;
  if (url !== undefined) return url;
  throw new StartupError(
    'DATABASE_URL says which database; without it a service with embedded Postgres must be running.',
  );
}

async function exportTo(pool: Pool, file: string): Promise<void> {
  const text = await exportKeys(pool);
  writePrivate(resolve(file), text);
  const keys = text.split('\n').filter((line) => line.includes('"wrapped"')).length;
  process.stdout.write(`${file}: ${keys} wrapped data keys. They open nothing without the root keys.\n`);
}

async function importFrom(pool: Pool, file: string): Promise<void> {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    throw new StartupError(`${file} cannot be read.`);
  }
  const { families, versions, dataKeys } = await importKeys(pool, parseBackup(text));
  process.stdout.write(`Added ${families} families, ${versions} versions and ${dataKeys} wrapped data keys.\n`);
}

/** Nothing of a running service is needed; its processes learn of it through the database. */
async function destroy(
  config: Config,
  databaseUrl: string,
  pool: Pool,
  asked: { family: string; version: number; reason: string },
) {
  if (config.vault === undefined) {
    throw new StartupError('VAULT_ADDR and the login of an operator are needed: versions are destroyed at Vault.');
  }
  const quiet = { warn: () => undefined, error: () => undefined };
  const { rootKeys } = openVaultRootKeys(config.vault, quiet);
  const targets = openTargets(databaseUrl, config.targets, 3_600_000);
  const keyring = await Keyring.open({ pool, rootKeys, onError: () => undefined });
  const audit = await AuditLog.open(databaseUrl, pool, { instanceId: randomUUID() });
  try {
    const policy = readPolicy(config.policyFile);
    const shop = { pool, targets, keyring, audit, policy, rootKeys };
    await destroyVersion(shop, { ...asked, by: userInfo().username });
    process.stdout.write(
      `Version ${asked.version} of family ${asked.family} is destroyed: Vault has confirmed that its root key is gone.\n` +
        'What is left of it are snapshots of Vault itself from before this moment.\n',
    );
  } finally {
    await audit.close();
    keyring.close();
    rootKeys.close();
    await targets.close();
  }
}

await run(async () => {
  const { positionals, values } = readArguments();
  const [verb, first, second] = positionals;
  const config = readConfig(process.env);
  const databaseUrl = getDatabaseUrl(config);
  const pool = openPool(databaseUrl, { max: 2, name: 'keys', statementTimeoutMs: 600_000 });
  try {
    if (verb === 'export' && first !== undefined) return await exportTo(pool, first);
    if (verb === 'import' && first !== undefined) {
      await migrate(config.databaseOwnerUrl ?? databaseUrl, roleOf(databaseUrl), () => undefined);
      return await importFrom(pool, first);
    }
    const version = Number(second);
    if (verb !== 'destroy' || first === undefined || !Number.isInteger(version) || values.reason === undefined) {
      throw new StartupError(usage);
    }
    await destroy(config, databaseUrl, pool, { family: first, version, reason: values.reason });
  } finally {
    await pool.end();
  }
});
