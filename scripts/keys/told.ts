/** An import in the audit log: it decides which keys there are, so it leaves an entry, also where it was refused. */
import { randomUUID } from 'node:crypto';
import { userInfo } from 'node:os';
import { formatEntry, type Entry } from '../../src/audit/entry.ts';
import { storeWithin } from '../../src/audit/stream.ts';
import { transaction, type Pool } from '../../src/db.ts';
import { FieldkeepError } from '../../src/errors.ts';
import type { Source, Tell } from '../../src/keys/backup.ts';

function lineOf(source: Source, what: string, more: Partial<Entry>): string {
  return formatEntry({
    ...{ v: 1, time: new Date().toISOString(), requestId: randomUUID(), action: 'import', person: userInfo().username },
    ...{ purpose: `import of wrapped keys from the ${source}: ${what}`, decision: 'allow', outcome: 'ok', ...more },
  });
}

/** Tells of an import in its own transaction. */
export function tellOf(source: Source): Tell {
  return (tx, { families, versions, dataKeys }) =>
    storeWithin(tx, lineOf(source, `${families} families, ${versions} versions added`, { count: dataKeys }));
}

/** Runs an import; one that is refused has changed nothing, and is told, too. */
export async function tellRefusal<T>(pool: Pool, source: Source, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof FieldkeepError && error.code === 'conflict') {
      const line = lineOf(source, 'refused', { outcome: 'failed', code: error.code });
      await transaction(pool, (tx) => storeWithin(tx, line));
    }
    throw error;
  }
}
