/**
 * May this principal do this? Effective right = the agent's grants ∩ the token's scopes ∩ the person's rights, when
 * there is one. Deny wins, default is deny. A lookup in the compiled table; pure.
 */
import { FieldkeepError } from '../errors.ts';
import { cellKey, unknownClass, viewOnLadder, type CompiledPrincipal } from './compile.ts';
import type { FieldClass, Policy, View } from './policy.ts';
import { parseScope, type Action, type Scope } from './scope.ts';

export type { Action } from './scope.ts';

export interface Principal {
  /** Names in the policy; a person alone, an agent alone, or an agent on behalf of a person. */
  readonly agent?: string;
  readonly person?: string;
  /** Absent for system principals. */
  readonly tenant?: string;
  readonly system: boolean;
  /** What the token narrows to; absent when it says nothing of scopes. */
  readonly scopes?: readonly string[];
  /** Where several claims of the token narrow it: what each of the others leaves. */
  readonly moreScopes?: readonly (readonly string[])[];
}

export interface Question {
  readonly action: Action;
  readonly class?: string;
  readonly view?: View;
  /** Claimed by the caller. */
  readonly purpose?: string;
  /** Whether the key version of the value is compromised; only grants that say so cover it then. */
  readonly compromised?: boolean;
}

export interface Decision {
  readonly decision: 'allow' | 'deny';
  /** The grant or deny that decided; `default` when nothing allows it, `compromised` when only that stands against it. */
  readonly ruleId: string;
  readonly policyVersion: string;
  /** How much to reveal; with `decrypt` only. */
  readonly view?: View;
  /** The scope that would have allowed it. */
  readonly missingScope?: string;
}

/** What one of the three sides allows: a rule and, for decrypt, the highest view. */
interface Right {
  readonly ruleId: string;
  readonly allowed: boolean;
  readonly view?: View;
}

const refused = (ruleId: string): Right => ({ ruleId, allowed: false });

/** The place of a view on its class's ladder, 0 for the most. */
function rank(fieldClass: FieldClass, view: View): number {
  return fieldClass.views.indexOf(view);
}

function rightOf(
  principal: CompiledPrincipal,
  tenant: string | undefined,
  question: Question,
  fieldClass: FieldClass | undefined,
): Right {
  const { tenants } = principal;
  if (tenants !== undefined && (tenant === undefined || !(tenants.has('*') || tenants.has(tenant)))) {
    return refused(`${principal.name}/tenants`);
  }
  const className = question.class === undefined ? undefined : (fieldClass?.name ?? unknownClass);
  const cell = principal.cells.get(cellKey(question.action, className));
  if (cell === undefined) return refused('default');
  if (cell.deny !== undefined) return refused(cell.deny);
  let best: Right | undefined;
  for (const { id, view, purposes, compromised } of cell.allow) {
    if (question.compromised === true && !compromised) continue;
    if (purposes !== undefined && (question.purpose === undefined || !purposes.has(question.purpose))) continue;
    if (view === undefined || fieldClass === undefined) return { ruleId: id, allowed: true };
    if (best === undefined || rank(fieldClass, view) < rank(fieldClass, best.view!)) {
      best = { ruleId: id, allowed: true, view };
    }
  }
  return best ?? refused('default');
}

/** What was read of a token's scopes: a token is verified once and then decides many calls. */
const readScopes = new WeakMap<readonly string[], readonly Scope[]>();

/** Texts that are no scopes grant nothing. */
function parseScopes(texts: readonly string[]): readonly Scope[] {
  let scopes = readScopes.get(texts);
  if (scopes === undefined) {
    scopes = texts.flatMap((text) => parseScope(text) ?? []);
    readScopes.set(texts, scopes);
  }
  return scopes;
}

/** What the token's own scopes leave. */
function rightOfScopes(texts: readonly string[], question: Question, fieldClass: FieldClass | undefined): Right {
  let best: Right | undefined;
  for (const scope of parseScopes(texts)) {
    if (scope.action !== question.action) continue;
    if (question.class !== undefined && scope.class !== '*' && scope.class !== question.class) continue;
    if (question.action !== 'decrypt' || fieldClass === undefined) return { ruleId: 'token', allowed: true };
    const view = viewOnLadder(fieldClass, scope.view);
    if (view === undefined) continue;
    if (best === undefined || rank(fieldClass, view) < rank(fieldClass, best.view!)) {
      best = { ruleId: 'token', allowed: true, view };
    }
  }
  return best ?? refused('token');
}

function listNarrowings({ scopes, moreScopes = [] }: Principal): (readonly string[])[] {
  return scopes === undefined ? [...moreScopes] : [scopes, ...moreScopes];
}

/** The sides whose rights are intersected, the one that names the rule first. */
function listRights(policy: Policy, who: Principal, question: Question, fieldClass: FieldClass | undefined): Right[] {
  const rights: Right[] = [];
  for (const name of [who.agent, who.person]) {
    if (name === undefined) continue;
    const principal = policy.access.principals.get(name);
    rights.push(principal === undefined ? refused('default') : rightOf(principal, who.tenant, question, fieldClass));
  }
  if (rights.length === 0) rights.push(refused('default'));
  for (const texts of listNarrowings(who)) rights.push(rightOfScopes(texts, question, fieldClass));
  return rights;
}

/** A class that does not exist is named `*`: what the caller wrote there may be a value in the wrong place. */
function describeScope(policy: Policy, { action, class: asked, view }: Question): string {
  if (asked === undefined) return action;
  const className = policy.classes.has(asked) ? asked : unknownClass;
  return view === undefined ? `${action}:${className}` : `${action}:${className}:${view}`;
}

function deny(policy: Policy, question: Question, ruleId: string): Decision {
  return { decision: 'deny', ruleId, policyVersion: policy.version, missingScope: describeScope(policy, question) };
}

/** The side that allows the least, and with it the highest view that every side allows. */
function findNarrowest(fieldClass: FieldClass, rights: readonly Right[]): Right & { readonly view: View } {
  const places = rights.map(({ view }) => (view === undefined ? 0 : rank(fieldClass, view)));
  const place = Math.max(...places);
  return { ...rights[places.indexOf(place)]!, view: fieldClass.views[place]! };
}

function weigh(policy: Policy, who: Principal, question: Question): Decision {
  const fieldClass = question.class === undefined ? undefined : policy.classes.get(question.class);
  const { view } = question;
  if (view !== undefined && fieldClass !== undefined && !fieldClass.views.includes(view)) {
    throw new FieldkeepError('request_invalid', `Class ${fieldClass.name} has no view ${view}.`);
  }
  const rights = listRights(policy, who, question, fieldClass);
  const refusal = rights.find((right) => !right.allowed);
  if (refusal !== undefined) return deny(policy, question, refusal.ruleId);
  const allow: Decision = { decision: 'allow', ruleId: rights[0]!.ruleId, policyVersion: policy.version };
  if (question.action !== 'decrypt' || fieldClass === undefined) return allow;
  const narrowest = findNarrowest(fieldClass, rights);
  const highest = rank(fieldClass, narrowest.view);
  if (view !== undefined) {
    if (rank(fieldClass, view) < highest)
      return deny(policy, question, narrowest.ruleId === 'token' ? 'token' : 'default');
    return { ...allow, view };
  }
  const usual = Math.max(highest, rank(fieldClass, fieldClass.defaultView));
  return { ...allow, view: fieldClass.views[usual]! };
}

/**
 * Decides. Errors: `request_invalid` for a view that is not on the class's ladder. For a class that does not exist the
 * answer is allow only where a grant for every class allows it; the caller then says that the class is unknown.
 *
 * Who would be refused anyway is refused for that, and does not learn that a version is compromised.
 */
export function decide(policy: Policy, who: Principal, question: Question): Decision {
  const decision = weigh(policy, who, question);
  if (decision.decision === 'allow' || question.compromised !== true) return decision;
  const otherwise = weigh(policy, who, { ...question, compromised: false });
  return otherwise.decision === 'deny' ? otherwise : { ...decision, ruleId: 'compromised' };
}

/** What the principal's own entries grant, as written, after narrowing by the token: for people to read. */
export function effectiveGrants(policy: Policy, who: Principal): string[] {
  const lines = [who.agent, who.person].flatMap((name) => {
    const grants = name === undefined ? undefined : policy.access.principals.get(name)?.grants;
    return grants === undefined ? [] : [grants];
  });
  lines.push(...listNarrowings(who));
  if (lines.length === 1) return [...lines[0]!];
  return lines.map((grants, i) => `${i === 0 ? '' : 'and only: '}${grants.join(', ')}`);
}

/** A verified token's words. */
export interface Claims {
  /** The issuer's name in the policy. */
  readonly issuer: string;
  /** Who sends it: the subject, or the actor where it acts on behalf of one. May name a person of the policy too. */
  readonly agent: string;
  /** On whose behalf. */
  readonly person?: string;
  readonly tenant?: string;
  readonly scopes?: readonly string[];
  readonly moreScopes?: readonly (readonly string[])[];
}

/** Whom the policy knows by this name at an issuer of its. */
export function findByIdentity(policy: Policy, issuer: string, sub: string): CompiledPrincipal | undefined {
  const name = policy.access.identities.get(JSON.stringify([issuer, sub]));
  return name === undefined ? undefined : policy.access.principals.get(name);
}

/** The principal that the claims name, or undefined when the policy does not know one of them. */
export function resolvePrincipal(policy: Policy, claims: Claims): Principal | undefined {
  const find = (value: string) => findByIdentity(policy, claims.issuer, value);
  const sender = find(claims.agent);
  const behalf = claims.person === undefined ? undefined : find(claims.person);
  if (sender === undefined) return undefined;
  if (claims.person !== undefined && (behalf?.kind !== 'person' || sender.kind !== 'agent')) return undefined;
  const person = behalf ?? (sender.kind === 'person' ? sender : undefined);
  const { tenant, scopes, moreScopes } = claims;
  return {
    system: sender.system,
    ...(sender.kind === 'agent' && { agent: sender.name }),
    ...(person !== undefined && { person: person.name }),
    ...(!sender.system && tenant !== undefined && { tenant }),
    ...(scopes !== undefined && { scopes }),
    ...(moreScopes !== undefined && { moreScopes }),
  };
}
