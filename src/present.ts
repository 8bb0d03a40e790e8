/** Absence in objects: to us a member that is undefined and one that is not there are not the same. */

/** Members that are null in the database, or undefined, are absent in the object. */
export function present<T extends object>(members: T): { [K in keyof T]?: NonNullable<T[K]> } {
  return Object.fromEntries(
    Object.entries(members).filter(([, value]) => value !== null && value !== undefined),
  ) as never;
}
