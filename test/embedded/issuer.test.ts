/** The local issuer: its tokens verify with its published keys and say what was asked, no more. */
import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createLocalJWKSet, decodeProtectedHeader, jwtVerify } from 'jose';
import { localIss, openIssuer, type Issuer } from '../../src/embedded/issuer.ts';
import { makeFolder, makeHome } from './support.ts';

describe('embedded/issuer', () => {
  const folder = makeFolder();
  const home = makeHome(folder.path);
  const request = { audience: 'fieldkeep', subject: 'invoice-agent', ttlSeconds: 60 };
  let issuer: Issuer;
  before(async () => {
    issuer = await openIssuer(home);
  });
  after(() => folder.remove());

  async function verify(token: string, by: Issuer = issuer) {
    const options = { issuer: localIss, audience: 'fieldkeep', typ: 'at+jwt', algorithms: ['EdDSA'] };
    return (await jwtVerify(token, createLocalJWKSet(by.jwks), options)).payload;
  }

  it('says what was asked', async () => {
    const token = await issuer.issueToken({
      ...request,
      actor: 'cx-agent',
      tenant: 'acme',
      scope: 'decrypt:ssn:last4',
    });
    const { iat, exp, jti, ...claims } = await verify(token);
    assert.deepEqual(claims, {
      iss: localIss,
      aud: 'fieldkeep',
      sub: 'invoice-agent',
      act: { sub: 'cx-agent' },
      tenant: 'acme',
      scope: 'decrypt:ssn:last4',
    });
    assert.equal(exp! - iat!, 60);
    assert.ok(Math.abs(iat! - Date.now() / 1000) < 5);
    assert.match(jti!, /^[0-9a-f-]{36}$/);
  });

  it('says nothing that was not asked', async () => {
    const claims = await verify(await issuer.issueToken(request));
    assert.deepEqual(Object.keys(claims).sort(), ['aud', 'exp', 'iat', 'iss', 'jti', 'sub']);
  });

  it('gives every token an identity of its own', async () => {
    const [a, b] = await Promise.all([issuer.issueToken(request), issuer.issueToken(request)]);
    assert.notEqual((await verify(a)).jti, (await verify(b)).jti);
  });

  it('has the same key when it is opened again', async () => {
    const again = await openIssuer(home);
    assert.deepEqual(again.jwks, issuer.jwks);
    await verify(await issuer.issueToken(request), again);
  });

  it('is not another state folder’s issuer', async () => {
    const other = await openIssuer(makeHome(folder.path, 'other'));
    await assert.rejects(verify(await other.issueToken(request)), { code: 'ERR_JWKS_NO_MATCHING_KEY' });
  });

  it('publishes no private half, and keeps it to its owner', async () => {
    const [key] = issuer.jwks.keys;
    assert.equal(issuer.jwks.keys.length, 1);
    assert.deepEqual(Object.keys(key!).sort(), ['alg', 'crv', 'kid', 'kty', 'use', 'x']);
    const file = join(home, 'issuer', 'key.json');
    assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.equal(statSync(join(home, 'issuer')).mode & 0o777, 0o700);
    assert.ok('d' in (JSON.parse(readFileSync(file, 'utf8')) as object));
    assert.equal(decodeProtectedHeader(await issuer.issueToken(request)).kid, key!.kid);
  });
});
