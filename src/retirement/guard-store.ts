/**
 * SQL of guards. A guard is a CHECK constraint of the customer's table, `fe_guard_<column>_<version>`, that refuses envelopes
 * of versions below `version`; whether it stands is asked in the table's own database. Since when it has is remembered in ours.
 */
import { quoteIdentifier, transaction, type Client, type Pool, type Queryable } from '../db.ts';
import type { TableShape } from '../targets/catalog.ts';

/** A constraint as it is in the customer's table. */
export interface Constraint {
  readonly version: number;
  /** Every row was looked at. */
  readonly validated: boolean;
  /** Lets plaintext in, too. */
  readonly plaintext: boolean;
  readonly definition: string;
}

const regclass = ({ schema, name }: TableShape) => `${quoteIdentifier(schema)}.${quoteIdentifier(name)}`;

/** A definition as Postgres spells it, but for case, quotes, parentheses, spaces and the cast of a varchar. */
function plain(definition: string): string {
  return definition
    .toLowerCase()
    .replaceAll('::text', '')
    .replaceAll(' not valid', '')
    .replaceAll(/[" ()]/g, '');
}

/** What a constraint of a guard's name lets in; undefined where it is none of ours, whatever it is called. */
function readDefinition(
  definition: string,
  column: string,
  version: number,
): Pick<Constraint, 'plaintext'> | undefined {
  const call = `fieldkeep.fe_version${plain(column)}`;
  if (plain(definition) === `check${call}>=${version}`) return { plaintext: false };
  return plain(definition) === `check${call}=0or${call}>=${version}` ? { plaintext: true } : undefined;
}

/** The guards of a column, oldest version first. Needs none of our functions there. */
export async function listConstraints(db: Queryable, table: TableShape, column: string): Promise<Constraint[]> {
  const { rows } = await db.query<Omit<Constraint, 'plaintext'>>(
    `select substr(conname, length(prefix) + 1)::int as version, convalidated as validated, definition
     from (select c.conname::text as conname, c.convalidated, pg_get_constraintdef(c.oid) as definition,
             'fe_guard_' || case when octet_length($2) <= 44 then $2 else md5($2) end || '_' as prefix
           from pg_constraint c where c.conrelid = to_regclass($1) and c.contype = 'c') found
     where starts_with(conname, prefix) and substr(conname, length(prefix) + 1) ~ '^[1-9][0-9]{0,8}$'
     order by 1`,
    [regclass(table), column],
  );
  return rows.flatMap((row) => {
    const read = readDefinition(row.definition, column, row.version);
    return read === undefined ? [] : [{ ...row, ...read }];
  });
}

/** Whether the functions that change guards are there and ours to use, and whether the owner has listed the column. */
export async function inspectRights(
  db: Queryable,
  { schema, name }: TableShape,
  column: string,
): Promise<{ readonly installed: boolean; readonly allowed: boolean; readonly listed: boolean }> {
  const add = 'fieldkeep.fe_guard_add(text,text,text,integer,boolean)';
  const { rows } = await db.query<{ installed: boolean; allowed: boolean | null }>(
    `select to_regprocedure($1) is not null and to_regclass('fieldkeep.guarded_columns') is not null as installed,
            has_function_privilege(to_regprocedure($1), 'execute')
              and has_table_privilege(to_regclass('fieldkeep.guarded_columns'), 'select') as allowed`,
    [add],
  );
  const { installed, allowed } = rows[0]!;
  if (!installed || allowed !== true) return { installed, allowed: false, listed: false };
  const { rowCount } = await db.query(
    `select from fieldkeep.guarded_columns where (schema_name, table_name, column_name) = ($1, $2, $3)`,
    [schema, name, column],
  );
  return { installed, allowed, listed: rowCount === 1 };
}

/** Errors: 55P03 where the table is locked for longer than the session waits. */
export async function addConstraint(
  db: Queryable,
  { schema, name }: TableShape,
  column: string,
  { version, plaintext }: Pick<Constraint, 'version' | 'plaintext'>,
): Promise<void> {
  await db.query('select fieldkeep.fe_guard_add($1, $2, $3, $4, $5)', [schema, name, column, version, plaintext]);
}

/** Looks at every row, however long that takes, and has lower guards dropped. Errors: 23514 where one is older, 55P03. */
export async function validateConstraint(
  db: Pool,
  { schema, name }: TableShape,
  column: string,
  version: number,
): Promise<void> {
  await transaction(db, async (tx) => {
    await tx.query('set local statement_timeout = 0');
    await tx.query('select fieldkeep.fe_guard_validate($1, $2, $3, $4)', [schema, name, column, version]);
  });
}

/** A guard as it is remembered. */
export interface KnownGuard {
  readonly table: string;
  readonly column: string;
  readonly version: number;
  readonly definition?: string;
  readonly validatedAt?: Date;
}

/** Of a family, those that were not lost. */
export async function listKnownGuards(db: Queryable, family: string): Promise<KnownGuard[]> {
  const { rows } = await db.query<
    Pick<KnownGuard, 'table' | 'column' | 'version'> & { definition: string | null; validated_at: Date | null }
  >(
    `select "table", "column", version, definition, validated_at from fieldkeep.guards
     where family = $1 and lost_at is null order by "table", "column", version`,
    [family],
  );
  return rows.map(({ definition, validated_at, ...rest }) => ({
    ...rest,
    ...(definition !== null && { definition }),
    ...(validated_at !== null && { validatedAt: validated_at }),
  }));
}

export interface GuardName {
  readonly family: string;
  readonly table: string;
  readonly column: string;
  readonly version: number;
}

/** It keeps new envelopes out; what is there is not known yet. */
export async function upsertAdded(db: Queryable, guard: GuardName): Promise<void> {
  await db.query(
    `insert into fieldkeep.guards as g ("table", "column", version, family) values ($1, $2, $3, $4)
     on conflict ("table", "column", version) do update
       set family = excluded.family, added_at = clock_timestamp(), validated_at = null, lost_at = null`,
    [guard.table, guard.column, guard.version, guard.family],
  );
}

/** It stands; since when is not moved by being told again. */
export async function upsertValidated(db: Queryable, guard: GuardName, definition: string): Promise<void> {
  await db.query(
    `insert into fieldkeep.guards as g ("table", "column", version, family, validated_at, definition)
     values ($1, $2, $3, $4, clock_timestamp(), $5)
     on conflict ("table", "column", version) do update
       set family = excluded.family, definition = excluded.definition, lost_at = null,
           validated_at = case when g.lost_at is null then coalesce(g.validated_at, clock_timestamp())
                               else clock_timestamp() end`,
    [guard.table, guard.column, guard.version, guard.family, definition],
  );
}

/** What is stricter than `version` does not stand any more (0: nothing does). Answers how many that were. */
export async function setLost(tx: Client, table: string, column: string, version: number): Promise<number> {
  const { rowCount } = await tx.query(
    `update fieldkeep.guards set lost_at = clock_timestamp()
     where "table" = $1 and "column" = $2 and version > $3 and validated_at is not null and lost_at is null`,
    [table, column, version],
  );
  return rowCount ?? 0;
}
