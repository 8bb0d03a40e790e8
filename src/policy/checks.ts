/**
 * What the shape of keys-policy.json cannot say: names that must exist, ladders that must be in order, rights that only
 * some may hold. Every problem is collected with its place; nothing stops at the first. Pure.
 */
import { findLocalIssuer, identitiesOf } from './compile.ts';
import { joinPath, type Problem } from './problems.ts';
import type { PolicyFile, PrincipalEntry } from './schema.ts';
import { openingActions, parseScope, systemActions } from './scope.ts';
import { parseDecimal } from './views.ts';

type Add = (path: string, message: string) => void;

const ladders = [
  ['full', 'last4', 'masked', 'exists'],
  ['full', 'bucket', 'masked', 'exists'],
];

function isLadder(views: readonly string[]): boolean {
  return ladders.some((ladder) => {
    const places = views.map((view) => ladder.indexOf(view));
    return places.every((place, i) => place !== -1 && (i === 0 || place > places[i - 1]!));
  });
}

/** A duration of zero, however it is written. */
const isNothing = (duration: string) => !/[1-9]/.test(duration);

/** Never what an object inherits: `constructor` is a possible name of a class. */
function findClass(file: PolicyFile, name: string) {
  return Object.hasOwn(file.classes, name) ? file.classes[name] : undefined;
}

function checkClasses(file: PolicyFile, add: Add): void {
  for (const [name, fieldClass] of Object.entries(file.classes)) {
    const at = joinPath(['classes', name]);
    if (name === 'audit') add(at, 'the name audit is reserved for the keys of the audit log');
    if (!isLadder(fieldClass.views)) {
      add(`${at}.views`, 'must be in order, most first: full, last4 (or bucket), masked, exists');
    }
    if (!fieldClass.views.includes(fieldClass.defaultView)) add(`${at}.defaultView`, 'is not one of the views');
    if (fieldClass.defaultView === 'full')
      add(`${at}.defaultView`, 'must not be full: full is always asked for by name');
    if (fieldClass.views.includes('bucket') !== (fieldClass.edges !== undefined)) {
      add(`${at}.edges`, 'edges and the view bucket go together');
    }
    const edges = (fieldClass.edges ?? []).map((edge) => parseDecimal(edge)!);
    if (edges.some((edge, i) => i > 0 && edge <= edges[i - 1]!)) add(`${at}.edges`, 'must be ascending');
    if (fieldClass.nonAscii !== undefined && fieldClass.normalise === undefined) {
      add(`${at}.nonAscii`, 'counts with normalise only: leave it out');
    }
    if (isNothing(fieldClass.rotateEvery)) add(`${at}.rotateEvery`, 'must be longer than nothing');
  }
}

function checkScope(file: PolicyFile, text: string, at: string, deny: boolean, add: Add): string | undefined {
  const scope = parseScope(text);
  if (scope === undefined) {
    add(at, 'is not a scope: action:class[:view], audit, approve or policy');
    return undefined;
  }
  if (scope.action === '*' && !deny) add(at, 'grants name their action; only a deny may say *');
  if (deny && scope.view !== undefined) add(at, 'a deny covers every view: leave the view out');
  const named = scope.class === undefined || scope.class === '*' ? undefined : findClass(file, scope.class);
  if (scope.class !== undefined && scope.class !== '*' && named === undefined)
    add(at, `there is no class ${scope.class}`);
  if (named !== undefined && scope.view !== undefined && !named.views.includes(scope.view)) {
    add(at, `class ${scope.class} has no view ${scope.view}`);
  }
  return scope.action;
}

function checkGrants(file: PolicyFile, principal: PrincipalEntry, at: string, add: Add): void {
  for (const [i, grant] of principal.grants.entries()) {
    const place = typeof grant === 'string' ? `${at}.grants[${i}]` : `${at}.grants[${i}].scope`;
    const action = checkScope(file, typeof grant === 'string' ? grant : grant.scope, place, false, add);
    if (action === undefined || action === '*') continue;
    if (principal.system === true && !systemActions.has(action) && action !== 'audit') {
      add(place, 'a system principal has no tenant and so no right to data');
    }
    if (principal.system !== true && systemActions.has(action)) {
      add(place, `${action} spans tenants: it needs a person with "system": true`);
    }
    if (typeof grant !== 'string' && grant.compromised === true && !openingActions.has(action)) {
      add(`${at}.grants[${i}].compromised`, `${action} opens no value: only decrypt, match and reencrypt do`);
    }
  }
  for (const [i, scope] of (principal.deny ?? []).entries()) checkScope(file, scope, `${at}.deny[${i}]`, true, add);
}

function checkPrincipals(file: PolicyFile, add: Add): void {
  const identities = new Map<string, string>();
  const local = findLocalIssuer(file);
  for (const kind of ['agents', 'people'] as const) {
    for (const [name, principal] of Object.entries<PrincipalEntry>(file[kind])) {
      const at = joinPath([kind, name]);
      if (kind === 'people' && Object.hasOwn(file.agents, name)) add(at, 'an agent has this name already');
      if (principal.system === true && principal.tenants !== undefined)
        add(`${at}.tenants`, 'a system principal has no tenants');
      if (principal.system !== true && principal.tenants === undefined)
        add(`${at}.tenants`, 'is missing: say which, or ["*"]');
      checkGrants(file, principal, at, add);
      for (const [i, { issuer, sub }] of identitiesOf(name, principal, local).entries()) {
        const place = principal.identities === undefined ? at : `${at}.identities[${i}]`;
        if (!Object.hasOwn(file.issuers, issuer)) add(`${place}.issuer`, 'there is no issuer of this name');
        const id = JSON.stringify([issuer, sub]);
        const other = identities.get(id);
        if (other !== undefined) add(place, `is the identity of ${other} already`);
        identities.set(id, at);
      }
    }
  }
}

function checkIssuers(file: PolicyFile, add: Add): void {
  const issuers = new Map<string, string>();
  let locals = 0;
  for (const [name, issuer] of Object.entries(file.issuers)) {
    const at = joinPath(['issuers', name]);
    if ('local' in issuer) {
      locals += 1;
      if (locals > 1) add(at, 'there is one local issuer');
      continue;
    }
    if ((issuer.jwksFile === undefined) === (issuer.jwksUrl === undefined)) {
      add(at, 'needs one of jwksFile and jwksUrl');
    }
    const other = issuers.get(issuer.issuer);
    if (other !== undefined) add(`${at}.issuer`, `is the issuer of ${other} already`);
    issuers.set(issuer.issuer, at);
  }
}

function checkApprovals(file: PolicyFile, add: Add): void {
  for (const [name, approval] of Object.entries(file.approvals ?? {})) {
    const at = joinPath(['approvals', name]);
    if (!['destroy', 'waive', 'decrypt'].includes(name)) add(at, 'only destroy, waive and decrypt take approvals');
    for (const [i, member] of approval.group.entries()) {
      if (!Object.hasOwn(file.people, member)) add(`${at}.group[${i}]`, 'there is no person of this name');
    }
    if (isNothing(approval.within)) add(`${at}.within`, 'must be longer than nothing');
    if (new Set(approval.group).size < approval.n) add(`${at}.n`, 'is more than the group has people');
  }
}

/** What only means something while a column is adopted. */
function checkAdoption(column: PolicyFile['columns'][number], at: string, add: Add): void {
  if (column.from?.includes(':') === true) add(`${at}.from`, 'a registered name has no colon');
  if (column.adopt === true) return;
  for (const name of ['from', 'tenants', 'sealed'] as const) {
    if (column[name] !== undefined) add(`${at}.${name}`, 'counts with "adopt": true only; after that, leave it out');
  }
}

/** Names that a target cannot have: `own` is our own database to commands, the endings belong to other variables. */
function checkDatabase(database: string | undefined, at: string, add: Add): void {
  if (database === 'own') add(at, 'own is what commands call the database of Fieldkeep itself');
  if (database !== undefined && /_(reader|owner|rows)$/.test(database)) {
    add(at, 'must not end in _reader, _owner or _rows: its variable would be one of another target');
  }
}

function checkColumns(file: PolicyFile, add: Add): void {
  const taken = new Map<string, string>();
  const claim = (address: string, column: string, at: string) => {
    const id = JSON.stringify([address, column]);
    const other = taken.get(id);
    if (other !== undefined) add(at, `is used by ${other} already`);
    taken.set(id, at);
  };
  const keys = new Map<string, string>();
  for (const [i, column] of file.columns.entries()) {
    const at = `columns[${i}]`;
    const address = column.database === undefined ? column.table : `${column.database}:${column.table}`;
    const fieldClass = findClass(file, column.class);
    if (fieldClass === undefined) add(`${at}.class`, `there is no class ${column.class}`);
    checkDatabase(column.database, `${at}.database`, add);
    if (column.column.includes(':')) add(`${at}.column`, 'a registered name has no colon');
    claim(address, column.column, `${at}.column`);
    checkAdoption(column, at, add);
    if (column.from !== undefined) claim(address, column.from, `${at}.from`);
    const shape = JSON.stringify([column.key, column.tenant]);
    const known = keys.get(address);
    if (known !== undefined && known !== shape) add(at, 'the columns of one table share key and tenant');
    keys.set(address, shape);
    const reserved = [...column.key, ...('column' in column.tenant ? [column.tenant.column] : [])];
    if (reserved.includes(column.column)) add(`${at}.column`, 'key and tenant columns stay readable');
    if (column.from !== undefined && reserved.includes(column.from)) {
      add(`${at}.from`, 'is the key or the tenant of the table');
    }
    for (const [j, index] of (column.index ?? []).entries()) {
      const place = `${at}.index[${j}]`;
      if (index.column.includes(':')) add(`${place}.column`, 'a registered name has no colon');
      claim(address, index.column, `${place}.column`);
      if (reserved.includes(index.column)) add(`${place}.column`, 'is the key or the tenant of the table');
      if (fieldClass?.edges !== undefined)
        add(place, 'a class with buckets is never indexed: tokens would tell its ranks');
      if (index.unique === true ? index.bits !== undefined && index.bits !== 256 : index.bits === undefined) {
        add(`${place}.bits`, index.unique === true ? 'is 256 where unique is true: leave it out' : 'is missing');
      }
      const first = (column.index ?? []).findIndex((each) => each.name === index.name);
      if (first !== j) add(`${place}.name`, `is used by index[${first}] already`);
    }
  }
}

/** Every problem of a file whose shape is right. */
export function checkPolicy(file: PolicyFile): Problem[] {
  const problems: Problem[] = [];
  const add: Add = (path, message) => void problems.push({ path, message });
  checkIssuers(file, add);
  checkClasses(file, add);
  checkPrincipals(file, add);
  checkApprovals(file, add);
  checkColumns(file, add);
  return problems;
}
