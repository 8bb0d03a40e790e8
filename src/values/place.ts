/**
 * The place that a value is sealed for: tenant, table, column, row. One rule says which places there are, and both the API
 * and the job that re-encrypts keep it: what the one sealed for a place that the other refuses would open for nobody.
 *
 *     tenant   a name that a token can carry: 1 to 128 characters, no control characters
 *     row      the key as Postgres spells it, at most 512 bytes; not empty, where the version binds values to rows. One
 *              that binds them to columns seals with an empty row
 */
import { encodeContext, isContextPart } from '../crypto/context.ts';
import { FieldkeepError } from '../errors.ts';
import type { KeyVersion } from '../keys/version.ts';

export interface Place {
  readonly tenant: string;
  /** The address that contexts use. */
  readonly table: string;
  readonly column: string;
  readonly row: string;
}

/** In which way a value cannot be sealed; the job records it as `request_invalid:<why>`. */
export type Why =
  | 'tenant_missing'
  | 'tenant_invalid'
  | 'row_empty'
  | 'row_invalid'
  | 'name_invalid'
  | 'value_invalid'
  | 'value_not_ascii'
  | 'value_not_indexable';

/** To a caller a request that is wrong; the job says which way it is. */
export class Unsealable extends FieldkeepError {
  readonly why: Why;

  constructor(why: Why, detail: string) {
    super('request_invalid', detail);
    this.why = why;
  }
}

/** As the claims of a token may spell it (http/authenticate.ts); a test sends the same tenants both ways. */
const tenantPattern = /^[^\p{Cc}]{1,128}$/u;

/** Why nothing can be sealed for the place; undefined where that can be. */
export function findPlaceProblem(
  { family, bind }: Pick<KeyVersion, 'family' | 'bind'>,
  { tenant, table, column, row }: Place,
): Unsealable | undefined {
  if (tenant === '') return new Unsealable('tenant_missing', 'The row has no tenant.');
  if (!tenant.isWellFormed() || !tenantPattern.test(tenant)) {
    return new Unsealable('tenant_invalid', 'The tenant is no name of 1 to 128 characters without control characters.');
  }
  if (!isContextPart(row)) {
    return new Unsealable('row_invalid', 'context.row is longer than 512 bytes, or no text.');
  }
  if (!isContextPart(table) || !isContextPart(column)) {
    return new Unsealable('name_invalid', 'context.table or context.column is longer than 512 bytes, or no text.');
  }
  if (bind === 'row' && row === '') {
    return new Unsealable('row_empty', `context.row is empty, and class ${family} is bound to rows.`);
  }
  return undefined;
}

/**
 * CTX of a value that stands there already. The job opens by it whatever it once sealed, so that it can be given back;
 * callers open by `getContext`.
 */
export function encodePlace(version: Pick<KeyVersion, 'family' | 'version' | 'bind'>, place: Place): Buffer {
  return encodeContext(version.family, version.version, version.bind === 'column' ? { ...place, row: '' } : place);
}

/** CTX of the place under a version. Errors: Unsealable. */
export function getContext(version: Pick<KeyVersion, 'family' | 'version' | 'bind'>, place: Place): Buffer {
  const problem = findPlaceProblem(version, place);
  if (problem !== undefined) throw problem;
  return encodePlace(version, place);
}
