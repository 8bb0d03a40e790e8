/**
 * A token issuer for a laptop: an Ed25519 key in the state folder, made on first use, and access tokens signed with it
 * (JWT, RFC 9068). In production, tokens come from an issuer that the policy names.
 */
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { exportJWK, generateKeyPair, importJWK, SignJWT, type JSONWebKeySet, type JWK } from 'jose';
import { writePrivate } from './home.ts';

/** `iss` of local tokens. */
export const localIss = 'fieldkeep-local';

export interface TokenRequest {
  readonly audience: string;
  /** Who the token speaks for: the person where there is an actor. */
  readonly subject: string;
  /** The agent that acts on behalf of the subject (RFC 8693, act.sub). */
  readonly actor?: string;
  readonly tenant?: string;
  /** Space-separated; the token narrows the principal's grants to these. */
  readonly scope?: string;
  readonly ttlSeconds: number;
}

export interface Issuer {
  /** The public half, to verify with. */
  readonly jwks: JSONWebKeySet;
  issueToken(request: TokenRequest): Promise<string>;
}

async function loadKey(home: string): Promise<JWK> {
  const folder = join(home, 'issuer');
  const file = join(folder, 'key.json');
  if (existsSync(file)) return JSON.parse(readFileSync(file, 'utf8')) as JWK;
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { privateKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const jwk = { ...(await exportJWK(privateKey)), alg: 'EdDSA', use: 'sig', kid: randomUUID() };
  writePrivate(file, JSON.stringify(jwk));
  return jwk;
}

/** The issuer of the state folder `home`. */
export async function openIssuer(home: string): Promise<Issuer> {
  const jwk = await loadKey(home);
  const publicJwk = { ...jwk };
  delete publicJwk.d;
  const key = await importJWK(jwk, 'EdDSA');
  return {
    jwks: { keys: [publicJwk] },
    issueToken({ audience, subject, actor, tenant, scope, ttlSeconds }) {
      const claims = {
        ...(actor !== undefined && { act: { sub: actor } }),
        ...(tenant !== undefined && { tenant }),
        ...(scope !== undefined && { scope }),
      };
      return new SignJWT(claims)
        .setProtectedHeader({ alg: 'EdDSA', typ: 'at+jwt', kid: jwk.kid! })
        .setIssuer(localIss)
        .setAudience(audience)
        .setSubject(subject)
        .setIssuedAt()
        .setJti(randomUUID())
        .setExpirationTime(`${ttlSeconds} s`)
        .sign(key);
    },
  };
}
