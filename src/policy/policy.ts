/**
 * keys-policy.json as an object: which classes there are, who may do what, and which columns hold envelopes. A policy
 * is never changed; a new file makes a new one. Pure.
 */
import { createHash } from 'node:crypto';
import { present } from '../present.ts';
import { compileAccess, type AccessTable } from './compile.ts';
import { checkPolicy } from './checks.ts';
import type { FieldClass } from './field-class.ts';
import { parentOf, scanJson } from './json.ts';
import { toLimits, toRetireRule } from './limits.ts';
import { joinPath, toShapeProblems, wording, type Problem } from './problems.ts';
import { salvage } from './salvage.ts';
import { policySchema, type Approval, type Issuer, type PolicyFile, type SealedBy } from './schema.ts';

export type { Approval, Issuer, SealedBy } from './schema.ts';
export type { FieldClass, View } from './field-class.ts';

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
  /** The column that it is filled from while it is adopted; absent: it holds the plaintext itself. */
  readonly from?: string;
  /** Whose rows are adopted; absent: everybody's. */
  readonly tenants?: readonly string[];
  /** What the plaintext is sealed with. */
  readonly sealed?: SealedBy;
  readonly index: readonly RegisteredIndex[];
}

interface RegisteredIndex {
  readonly name: string;
  readonly column: string;
  /** 1 … 256 */
  readonly bits: number;
  readonly unique: boolean;
}

export interface Policy {
  /** Names the file's content: the first 16 hex digits of its SHA-256. */
  readonly version: string;
  readonly unregistered: 'deny' | 'allow';
  readonly classes: ReadonlyMap<string, FieldClass>;
  readonly columns: readonly RegisteredColumn[];
  readonly issuers: ReadonlyMap<string, Issuer>;
  /** By the action that needs them. */
  readonly approvals: ReadonlyMap<string, Approval>;
  readonly access: AccessTable;
  /** Columns by address and name, for findColumn. */
  readonly columnIndex: ReadonlyMap<string, RegisteredColumn>;
}

/** All that is wrong with a file, a line each; `message` is fit for a terminal. */
export class PolicyError extends Error {
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    const lines = problems.map(({ path, message, line }) => {
      const place = line === undefined ? '' : ` (line ${line})`;
      return `  ${path === '' ? '(file)' : path}${place}: ${message}`;
    });
    super(
      `The policy has ${problems.length === 1 ? 'a problem' : `${problems.length} problems`}:\n${lines.join('\n')}`,
    );
    this.name = 'PolicyError';
    this.problems = problems;
  }
}

/** Errors: PolicyError with every flaw of the text as JSON. */
function assertJson(text: string, flaws: ReturnType<typeof scanJson>['flaws']): void {
  if (flaws.length === 0) return;
  throw new PolicyError(
    flaws.map(({ offset, message }) => {
      const before = text.slice(0, offset).split('\n');
      return { path: `line ${before.length}, column ${before.at(-1)!.length + 1}`, message };
    }),
  );
}

/** The problems of shape, and all that the cross-checks find in what is left without them. */
function findProblems(raw: unknown): Problem[] {
  const parsed = policySchema.safeParse(raw, { error: wording });
  if (parsed.success) return checkPolicy(parsed.data);
  const shape = parsed.error.issues.flatMap((issue) => toShapeProblems(issue));
  const problems = shape.map(({ steps, message }) => ({ path: joinPath(steps), message }));
  const salvaged = salvage(raw, shape);
  if (salvaged === undefined) return problems;
  const hidden = salvaged.stoodIn.map(joinPath);
  const isHidden = (path: string) =>
    hidden.some((place) => path === place || path.startsWith(`${place}.`) || path.startsWith(`${place}[`));
  return [...problems, ...checkPolicy(salvaged.file).filter(({ path }) => !isHidden(path))];
}

/** In the order of the file, each with its line; what is missing has its place where it is missed. */
function placeProblems(text: string, places: ReadonlyMap<string, number>, problems: readonly Problem[]): Problem[] {
  const offsetOf = (path: string): number => (path === '' ? 0 : (places.get(path) ?? offsetOf(parentOf(path))));
  return problems
    .map((problem) => ({ problem, offset: offsetOf(problem.path) }))
    .toSorted((one, other) => one.offset - other.offset)
    .map(({ problem, offset }) => ({ ...problem, line: text.slice(0, offset).split('\n').length }));
}

function parseFile(text: string): PolicyFile {
  const { flaws, places } = scanJson(text);
  assertJson(text, flaws);
  const problems = findProblems(JSON.parse(text));
  if (problems.length > 0) throw new PolicyError(placeProblems(text, places, problems));
  return policySchema.parse(JSON.parse(text));
}

function toClass(name: string, entry: PolicyFile['classes'][string]): FieldClass {
  const { normalise: counts, nonAscii, edges, rotation, retire, compromised = 'grants', ...rest } = entry;
  const normalise = counts !== undefined && nonAscii === 'fold' ? (`${counts}/fold` as const) : counts;
  const rules = { rotation: toLimits(rotation), retire: toRetireRule(retire) };
  return { name, ...rest, compromised, ...rules, ...present({ normalise, edges }) };
}

function toColumn(entry: PolicyFile['columns'][number]): RegisteredColumn {
  const { database, from, tenants, sealed, adopt, index = [], table, ...rest } = entry;
  const dot = table.indexOf('.');
  return {
    ...rest,
    table,
    schema: table.slice(0, dot),
    name: table.slice(dot + 1),
    address: database === undefined ? table : `${database}:${table}`,
    adopt: adopt ?? false,
    index: index.map(({ name, column, bits = 256, unique = false }) => ({ name, column, bits, unique })),
    ...present({ database, from, tenants, sealed }),
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
    approvals: new Map(Object.entries(file.approvals ?? {})),
    access: compileAccess(file, classes),
    columnIndex: new Map(columns.map((column) => [columnId(column), column])),
  };
}

/** Names a registered column among all: no address and no column has a line feed before the other begins. */
export function columnId({ address, column }: Pick<RegisteredColumn, 'address' | 'column'>): string {
  return `${address}\n${column}`;
}

/** The registered column at an address, as contexts name it. */
export function findColumn(policy: Policy, address: string, column: string): RegisteredColumn | undefined {
  return policy.columnIndex.get(columnId({ address, column }));
}
