/** Which database a registered column is in, as the commands reach it: its owner's URL where there is one. */
import { roleOf } from '../../src/db.ts';
import { readConfig } from '../../src/config.ts';
import { StartupError } from '../../src/errors.ts';
import type { RegisteredColumn } from '../../src/policy/policy.ts';
import { variableOf } from '../../src/targets/targets.ts';
import { findService } from '../support.ts';

export interface Place {
  /** Connects as the owner where the environment knows how, else as the worker. */
  readonly url: string;
  /** Whom workers connect as for rows, where that is known. */
  readonly rowsRole: string | undefined;
}

/** Errors: StartupError when nothing says where the database is. */
export function findPlace({ database }: Pick<RegisteredColumn, 'database'>, variables: NodeJS.ProcessEnv): Place {
  const { targets, targetOwners, rows, databaseUrl, databaseOwnerUrl } = readConfig(variables);
  const rowsUrl = rows.get(database) ?? (database === undefined ? undefined : targets.get(database));
  if (database === undefined) {
    const service = databaseUrl === undefined ? findService() : undefined;
    const url = databaseOwnerUrl ?? databaseUrl ?? service?.databaseUrl;
    if (url === undefined) {
      throw new StartupError(
        'DATABASE_URL says which database; without it a service with embedded Postgres must be running.',
      );
    }
    return { url, rowsRole: rowsUrl === undefined ? undefined : roleOf(rowsUrl) };
  }
  const url = targetOwners.get(database) ?? targets.get(database);
  if (url === undefined) {
    throw new StartupError(
      `${variableOf(database, '_OWNER')} or ${variableOf(database)} says where target ${database} is.`,
    );
  }
  return { url, rowsRole: rowsUrl === undefined ? undefined : roleOf(rowsUrl) };
}
