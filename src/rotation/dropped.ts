/**
 * Columns that a policy in force once registered and the one in force does not. No run counts them any more, so a value that
 * was left there would be lost with its version: as long as one is found, or nobody can look, no rotation of the family is
 * done and no version destroyed.
 */
import { describeError } from '../errors.ts';
import type { Pool } from '../db.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import type { Catalog, TableShape } from '../targets/catalog.ts';
import { hasColumn } from '../targets/catalog-store.ts';
import { variableOf, type Targets } from '../targets/targets.ts';
import { hasStale } from './census.ts';
import { listDropped } from './policy-store.ts';
import { columnsOf, type About } from './work.ts';

interface DropShop {
  readonly pool: Pool;
  readonly targets: Targets;
}

/** As much of a table as a count needs. */
function toShape({ address, schema, name, tenant }: RegisteredColumn): TableShape {
  const none = new Set<string>();
  return {
    address,
    schema,
    name,
    tenant,
    key: [],
    columns: [],
    indexed: none,
    unfilledIndexed: none,
    attributes: new Map(),
  };
}

/** Whether the column holds one of these versions; a sentence where nobody can look. */
async function look(db: Pool | undefined, column: RegisteredColumn, versions: readonly number[]) {
  const { database, schema, name } = column;
  if (db === undefined) return `target ${database} is not connected (${variableOf(database!)})`;
  try {
    if (!(await hasColumn(db, schema, name, column.column))) return false;
    return await hasStale(db, toShape(column), [{ column: column.column, value: versions }]);
  } catch (error) {
    return `it cannot be read (${describeError(error).code ?? 'no answer'})`;
  }
}

/** The first dropped column of a family that holds one of these versions, or may, in a sentence that says what to do. */
export async function describeDropped(
  { pool, targets }: DropShop,
  family: string,
  versions: readonly number[],
): Promise<string | undefined> {
  if (versions.length === 0) return undefined;
  for (const { column, by } of await listDropped(pool, family)) {
    const found = await look(targets.findRows(column.database), column, versions);
    if (found === false) continue;
    const place = `${column.address}.${column.column}`;
    const what =
      found === true ? `still holds older values of ${family}` : `may hold older values of ${family}: ${found}`;
    return `Policy ${by} no longer registers ${place}, which ${what}. Register it again, or set those values to null.`;
  }
  return undefined;
}

/** The column of a run about one that is not registered: nothing of it can be counted. */
export function describeMissing(
  { columns }: Pick<Catalog, 'columns'>,
  run: About & { table?: string },
): string | undefined {
  if (run.table === undefined || columnsOf({ columns }, run).length > 0) return undefined;
  return `The policy no longer registers ${run.table}.${run.column}. Register it again, or cancel this run.`;
}
