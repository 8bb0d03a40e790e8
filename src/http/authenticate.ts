/**
 * Who is asking: a bearer token (JWT) from an issuer of the policy becomes an identity.
 *
 *     header   one Authorization header, scheme Bearer
 *     issuer   the token's `iss` picks it; its algorithms are pinned there and always asymmetric
 *     verify   signature, typ, aud, iss, exp, nbf                       (jose)
 *     identify claims → principal of the policy                         (claims.ts)
 *
 * A verified token is remembered by its SHA-256, never by itself, until it expires, at most `rememberMsMax` (so that a
 * signing key taken out of a JWKS stops working) and only under the policy it was resolved with.
 *
 * Whatever is wrong with a token is 401. That an issuer's signing keys cannot be had is not the token's fault, and the
 * agent must not throw it away: 503 `keys_not_ready`. A good token whose principal the policy does not know is
 * `known: false`; the app answers 403.
 */
import { hash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import * as jose from 'jose';
import { localIss } from '../embedded/issuer.ts';
import { FieldkeepError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Issuer, Policy } from '../policy/policy.ts';
import { identify, type Identity, type Tell } from './claims.ts';

export type { Identity } from './claims.ts';

export type Authenticate = (req: IncomingMessage) => Identity | Promise<Identity>;

interface AuthenticatorOptions {
  /** The policy in force; another object means another policy. */
  readonly policy: () => Policy;
  /** Public keys of the local issuer, when there is one. */
  readonly localKeys?: jose.JSONWebKeySet;
  /** Told what keeps good tokens from being accepted, and what to set. */
  readonly log?: Pick<Log, 'warn'>;
  /** Stands in for `fetch` where a JWKS is read from an address; for tests. */
  readonly fetch?: jose.FetchImplementation;
}

const tokenCharsMax = 8_192;
const rememberedMax = 10_000;
const rememberMsMax = 5 * 60_000;
const clockToleranceSeconds = 5;
/** A hint is logged once in so long: whoever holds a token that is refused may send it as often as they like. */
const hintEveryMs = 60_000;
/** RFC 9068: another kind of token of the same issuer (an ID token, a logout token) is no access token. */
const typDefault = 'at+jwt';
const algorithmsDefault = ['ES256', 'EdDSA'] as const;

interface Remembered {
  readonly identity: Identity;
  readonly untilMs: number;
}

/** All that holds under one policy; replaced as a whole with it. */
interface Scene {
  readonly policy: Policy;
  readonly issuers: ReadonlyMap<string, Known>;
  readonly remembered: Map<string, Remembered>;
  /** Verifications under way: a burst with one new token verifies it once. */
  readonly underWay: Map<string, Promise<Identity>>;
  readonly tell: (issuer: string) => Tell;
}

interface Known {
  readonly name: string;
  readonly issuer: Issuer;
  readonly keys: jose.JWTVerifyGetKey;
}

export function createAuthenticator(options: AuthenticatorOptions): Authenticate {
  let scene = openScene(options.policy(), options);
  return (req) => {
    const token = readBearerToken(req);
    const policy = options.policy();
    if (scene.policy !== policy) scene = openScene(policy, options);
    const { remembered, underWay } = scene;
    const digest = hash('sha256', token, 'base64');
    const found = remembered.get(digest);
    if (found !== undefined) {
      if (Date.now() < found.untilMs) return found.identity;
      remembered.delete(digest);
    }
    let verification = underWay.get(digest);
    if (verification === undefined) {
      verification = verify(scene, token, digest).finally(() => underWay.delete(digest));
      underWay.set(digest, verification);
    }
    return verification;
  };
}

function unauthenticated(detail: string): FieldkeepError {
  return new FieldkeepError('unauthenticated', detail);
}

/** Node joins or drops repeated headers; `rawHeaders` has what was really sent. */
function readBearerToken(req: IncomingMessage): string {
  const { rawHeaders } = req;
  let header: string | undefined;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!;
    if (name.length !== 13 || name.toLowerCase() !== 'authorization') continue;
    if (header !== undefined) throw unauthenticated('There is more than one Authorization header.');
    header = rawHeaders[i + 1]!;
  }
  if (header === undefined) throw unauthenticated('There is no Authorization header.');
  if (header.length > tokenCharsMax) throw unauthenticated(`A token has at most ${tokenCharsMax} characters.`);
  const token = /^Bearer +([\w.~+/-]+=*)$/i.exec(header)?.[1];
  if (token === undefined) throw unauthenticated('The Authorization header is not "Bearer" and a token.');
  return token;
}

async function verify(scene: Scene, token: string, digest: string): Promise<Identity> {
  const known = scene.issuers.get(readIss(token));
  if (known === undefined) throw unauthenticated('The token is of no issuer that the policy knows.');
  const payload = await verifySignedClaims(known, token);
  const { name, issuer } = known;
  const identity = identify({ policy: scene.policy, name, issuer }, payload, scene.tell(name));
  if (scene.remembered.size >= rememberedMax) {
    for (const oldest of scene.remembered.keys()) {
      scene.remembered.delete(oldest);
      break;
    }
  }
  scene.remembered.set(digest, { identity, untilMs: Math.min(payload.exp! * 1000, Date.now() + rememberMsMax) });
  return identity;
}

/** Who the token says it is from: only picks the keys that then have to prove it. */
function readIss(token: string): string {
  try {
    return jose.decodeJwt(token).iss ?? '';
  } catch {
    throw unauthenticated('The token is not a JWT.');
  }
}

async function verifySignedClaims(known: Known, token: string): Promise<jose.JWTPayload> {
  const { issuer } = known;
  try {
    const { payload } = await jose.jwtVerify(token, known.keys, {
      algorithms: algorithmsOf(issuer),
      issuer: issOf(issuer),
      audience: issuer.aud,
      typ: ('typ' in issuer ? issuer.typ : undefined) ?? typDefault,
      clockTolerance: clockToleranceSeconds,
      requiredClaims: ['exp'],
    });
    return payload;
  } catch (error) {
    throw toRefusal(error, known.name);
  }
}

/** jose's errors carry claims; only which check failed is told. */
function toRefusal(error: unknown, issuer: string): FieldkeepError {
  if (error instanceof FieldkeepError) return error;
  if (error instanceof jose.errors.JWTExpired) return unauthenticated('The token has expired.');
  if (error instanceof jose.errors.JWTClaimValidationFailed) {
    return unauthenticated(`The token is not accepted: its claim ${error.claim} does not hold.`);
  }
  const generic = error instanceof jose.errors.JOSEError && error.code === 'ERR_JOSE_GENERIC';
  const keysMissing = error instanceof jose.errors.JWKSTimeout || error instanceof jose.errors.JWKSInvalid || generic;
  if (error instanceof jose.errors.JOSEError && !keysMissing) return unauthenticated('The token is not valid.');
  return new FieldkeepError('keys_not_ready', `The signing keys of issuer ${issuer} cannot be had now.`, {
    retryAfterSeconds: 5,
  });
}

// ── issuers ────────────────────────────────────────────────────────────────────────────────────────────────────────

function openScene(policy: Policy, options: AuthenticatorOptions): Scene {
  const issuers = new Map<string, Known>();
  for (const [name, issuer] of policy.issuers) {
    if ('issuer' in issuer && issuer.issuer === localIss) continue; // nobody else speaks for the local issuer
    issuers.set(issOf(issuer), { name, issuer, keys: openKeys(issuer, options) });
  }
  return { policy, issuers, remembered: new Map(), underWay: new Map(), tell: openHints(options.log) };
}

function openHints(log: AuthenticatorOptions['log']): Scene['tell'] {
  const toldAt = new Map<string, number>(); // by issuer and check: as many as there are of both
  return (issuer) => (check, hint) => {
    const id = `${issuer} ${check}`;
    if (performance.now() - (toldAt.get(id) ?? -hintEveryMs) < hintEveryMs) return;
    toldAt.set(id, performance.now());
    log?.warn({ issuer, check }, hint);
  };
}

function issOf(issuer: Issuer): string {
  return 'local' in issuer ? localIss : issuer.issuer;
}

/** Only asymmetric ones: the policy knows no others. */
function algorithmsOf(issuer: Issuer): string[] {
  const named: readonly string[] = ('algorithms' in issuer ? issuer.algorithms : undefined) ?? algorithmsDefault;
  return named.includes('EdDSA') ? [...named, 'Ed25519'] : [...named]; // one algorithm, two names (RFC 9864)
}

function openKeys(issuer: Issuer, options: AuthenticatorOptions): jose.JWTVerifyGetKey {
  if ('local' in issuer) return jose.createLocalJWKSet(options.localKeys ?? { keys: [] });
  if (issuer.jwksFile !== undefined) return openKeyFile(issuer.jwksFile);
  return jose.createRemoteJWKSet(new URL(issuer.jwksUrl!), {
    timeoutDuration: 3_000,
    cooldownDuration: 30_000,
    cacheMaxAge: 10 * 60_000,
    ...(options.fetch !== undefined && { [jose.customFetch]: options.fetch }),
  });
}

/** A JWKS file, read again when it changed. A file that cannot be read is keys that cannot be had, not a bad token. */
function openKeyFile(path: string): jose.JWTVerifyGetKey {
  let current: { readonly keys: jose.LocalJWKSet; readonly changedMs: number } | undefined;
  return async (header, token) => {
    const { mtimeMs } = await stat(path);
    if (current?.changedMs !== mtimeMs) {
      const set = JSON.parse(await readFile(path, 'utf8')) as jose.JSONWebKeySet;
      current = { keys: jose.createLocalJWKSet(set), changedMs: mtimeMs };
    }
    return current.keys(header, token);
  };
}
