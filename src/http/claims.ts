/**
 * Whom the claims of a verified token stand for. A person in a token is never dropped, and a claim that narrows what the
 * token allows is honoured, or the token is refused:
 *
 *     agent    the outermost act.sub (RFC 8693), else the issuer's agentClaim
 *     person   a subject that is not the agent; the policy has to know them
 *     scopes   the issuer's scopeClaims; where several are there, each of them narrows
 *
 * An agent may have several names at an issuer: a service account's `sub` beside its client id is one of its identities,
 * and then no person. Pure, but for what it tells about tokens that the policy is not made for.
 */
import { FieldkeepError } from '../errors.ts';
import { findByIdentity, resolvePrincipal, type Principal } from '../policy/access.ts';
import type { Issuer, Policy } from '../policy/policy.ts';
import { parseScope } from '../policy/scope.ts';

export interface Identity {
  /** As the policy has it; when it is not known there, as the verified token names it. */
  readonly principal: Principal;
  readonly known: boolean;
}

type Payload = Readonly<Record<string, unknown>>;

/** For whoever runs the service: which check did not hold, and what to set. Never what the token says. */
export type Tell = (check: string, hint: string) => void;

/** Where a token is from, and under which policy it is read. */
export interface Origin {
  readonly policy: Policy;
  /** The issuer's name in the policy. */
  readonly name: string;
  readonly issuer: Issuer;
}

const scopeClaimsDefault = ['scope', 'scp'] as const;
/** Where issuers write scopes. Ours in a claim that the policy does not read would narrow nothing. */
const scopeClaimsKnown = [...scopeClaimsDefault, 'roles', 'permissions'] as const;

/** Claims that limit a token in ways that are not checked here. */
const limits: Readonly<Record<string, string>> = {
  cnf: 'binds it to a key or a certificate, which this service does not check',
  authorization_details: 'limits it to what is described there, which this service does not read',
};

function unauthenticated(detail: string): FieldkeepError {
  return new FieldkeepError('unauthenticated', detail);
}

/** Never what an object inherits. */
function readOwn(holder: object, claim: string): unknown {
  return Object.hasOwn(holder, claim) ? (holder as Record<string, unknown>)[claim] : undefined;
}

/** A name that can stand in an audit entry; anything else in a claim makes the token useless here. */
function readName(holder: object, claim: string): string | undefined {
  const text = readOwn(holder, claim);
  if (text === undefined) return undefined;
  if (typeof text === 'string' && text.isWellFormed() && /^[^\p{Cc}]{1,128}$/u.test(text)) return text;
  throw unauthenticated('A claim of the token is not a plain name.');
}

/** Errors: `unauthenticated` where the token is limited in a way that is not understood. */
function refuseLimits(payload: Payload, tell: Tell): void {
  for (const [claim, why] of Object.entries(limits)) {
    if (readOwn(payload, claim) === undefined) continue;
    tell(claim, `The claim ${claim} of a token ${why}: have the issuer leave it out of the tokens for this service.`);
    throw unauthenticated(`The token is not accepted: its claim ${claim} ${why}.`);
  }
}

interface Parties {
  readonly agent: string;
  /** On whose behalf. */
  readonly person?: string;
}

/** Who acts for the subject, where the token says so. */
function readActor({ policy, name, issuer }: Origin, payload: Payload, act: unknown, tell: Tell): Parties {
  if (typeof act !== 'object' || act === null || Array.isArray(act))
    throw unauthenticated('The claim act is no object.');
  const agent = readName(act, 'sub');
  const person = readName(payload, 'sub');
  if (agent === undefined || person === undefined) throw unauthenticated('The token names nobody.');
  const iss = readOwn(act, 'iss');
  if (iss !== undefined && iss !== payload['iss']) {
    tell(
      'act.iss',
      'The actor of a token is of another issuer than the token: nobody in the policy is named like that.',
    );
    throw unauthenticated('The token is not accepted: its actor is of another issuer.');
  }
  const client = issuer.agentClaim === 'sub' ? undefined : readName(payload, issuer.agentClaim);
  if (client !== undefined && client !== agent) {
    const actor = findByIdentity(policy, name, agent);
    if (actor === undefined || actor !== findByIdentity(policy, name, client)) {
      const both = `act.sub and ${issuer.agentClaim}`;
      tell('act', `${both} of a token name two agents. Where they are one, give it both names in its identities.`);
      throw unauthenticated(`The token is not accepted: ${both} name two agents.`);
    }
  }
  return { agent, person };
}

/** A subject that is not the agent is the person. */
function readParties(origin: Origin, payload: Payload, tell: Tell): Parties {
  const { policy, name, issuer } = origin;
  const act = readOwn(payload, 'act');
  if (act !== undefined) return readActor(origin, payload, act, tell);
  const agent = readName(payload, issuer.agentClaim);
  const subject = readName(payload, 'sub');
  if (agent === undefined) throw unauthenticated('The token names nobody.');
  if (subject === undefined || subject === agent) return { agent };
  // With agentClaim "sub" the two are one claim; elsewhere the subject may be another name of the agent's.
  const sender = findByIdentity(policy, name, agent);
  const isAgent = sender !== undefined && sender === findByIdentity(policy, name, subject);
  return isAgent ? { agent } : { agent, person: subject };
}

function refuseUnknownPerson({ policy, name, issuer }: Origin, person: string, tell: Tell): void {
  if (findByIdentity(policy, name, person)?.kind === 'person') return;
  const agent = issuer.agentClaim === 'sub' ? 'act.sub' : issuer.agentClaim;
  tell(
    'sub',
    `The sub of a token is neither the agent that ${agent} names nor a person whom the policy knows. If it is a person, ` +
      `give people one with the identity {"issuer": "${name}", "sub": …}; if it is another name of the agent (a service ` +
      `account), add that to the agent's identities.`,
  );
  throw unauthenticated('The subject of the token is neither its agent nor a person whom the policy knows.');
}

/** A text of scopes with spaces between them, or a list of scopes. Undefined where it is neither. */
function readScopes(value: unknown): readonly string[] | undefined {
  if (typeof value === 'string') return value.split(' ').filter((each) => each !== '');
  const isList = Array.isArray(value) && value.every((each) => typeof each === 'string');
  return isList ? value : undefined;
}

const isOurs = (text: string) => parseScope(text) !== undefined;
const isSame = (one: readonly string[], other: readonly string[]) =>
  one.every((each) => other.includes(each)) && other.every((each) => one.includes(each));

/** What a claim leaves. An empty one leaves nothing. `scope` is a text (RFC 8693); other claims may be lists. */
function readNarrowing(claim: string, value: unknown, tell: Tell): readonly string[] {
  const scopes = readScopes(value);
  if (scopes === undefined || (claim === 'scope' && typeof value !== 'string')) {
    throw unauthenticated(`The claim ${claim} of the token does not hold scopes as it should.`);
  }
  if (!scopes.some(isOurs)) {
    tell(
      claim,
      `The claim ${claim} of a token holds no scope of this service, so the token allows nothing: have the issuer write ` +
        'scopes such as decrypt:bank:last4 there, or name the claims that do hold them in "scopeClaims" of the issuer.',
    );
  }
  return scopes;
}

/** What every claim that narrows leaves; nothing is narrowed where there is none. */
function readNarrowings({ issuer }: Origin, payload: Payload, tell: Tell): (readonly string[])[] {
  const claims: readonly string[] = issuer.scopeClaims ?? scopeClaimsDefault;
  const narrowings: (readonly string[])[] = [];
  for (const claim of claims) {
    const value = readOwn(payload, claim);
    if (value === undefined) continue;
    const scopes = readNarrowing(claim, value, tell);
    if (!narrowings.some((each) => isSame(each, scopes))) narrowings.push(scopes);
  }
  for (const claim of scopeClaimsKnown) {
    if (claims.includes(claim) || readScopes(readOwn(payload, claim))?.some(isOurs) !== true) continue;
    tell(claim, `The claim ${claim} of a token holds scopes of this service: name it in "scopeClaims" of the issuer.`);
    throw unauthenticated(`The token is not accepted: its claim ${claim} narrows it, and the policy does not name it.`);
  }
  return narrowings;
}

/**
 * Errors: `unauthenticated` where the token names nobody, a person whom the policy does not know, or is limited in a way
 * that is not understood. An agent that the policy does not know is `known: false`.
 */
export function identify(origin: Origin, payload: Payload, tell: Tell): Identity {
  const { policy, name: issuer } = origin;
  refuseLimits(payload, tell);
  const { agent, person } = readParties(origin, payload, tell);
  const tenant = readName(payload, origin.issuer.tenantClaim);
  const [scopes, ...moreScopes] = readNarrowings(origin, payload, tell);
  if (person !== undefined) refuseUnknownPerson(origin, person, tell);
  const named = { agent, ...(person !== undefined && { person }), ...(tenant !== undefined && { tenant }) };
  const narrowed = { ...(scopes !== undefined && { scopes }), ...(moreScopes.length > 0 && { moreScopes }) };
  const principal = resolvePrincipal(policy, { issuer, ...named, ...narrowed });
  if (principal !== undefined) return { principal, known: true };
  return { principal: { ...named, system: false }, known: false };
}
