/** Whether roles may do what they need and nothing else. Pure. */
import type { RoleState, TableState, TargetState } from './state.ts';

export function compareRole(role: RoleState | undefined): string[] {
  if (role === undefined || !role.exists) return ['the role does not exist'];
  if (role.superuser) return ['it is a superuser: nothing holds it back'];
  return [
    ...role.lacks.map((right) => `it lacks ${right}`),
    ...role.powers.map((power) => `it may ${power}`),
    ...role.creates.map((where) => `it may create objects in ${where}`),
  ];
}

/** Rights as a sentence's end: `SELECT on id, ssn`. */
function sayMissing(right: string, columns: readonly string[]): string[] {
  return columns.length === 0 ? [] : [`it lacks ${right} on ${columns.join(', ')}`];
}

/** What the worker lacks and has too much on a registered table. A role that nothing holds back is told elsewhere. */
export function compareRights(
  table: TableState | undefined,
  role: RoleState,
  read: readonly string[],
  write: readonly string[],
): string[] {
  if (table === undefined) return ['there is no table'];
  if (!role.exists) return ['there is no role'];
  if (role.superuser) return [];
  const { owner, usage, table: whole, columns } = table.rights;
  if (owner) return ['it has the rights of the owner of the table'];
  const has = (column: string, right: string) => columns.get(column)?.includes(right) === true;
  const excess = Array.from(columns, ([column, rights]) => {
    const needed = new Set([
      ...(read.includes(column) ? ['SELECT'] : []),
      ...(write.includes(column) ? ['UPDATE'] : []),
      ...whole, // told once for the table
    ]);
    const more = rights.filter((right) => !needed.has(right));
    return more.length === 0 ? [] : [`it may ${more.join(', ')} column ${column}`];
  });
  return [
    ...(usage ? [] : ['it lacks USAGE on the schema']),
    ...sayMissing(
      'SELECT',
      read.filter((column) => !has(column, 'SELECT')),
    ),
    ...sayMissing(
      'UPDATE',
      write.filter((column) => !has(column, 'UPDATE')),
    ),
    ...whole.map((right) => `it may ${right} the whole table`),
    ...excess.flat(),
  ];
}

/** What the reader cannot look into, and where it could write. */
export function compareReader({ reader, unreadable, filtered, writable }: TargetState): string[] {
  if (reader?.exists !== true) return ['there is no role'];
  if (reader.superuser) return [];
  return [
    ...unreadable.map((table) => `it may not read ${table}`),
    ...filtered.map((table) => `row level security would hide rows of ${table} from it: alter role … bypassrls`),
    ...writable.map((table) => `it may write ${table}`),
  ];
}
