/** The database that a command works on, as the worker. */
import type { Config } from '../../src/config.ts';
import { StartupError } from '../../src/errors.ts';
import { findService } from '../support.ts';

/** Errors: StartupError where nothing says which. */
export function getDatabaseUrl(config: Config): string {
  const url = config.databaseWorkerUrl ?? config.databaseUrl ?? findService()?.databaseUrl;
  if (url !== undefined) return url;
  throw new StartupError(
    'DATABASE_URL says which database; without it a service with embedded Postgres must be running.',
  );
}
