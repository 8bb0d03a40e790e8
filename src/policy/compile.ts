/**
 * The policy's grants and denies as a table: (principal, action, class) → the rules that allow it, or the one that denies
 * it. Deciding is then a lookup. Grants for `*` stand for classes that exist and, under the class '*', for those that do
 * not: who may encrypt everything learns that a class is unknown, others learn that they may not. Pure.
 */
import type { FieldClass, View } from './field-class.ts';
import type { GrantEntry, PolicyFile, PrincipalEntry } from './schema.ts';
import { fieldActions, parseScope, plainActions, type Scope } from './scope.ts';

export interface Rule {
  /** `invoice-agent/grants/1`, as the audit log names it. */
  readonly id: string;
  /** The highest view of a decrypt grant on this class's ladder. */
  readonly view?: View;
  readonly purposes?: ReadonlySet<string>;
  /** Also covers values whose key version is compromised. */
  readonly compromised: boolean;
}

interface Cell {
  readonly deny?: string;
  readonly allow: readonly Rule[];
}

export interface CompiledPrincipal {
  readonly name: string;
  readonly kind: 'agent' | 'person';
  readonly system: boolean;
  /** Undefined for system principals; '*' is in it where any tenant will do. */
  readonly tenants?: ReadonlySet<string>;
  /** By `action:class`, or the action alone for audit, approve and policy. */
  readonly cells: ReadonlyMap<string, Cell>;
  /** As written, for whoami. */
  readonly grants: readonly string[];
}

export interface AccessTable {
  readonly principals: ReadonlyMap<string, CompiledPrincipal>;
  /** JSON of [issuer's name in the policy, value of its claim] → principal. */
  readonly identities: ReadonlyMap<string, string>;
}

/** The class that stands for all that do not exist. */
export const unknownClass = '*';

export function cellKey(action: string, className: string | undefined): string {
  return className === undefined ? action : `${action}:${className}`;
}

/** How little a view tells. last4 and bucket are not below each other: no grant of one gives the other. */
const depths: Readonly<Record<View, number>> = { full: 0, last4: 1, bucket: 1, masked: 2, exists: 3 };

/** A grant without a view goes as far as the class's default view; one whose view the class lacks, to the next below. */
export function viewOnLadder(fieldClass: FieldClass | undefined, view: View | undefined): View | undefined {
  if (fieldClass === undefined) return view;
  if (view === undefined) return fieldClass.defaultView;
  if (fieldClass.views.includes(view)) return view;
  return fieldClass.views.find((each) => depths[each] > depths[view]);
}

function covers(scope: Scope, action: string, className: string | undefined): boolean {
  if (scope.action !== '*' && scope.action !== action) return false;
  if (className === undefined) return scope.class === undefined;
  return scope.class === '*' || scope.class === className;
}

function toRule(grant: GrantEntry, id: string, action: string, fieldClass: FieldClass | undefined): Rule | undefined {
  const scope = parseScope(typeof grant === 'string' ? grant : grant.scope)!;
  const purposes = typeof grant === 'string' ? undefined : grant.when?.purpose;
  const view = action === 'decrypt' ? viewOnLadder(fieldClass, scope.view) : undefined;
  if (action === 'decrypt' && fieldClass !== undefined && view === undefined) return undefined;
  const compromised = typeof grant !== 'string' && grant.compromised === true && fieldClass?.compromised !== 'deny';
  const conditions = purposes !== undefined && { purposes: new Set(purposes) };
  return { id, compromised, ...(view !== undefined && { view }), ...conditions };
}

function compileCell(
  name: string,
  principal: PrincipalEntry,
  action: string,
  className: string | undefined,
  fieldClass: FieldClass | undefined,
): Cell {
  const denied = (principal.deny ?? []).findIndex((text) => covers(parseScope(text)!, action, className));
  const allow = principal.grants.flatMap((grant, i) => {
    const scope = parseScope(typeof grant === 'string' ? grant : grant.scope)!;
    if (!covers(scope, action, className)) return [];
    return toRule(grant, `${name}/grants/${i}`, action, fieldClass) ?? [];
  });
  return { allow, ...(denied !== -1 && { deny: `${name}/deny/${denied}` }) };
}

function compileCells(
  name: string,
  principal: PrincipalEntry,
  classes: ReadonlyMap<string, FieldClass>,
): Map<string, Cell> {
  const cells = new Map<string, Cell>();
  for (const action of plainActions) cells.set(action, compileCell(name, principal, action, undefined, undefined));
  for (const action of fieldActions) {
    for (const className of [...classes.keys(), unknownClass]) {
      const cell = compileCell(name, principal, action, className, classes.get(className));
      cells.set(cellKey(action, className), cell);
    }
  }
  return cells;
}

function describeGrant(grant: GrantEntry): string {
  if (typeof grant === 'string') return grant;
  const purposes = grant.when?.purpose;
  const covers = grant.compromised === true ? ' including compromised versions' : '';
  const conditions = purposes === undefined ? '' : ` when purpose is ${purposes.join(' or ')}`;
  return `${grant.scope}${covers}${conditions}`;
}

export function findLocalIssuer(file: PolicyFile): string | undefined {
  return Object.entries(file.issuers).find(([, issuer]) => 'local' in issuer)?.[0];
}

/** Who a principal is at which issuer: what it says, else the local issuer's subject of its own name. */
export function identitiesOf(
  name: string,
  principal: PrincipalEntry,
  local: string | undefined,
): readonly { readonly issuer: string; readonly sub: string }[] {
  return principal.identities ?? (local === undefined ? [] : [{ issuer: local, sub: name }]);
}

export function compileAccess(file: PolicyFile, classes: ReadonlyMap<string, FieldClass>): AccessTable {
  const principals = new Map<string, CompiledPrincipal>();
  const identities = new Map<string, string>();
  const local = findLocalIssuer(file);
  for (const kind of ['agents', 'people'] as const) {
    for (const [name, principal] of Object.entries<PrincipalEntry>(file[kind])) {
      principals.set(name, {
        name,
        kind: kind === 'agents' ? 'agent' : 'person',
        system: principal.system ?? false,
        cells: compileCells(name, principal, classes),
        grants: [...principal.grants.map(describeGrant), ...(principal.deny ?? []).map((scope) => `not ${scope}`)],
        ...(principal.tenants !== undefined && { tenants: new Set(principal.tenants) }),
      });
      for (const { issuer, sub } of identitiesOf(name, principal, local))
        identities.set(JSON.stringify([issuer, sub]), name);
    }
  }
  return { principals, identities };
}
