/**
 * keys-policy.json as an object: which classes there are, who may do what, and which columns hold envelopes. A policy
 * is never changed; a new file makes a new one. Pure.
 */
import { createHash } from 'node:crypto';
import type { PadTo } from '../crypto/aead.ts';
import type { Normalise } from '../crypto/blind-index.ts';
import { compileAccess, type AccessTable } from './compile.ts';
import { checkPolicy, type Problem } from './checks.ts';
import { findFlaw } from './json.ts';
import { policySchema, type Issuer, type PolicyFile, type views } from './schema.ts';

export type { Issuer } from './schema.ts';
type Issue = NonNullable<ReturnType<typeof policySchema.safeParse>['error']>['issues'][number];
export type View = (typeof views)[number];

export interface FieldClass {
  readonly name: string;
  readonly bind: 'row' | 'column';
  readonly padTo: PadTo;
  /** ISO 8601 duration. */
  readonly rotateEvery: string;
  readonly normalise?: Normalise;
  /** Most first. */
  readonly views: readonly View[];
  readonly defaultView: View;
  readonly mask: string;
  readonly edges?: readonly string[];
}

export interface RegisteredColumn {
  readonly database?: string;
  /** schema.table */
  readonly table: string;
  /** What contexts use: `table`, or `database:table` in a target of its own. */
  readonly address: string;
  readonly schema: string;
  readonly name: string;
  readonly key: readonly string[];
  readonly tenant: { readonly column: string } | { readonly value: string };
  readonly column: string;
  readonly class: string;
  readonly adopt: boolean;
  readonly index: readonly { readonly name: string; readonly column: string; readonly bits: number }[];
}

export interface Policy {
  /** Names the file's content: the first 16 hex digits of its SHA-256. */
  readonly version: string;
  readonly unregistered: 'deny' | 'allow';
  readonly classes: ReadonlyMap<string, FieldClass>;
  readonly columns: readonly RegisteredColumn[];
  readonly issuers: ReadonlyMap<string, Issuer>;
  readonly access: AccessTable;
  /** Columns by address and name, for findColumn. */
  readonly columnIndex: ReadonlyMap<string, RegisteredColumn>;
}

/** All that is wrong with a file, a line each; `message` is fit for a terminal. */
export class PolicyError extends Error {
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    const lines = problems.map(({ path, message }) => `  ${path === '' ? '(file)' : path}: ${message}`);
    super(
      `The policy has ${problems.length === 1 ? 'a problem' : `${problems.length} problems`}:\n${lines.join('\n')}`,
    );
    this.name = 'PolicyError';
    this.problems = problems;
  }
}

function parseJson(text: string): unknown {
  const flaw = findFlaw(text);
  if (flaw === undefined) return JSON.parse(text);
  const before = text.slice(0, flaw.offset).split('\n');
  const path = `line ${before.length}, column ${before.at(-1)!.length + 1}`;
  throw new PolicyError([{ path, message: flaw.message }]);
}

function joinPath(path: readonly PropertyKey[]): string {
  return path.reduce<string>(
    (text, key) => (typeof key === 'number' ? `${text}[${key}]` : `${text}${text === '' ? '' : '.'}${String(key)}`),
    '',
  );
}

/**
 * Issues as problems. Of a union zod says only that nothing fits; the form that comes closest says what to mend and where:
 * the one whose type is right and that has the fewest issues. An unknown key is a problem at the key itself.
 */
function toProblems(issue: Issue, above: readonly PropertyKey[] = []): Problem[] {
  const path = [...above, ...issue.path];
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => ({ path: joinPath([...path, key]), message: 'there is no such key here' }));
  }
  if (issue.code !== 'invalid_union') return [{ path: joinPath(path), message: issue.message }];
  const forms = issue.errors.filter(
    (each) => !each.some(({ code, path }) => code === 'invalid_type' && path.length === 0),
  );
  const closest = forms.toSorted((one, other) => one.length - other.length)[0];
  if (closest === undefined) return [{ path: joinPath(path), message: issue.message }];
  return closest.flatMap((each) => toProblems(each, path));
}

function parseFile(text: string): PolicyFile {
  const parsed = policySchema.safeParse(parseJson(text));
  if (!parsed.success) {
    throw new PolicyError(parsed.error.issues.flatMap((issue) => toProblems(issue)));
  }
  const problems = checkPolicy(parsed.data);
  if (problems.length > 0) throw new PolicyError(problems);
  return parsed.data;
}

function toClass(name: string, entry: PolicyFile['classes'][string]): FieldClass {
  const { normalise, edges, ...rest } = entry;
  return { name, ...rest, ...(normalise !== undefined && { normalise }), ...(edges !== undefined && { edges }) };
}

function toColumn(entry: PolicyFile['columns'][number]): RegisteredColumn {
  const { database, from: _from, adopt, index, table, ...rest } = entry;
  const dot = table.indexOf('.');
  return {
    ...rest,
    table,
    schema: table.slice(0, dot),
    name: table.slice(dot + 1),
    address: database === undefined ? table : `${database}:${table}`,
    adopt: adopt ?? false,
    index: index ?? [],
    ...(database !== undefined && { database }),
  };
}

/** Errors: PolicyError with every problem of the file. */
export function parsePolicy(text: string): Policy {
  const file = parseFile(text);
  const classes = new Map(Object.entries(file.classes).map(([name, entry]) => [name, toClass(name, entry)]));
  const columns = file.columns.map(toColumn);
  return {
    version: createHash('sha256').update(text).digest('hex').slice(0, 16),
    unregistered: file.unregistered,
    classes,
    columns,
    issuers: new Map(Object.entries(file.issuers)),
    access: compileAccess(file, classes),
    columnIndex: new Map(columns.map((column) => [`${column.address}\n${column.column}`, column])),
  };
}

/** The registered column at an address, as contexts name it. */
export function findColumn(policy: Policy, address: string, column: string): RegisteredColumn | undefined {
  return policy.columnIndex.get(`${address}\n${column}`);
}
