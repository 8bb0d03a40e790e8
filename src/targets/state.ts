/** The shapes of a plan's steps, and of what stands in a database whose columns are registered, as they compare it. */
import type { Rule } from './catalog-store.ts';

export interface PlaceName {
  readonly schema: string;
  readonly name: string;
}

export interface RoleState {
  readonly name: string;
  readonly exists: boolean;
  readonly superuser: boolean;
  /** What else it is that no role of ours may be: `create roles`. */
  readonly powers: readonly string[];
  /** What it cannot connect without: `LOGIN`. */
  readonly lacks: readonly string[];
  /** Whether its sessions begin read-only. */
  readonly readOnly: boolean;
  /** Where it may make objects: `schema app`, `the database`. */
  readonly creates: readonly string[];
}

export interface IndexState {
  readonly name: string;
  readonly valid: boolean;
  /** Its columns and expressions without quotes, as Postgres spells them. */
  readonly parts: readonly string[];
  /** Without quotes. */
  readonly predicate?: string;
}

export interface TableState {
  /** By column. */
  readonly types: ReadonlyMap<string, string>;
  /** Whether a unique index covers exactly the key, all NOT NULL. */
  readonly unique: boolean;
  /** Columns with a version index. */
  readonly versionIndexed: ReadonlySet<string>;
  /** Of the table and its partitions. */
  readonly indexes: readonly IndexState[];
  /** Unique indexes and foreign keys on columns of tokens. */
  readonly comparing: readonly Rule[];
  /** Whether row level security would hide rows from whoever works on them. */
  readonly filtered: boolean;
  readonly rights: TableRights;
  readonly ownerName: string;
  /** The role with whose rights guards are put there, when it has not those of the table's owner. */
  readonly unguardedBy?: string;
}

/** What a role may do, by whatever way it came to that. */
export interface TableRights {
  readonly owner: boolean;
  /** USAGE of the schema. */
  readonly usage: boolean;
  /** On the whole table, columns of later included: `SELECT`, `INSERT`, … */
  readonly table: readonly string[];
  /** By column, `SELECT`, `UPDATE`, `INSERT`, `REFERENCES`. */
  readonly columns: ReadonlyMap<string, readonly string[]>;
}

export interface TargetState {
  readonly worker: RoleState;
  /** Who works on rows; the worker itself where there is no login for that. */
  readonly rows: RoleState;
  /** Whether it may use the schema fieldkeep. */
  readonly rowsMayUse: boolean;
  readonly reader?: RoleState;
  /** Of the registered tables that exist, by address. */
  readonly tables: ReadonlyMap<string, TableState>;
  /** What differs from migrations/target.sql. */
  readonly fixed: readonly string[];
  /** What roles other than owner and worker may change in the schema fieldkeep. */
  readonly intruders: readonly string[];
  /** Rights of whoever works on rows on tables that are not registered. */
  readonly elsewhere: readonly string[];
  /** Rights of the worker on any table, where rows have a login of their own. */
  readonly workerElsewhere: readonly string[];
  /** Tables that the reader may not read, or not all of, or may write. */
  readonly unreadable: readonly string[];
  readonly filtered: readonly string[];
  readonly writable: readonly string[];
  /** schema.table.column; absent where the list cannot be read. */
  readonly guarded?: ReadonlySet<string>;
  readonly applicationMayUse?: boolean;
}

export interface Step {
  /** As people say it: `version index of app.people.ssn`. */
  readonly what: string;
  /** A sentence for whoever reads the SQL. */
  readonly why: string;
  /** Empty where there is nothing that SQL of ours could do. */
  readonly statements: readonly string[];
  /** Whether the statements are one transaction; else each is its own. */
  readonly atomic: boolean;
  /** The indexes that the statements make if there are none of the name. An invalid one is dropped first. */
  readonly indexes?: readonly PlaceName[];
  /** What differs in what stands there, in a few words each; empty when it is as it should be. */
  readonly differences: (state: TargetState) => string[];
}
