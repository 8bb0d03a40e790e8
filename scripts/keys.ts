/**
 * npm run keys -- export FILE                              the wrapped data keys and the state of every version
 * npm run keys -- import FILE                              adds what is missing; before the service starts on a new database
 * npm run keys -- import --mirrors                         the same from the mirrors in the targets, TARGET_<NAME>_URL
 * npm run keys -- destroy FAMILY VERSION [--reason "…"] [--approval ID] [--without-guards]
 * npm run keys -- destroy FAMILY VERSION --call-off --reason "…"      while its root key is not gone
 * npm run keys -- certificate FAMILY VERSION [FILE]        of a destroyed version; verify it with scripts/verify-certificate.ts
 *
 * The first two use DATABASE_URL, or the embedded database of a running service. `destroy` asks the service that runs here,
 * and with VAULT_ADDR and an operator's login carries out what was agreed to.
 */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { readConfig } from '../src/config.ts';
import { openPool, type Pool } from '../src/db.ts';
import { writePrivate } from '../src/embedded/home.ts';
import { StartupError } from '../src/errors.ts';
import { migrate } from '../src/migrate.ts';
import { exportKeys, importKeys, parseBackup } from '../src/keys/backup.ts';
import { fetchCertificate } from './keys/certificate.ts';
import { getDatabaseUrl } from './keys/database.ts';
import { destroy } from './keys/destroy.ts';
import { importMirrors } from './keys/mirrors.ts';
import { tellOf, tellRefusal } from './keys/told.ts';
import { flag, readWords, run, text } from './support.ts';

const usage = `Usage: npm run keys -- export FILE | import FILE | import --mirrors
       npm run keys -- destroy FAMILY VERSION [--reason "…"] [--approval ID] [--without-guards]
       npm run keys -- destroy FAMILY VERSION --call-off --reason "…"
       npm run keys -- certificate FAMILY VERSION [FILE]`;

const options = { reason: text, approval: text, 'without-guards': flag, 'call-off': flag, mirrors: flag };

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
  const { families, versions, dataKeys } = await importKeys(pool, parseBackup(text), 'file', tellOf('file'));
  process.stdout.write(`Added ${families} families, ${versions} versions and ${dataKeys} wrapped data keys.\n`);
}

await run(async () => {
  const { positionals, values } = readWords(usage, { allowPositionals: true, options });
  const [verb, first, second, third] = positionals;
  const config = readConfig(process.env);
  const version = Number(second);
  if (verb === 'certificate' && first !== undefined && Number.isInteger(version)) {
    return await fetchCertificate(first, version, third);
  }
  if (verb === 'destroy' && first !== undefined && Number.isInteger(version)) {
    const { reason, approval, 'without-guards': withoutGuards, 'call-off': callOff } = values;
    return await destroy(config, { family: first, version, reason, approval, withoutGuards, callOff });
  }
  const isExport = verb === 'export' && first !== undefined && !values.mirrors;
  const isImport = verb === 'import' && (first !== undefined) !== values.mirrors;
  if (!isExport && !isImport) throw new StartupError(usage);
  const databaseUrl = getDatabaseUrl(config);
  const pool = openPool(databaseUrl, { max: 2, name: 'keys', statementTimeoutMs: 600_000 });
  try {
    if (isExport) return await exportTo(pool, first);
    if (config.databaseOwnerUrl !== undefined || config.databaseUrl === undefined) {
      await migrate(config.databaseOwnerUrl ?? databaseUrl, {}, () => undefined);
    }
    await (first === undefined
      ? tellRefusal(pool, 'mirrors', () => importMirrors(config, databaseUrl, pool))
      : tellRefusal(pool, 'file', () => importFrom(pool, first)));
  } finally {
    await pool.end();
  }
});
