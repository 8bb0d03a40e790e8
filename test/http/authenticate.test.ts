import assert from 'node:assert/strict';
import { createHmac, createSign, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { mkdtemp, rm, utimes, writeFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FieldkeepError, type ErrorCode } from '../../src/errors.ts';
import { localIss } from '../../src/embedded/issuer.ts';
import { createAuthenticator, type Authenticate, type Identity } from '../../src/http/authenticate.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { startTestServer } from './server.ts';

const here = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const there = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const jwk = (key: KeyObject, kid: string) => ({ ...key.export({ format: 'jwk' }), kid, alg: 'ES256', use: 'sig' });
const localKeys = { keys: [jwk(here.publicKey, 'here')] };

function policyText(jwksFile: string, mask = '***'): string {
  const claims = { aud: 'fieldkeep', agentClaim: 'sub', tenantClaim: 'tenant' };
  return JSON.stringify({
    schemaVersion: 1,
    unregistered: 'deny',
    issuers: {
      local: { local: true, ...claims },
      file: { issuer: 'https://file.example', jwksFile, ...claims, agentClaim: 'client_id' },
      web: { issuer: 'https://web.example', jwksUrl: 'https://web.example/jwks', typ: 'JWT', ...claims },
    },
    classes: {
      ssn: {
        ...{ bind: 'row', padTo: 16, rotateEvery: 'P3M', normalise: 'digits', mask },
        ...{ views: ['full', 'last4', 'masked', 'exists'], defaultView: 'masked' },
      },
    },
    agents: {
      'hr-agent': {
        tenants: ['acme'],
        identities: ['local', 'file', 'web'].map((issuer) => ({ issuer, sub: 'hr-agent' })),
        grants: ['decrypt:ssn:full'],
      },
    },
    people: {
      operator: { system: true, grants: ['rotate:*'] },
      ann: { tenants: ['acme'], grants: ['decrypt:ssn:last4'] },
    },
    approvals: {},
    columns: [],
  });
}

const now = () => Math.floor(Date.now() / 1000);
const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
const goodClaims = () => ({ iss: localIss, aud: 'fieldkeep', sub: 'hr-agent', tenant: 'acme', exp: now() + 60 });
const goodHeader = { alg: 'ES256', typ: 'at+jwt', kid: 'here' };

function signToken(claims: object = {}, header: object = {}, key: KeyObject = here.privateKey): string {
  const text = `${base64({ ...goodHeader, ...header })}.${base64({ ...goodClaims(), ...claims })}`;
  return `${text}.${createSign('sha256').update(text).sign({ key, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
}

const requestWith = (...rawHeaders: string[]) => ({ rawHeaders }) as unknown as IncomingMessage;
const bearer = (token: string) => requestWith('Host', 'x', 'Authorization', `Bearer ${token}`);

describe('http/authenticate', () => {
  let folder: string;
  let jwksFile: string;
  let fetches: number;
  let fetchKeys: () => Response;
  let policy: ReturnType<typeof parsePolicy>;
  let authenticate: Authenticate;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'fieldkeep-'));
    jwksFile = join(folder, 'jwks.json');
    await writeFile(jwksFile, JSON.stringify(localKeys));
  });
  beforeEach(() => {
    fetches = 0;
    fetchKeys = () => Response.json(localKeys);
    policy = parsePolicy(policyText(jwksFile));
    authenticate = createAuthenticator({
      policy: () => policy,
      localKeys,
      fetch: () => {
        fetches += 1;
        return Promise.resolve(fetchKeys());
      },
    });
  });
  after(() => rm(folder, { recursive: true }));

  const identify = async (token: string): Promise<Identity> => authenticate(bearer(token));
  async function refused(req: IncomingMessage, code: ErrorCode = 'unauthenticated', detail?: RegExp): Promise<void> {
    await assert.rejects(
      async () => authenticate(req),
      (error) => {
        assert.ok(error instanceof FieldkeepError, String(error));
        assert.equal(error.code, code, error.message);
        if (detail !== undefined) assert.match(error.message, detail);
        return true;
      },
    );
  }

  it('makes an agent, a person, or both of a token', async () => {
    assert.deepEqual(await identify(signToken()), {
      ...{ known: true, principal: { system: false, agent: 'hr-agent', tenant: 'acme' } },
    });
    assert.deepEqual((await identify(signToken({ sub: 'operator', tenant: undefined }))).principal, {
      ...{ system: true, person: 'operator' },
    });
    const both = await identify(
      signToken({ sub: 'ann', act: { sub: 'hr-agent', act: { sub: 'other' } }, scope: 'decrypt:ssn:last4 x' }),
    );
    assert.deepEqual(both.principal, {
      ...{ system: false, agent: 'hr-agent', person: 'ann', tenant: 'acme', scopes: ['decrypt:ssn:last4', 'x'] },
    });
    assert.deepEqual((await identify(signToken({ scope: '' }))).principal.scopes, []);
  });

  it('knows that a good token may name nobody whom the policy knows', async () => {
    const identity = await identify(signToken({ sub: 'stranger' }));
    assert.equal(identity.known, false);
    assert.equal(identity.principal.agent, 'stranger');
  });

  it('wants one Authorization header with a bearer token', async () => {
    await refused(requestWith(), 'unauthenticated', /no Authorization/);
    const token = signToken();
    await refused(
      requestWith('Authorization', `Bearer ${token}`, 'authorization', `Bearer ${token}`),
      'unauthenticated',
      /more than one/,
    );
    for (const header of [
      token,
      'Bearer',
      'Bearer ',
      `Basic ${token}`,
      `Bearer ${token} x`,
      `Bearer ${token}, Bearer x`,
      'Bearer ä',
    ]) {
      await refused(requestWith('Authorization', header));
    }
    await refused(bearer('x'.repeat(9_000)), 'unauthenticated', /at most/);
    await authenticate(requestWith('AUTHORIZATION', `bEARER ${token}`));
  });

  it('refuses tokens that are expired, early, or for somebody else', async () => {
    await refused(bearer(signToken({ exp: now() - 60 })), 'unauthenticated', /expired/);
    await refused(bearer(signToken({ exp: undefined })), 'unauthenticated', /claim exp/);
    await refused(bearer(signToken({ exp: 'soon' })));
    await refused(bearer(signToken({ nbf: now() + 60 })), 'unauthenticated', /claim nbf/);
    await refused(bearer(signToken({ aud: 'other' })), 'unauthenticated', /claim aud/);
    await refused(bearer(signToken({ aud: undefined })));
    await refused(bearer(signToken({ iss: 'https://evil.example' })), 'unauthenticated', /no issuer/);
    await refused(bearer(signToken({ iss: undefined })));
    await refused(bearer(signToken({ iss: 7 })));
    for (const typ of ['dpop+jwt', 'JWT', 'logout+jwt', undefined]) await refused(bearer(signToken({}, { typ })));
    await identify(signToken({}, { typ: 'application/at+jwt' }));
    await identify(signToken({ aud: ['other', 'fieldkeep'] }));
  });

  it('refuses tokens that the issuer did not sign', async () => {
    await refused(bearer(signToken({}, {}, there.privateKey)));
    await refused(bearer(signToken({}, { kid: 'elsewhere' })));
    const [header, claims, signature] = signToken().split('.') as [string, string, string];
    const unsigned = base64({ ...goodHeader, alg: 'none' });
    await refused(bearer(`${unsigned}.${claims}.`));
    await refused(bearer(`${unsigned}.${claims}.${signature}`));
    await refused(bearer(`${header}.${base64({ ...goodClaims(), sub: 'operator' })}.${signature}`));
    await refused(bearer(`${header}.${claims}`));
    await refused(bearer(`${header}.${claims}.`));
    await refused(bearer('a.b.c'));
    await refused(bearer('not-a-token'));
    for (const secret of [here.publicKey.export({ type: 'spki', format: 'pem' }), JSON.stringify(localKeys.keys[0])]) {
      const text = `${base64({ ...goodHeader, alg: 'HS256' })}.${claims}`;
      await refused(bearer(`${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`));
    }
    const inHeader = { kid: undefined, jwk: jwk(there.publicKey, 'x'), jku: 'https://evil.example/jwks' };
    await refused(bearer(signToken({}, inHeader, there.privateKey)));
    await refused(bearer(signToken({}, { crit: ['exp'] })));
  });

  it('refuses claims that are no plain names', async () => {
    for (const claims of [
      ...[
        { sub: 7 },
        { sub: '' },
        { sub: undefined },
        { sub: 'a\u0000b' },
        { sub: '\ud800' },
        { sub: 'x'.repeat(200) },
      ],
      ...[{ tenant: ['acme'] }, { act: 'hr-agent' }, { act: {} }, { act: null }, { scope: ['decrypt:*'] }],
    ]) {
      await refused(bearer(signToken(claims)));
    }
  });

  it('verifies a token once, and a burst of it once', async () => {
    fetchKeys = () => Response.json(localKeys);
    const token = signToken({ iss: 'https://web.example' }, { typ: 'JWT' });
    const burst = await Promise.all(Array.from({ length: 20 }, () => identify(token)));
    assert.ok(burst.every((each) => each === burst[0]));
    const again = authenticate(bearer(token));
    assert.ok(!(again instanceof Promise), 'the second time nothing is awaited');
    assert.equal(again, burst[0]);
    assert.equal(fetches, 1);
  });

  it('forgets a token when it expires and when the policy changes', async () => {
    const token = signToken();
    const expiring = signToken({ exp: now() - 3 }); // within the tolerance for clocks
    await identify(token);
    await identify(expiring);
    assert.ok(authenticate(bearer(expiring)) instanceof Promise);
    assert.ok(!(authenticate(bearer(token)) instanceof Promise));
    policy = parsePolicy(policyText(jwksFile, '###'));
    const again = authenticate(bearer(token));
    assert.ok(again instanceof Promise);
    await again;
    policy = parsePolicy(policyText(jwksFile).replaceAll('hr-agent', 'other-agent'));
    assert.equal((await identify(token)).known, false);
  });

  it('holds every issuer to its own keys, typ and claims', async () => {
    const file = { iss: 'https://file.example', sub: 'hr-agent', client_id: 'hr-agent' };
    assert.equal((await identify(signToken(file))).principal.agent, 'hr-agent');
    await refused(bearer(signToken({ iss: 'https://web.example' }, { typ: 'at+jwt' })));
    await writeFile(jwksFile, JSON.stringify({ keys: [jwk(there.publicKey, 'there')] }));
    await utimes(jwksFile, new Date(), new Date(Date.now() + 5_000));
    await identify(signToken(file, { kid: 'there' }, there.privateKey));
    await refused(bearer(signToken({ ...file, jti: 'new' })));
    await refused(bearer(signToken({}, { kid: 'there' }, there.privateKey)));
    await writeFile(jwksFile, JSON.stringify(localKeys));
  });

  it('answers 503, not 401, when the keys of an issuer cannot be had', async () => {
    const token = signToken({ iss: 'https://web.example' }, { typ: 'JWT' });
    for (const answer of [
      () => new Response('', { status: 500 }),
      () => new Response('<html>', { status: 200 }),
      () => Response.json({ keys: 'none' }),
      () => {
        throw new TypeError('fetch failed');
      },
    ]) {
      fetchKeys = answer;
      await refused(bearer(token), 'keys_not_ready', /issuer web/);
    }
    fetchKeys = () => Response.json(localKeys);
    await identify(token);
    await rm(jwksFile);
    await refused(
      bearer(signToken({ iss: 'https://file.example', client_id: 'hr-agent' })),
      'keys_not_ready',
      /issuer file/,
    );
    await writeFile(jwksFile, JSON.stringify(localKeys));
  });

  it('over HTTPS: two headers are 401, and no token is ever logged', async () => {
    const test = await startTestServer({ authenticate });
    const token = signToken();
    const path = '/v1/whoami';
    assert.equal((await test.ask({ path, headers: { authorization: `bearer ${token}` } })).status, 200);
    const two = await test.ask({ path, headers: { authorization: [`Bearer ${token}`, `Bearer ${token}`] } });
    assert.equal(two.status, 401);
    assert.equal(two.headers['www-authenticate'], 'Bearer realm="fieldkeep"');
    const stranger = await test.ask({ path, headers: { authorization: `Bearer ${signToken({ sub: 'stranger' })}` } });
    assert.equal(stranger.status, 403);
    assert.ok(!test.logged.join('').includes(token.slice(0, 30)));
    await test.close();
  });
});
