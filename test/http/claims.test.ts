/** Whom tokens stand for, and what they are narrowed to: real tokens over real HTTPS, claim by claim. */
import assert from 'node:assert/strict';
import { createSign, generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createAuthenticator } from '../../src/http/authenticate.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { startTestServer, type TestServer } from './server.ts';

const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-claims-'));
const jwksFile = join(folder, 'jwks.json');
writeFileSync(
  jwksFile,
  JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'k', alg: 'ES256', use: 'sig' }] }),
);

/** Issuers by their agentClaim, and one that keeps roles in a claim of its own. */
const issuers = {
  plain: { agentClaim: 'sub' },
  client: { agentClaim: 'client_id' },
  azp: { agentClaim: 'azp' },
  cid: { agentClaim: 'cid' },
  roles: { agentClaim: 'client_id', scopeClaims: ['scp', 'roles'] },
} as const;
type IssuerName = keyof typeof issuers;

const everywhere = (...subs: string[]) =>
  Object.keys(issuers).flatMap((issuer) => subs.map((sub) => ({ issuer, sub })));

function makePolicy() {
  const remote = Object.entries(issuers).map(([name, more]) => [
    name,
    { issuer: `https://${name}.example`, jwksFile, aud: 'fieldkeep', tenantClaim: 'tenant', ...more },
  ]);
  return parsePolicy(
    JSON.stringify({
      ...{ schemaVersion: 1, unregistered: 'deny', columns: [] },
      issuers: Object.fromEntries(remote) as object,
      classes: {
        bank: {
          ...{ bind: 'row', padTo: 16, rotateEvery: 'P3M', mask: '***', defaultView: 'masked' },
          views: ['full', 'last4', 'masked', 'exists'],
        },
      },
      agents: {
        hr: { tenants: ['*'], identities: everywhere('hr', 'hr@clients'), grants: ['decrypt:bank:full'] },
        cx: { tenants: ['*'], identities: everywhere('cx'), grants: ['decrypt:bank:last4'] },
      },
      people: {
        ann: { tenants: ['acme'], identities: everywhere('ann'), grants: ['decrypt:bank:last4'] },
        root: { system: true, identities: everywhere('root'), grants: ['rotate:*', 'approve'] },
      },
    }),
  );
}

const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');

function sign(issuer: IssuerName, claims: object): string {
  const own = { iss: `https://${issuer}.example`, aud: 'fieldkeep', tenant: 'acme', exp: Date.now() / 1000 + 60 };
  const text = `${base64({ alg: 'ES256', typ: 'at+jwt', kid: 'k' })}.${base64({ ...own, ...claims })}`;
  const signature = createSign('sha256').update(text).sign({ key: privateKey, dsaEncoding: 'ieee-p1363' });
  return `${text}.${signature.toString('base64url')}`;
}

describe('http/claims', () => {
  let server: TestServer;
  let warned: string[];
  before(async () => {
    const policy = makePolicy();
    const log = { warn: (fields: object, message?: string) => warned.push(JSON.stringify({ ...fields, message })) };
    const open = () =>
      createAuthenticator({ policy: () => policy, log: { warn: (...told) => void log.warn(...told) } });
    let authenticate = open();
    server = await startTestServer({ authenticate: (req) => authenticate(req) });
    renew = () => (authenticate = open());
  });
  let renew: () => unknown;
  beforeEach(() => {
    warned = [];
    renew(); // hints are told once a minute
  });
  after(async () => {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function ask(issuer: IssuerName, claims: object) {
    server.calls.length = 0;
    const token = sign(issuer, claims);
    const answer = await server.ask({ path: '/v1/whoami', headers: { authorization: `Bearer ${token}` } });
    for (const line of [...warned, ...server.logged]) {
      for (const part of token.split('.')) assert.ok(!line.includes(part), 'a token in a log');
    }
    return { ...answer, principal: server.calls[0]?.call.principal };
  }

  const actor = (agent: unknown, more: object = {}) => ({ act: { sub: agent, ...more } });
  const hr = { agent: 'hr', tenant: 'acme', system: false };
  const annByHr = { ...hr, person: 'ann' };
  const clients = ['client', 'azp', 'cid'] as const;

  /** What a token has beside its issuer's agentClaim, and whom it stands for or the status that it is refused with. */
  const tokens: readonly [what: string, from: readonly IssuerName[], claims: object, expected: object | number][] = [
    ['the agent alone', ['plain'], { sub: 'hr' }, hr],
    ['no subject', clients, { AGENT: 'hr' }, hr],
    ['a subject that is the agent', clients, { AGENT: 'hr', sub: 'hr' }, hr],
    ['a subject that is another name of the agent', clients, { AGENT: 'hr', sub: 'hr@clients' }, hr],
    ['a subject that is a person', clients, { AGENT: 'hr', sub: 'ann' }, annByHr],
    ['a subject whom nobody knows', clients, { AGENT: 'hr', sub: 'junior' }, 401],
    ['a subject that is another agent', clients, { AGENT: 'hr', sub: 'cx' }, 401],
    ['an unknown agent for an unknown subject', clients, { AGENT: 'nobody', sub: 'junior' }, 401],
    ['an unknown agent for a person', clients, { AGENT: 'nobody', sub: 'ann' }, 403],
    ['a person through what is a person', clients, { AGENT: 'root', sub: 'ann' }, 403],
    ['a person and no agent', clients, { sub: 'ann' }, 401],
    ['a person who is the client', clients, { AGENT: 'ann', sub: 'ann' }, { ...hr, agent: undefined, person: 'ann' }],
    ['a system person for whom an agent acts', clients, { AGENT: 'hr', sub: 'root' }, { ...hr, person: 'root' }],
    ['an actor for a person', ['plain', ...clients], { sub: 'ann', ...actor('hr') }, annByHr],
    ['the outermost of actors', ['plain', ...clients], { sub: 'ann', ...actor('hr', actor('cx')) }, annByHr],
    ['an actor who is the client', clients, { AGENT: 'hr', sub: 'ann', ...actor('hr') }, annByHr],
    ['an actor by another name', clients, { AGENT: 'hr@clients', sub: 'ann', ...actor('hr') }, annByHr],
    ['an actor who is not the client', clients, { AGENT: 'cx', sub: 'ann', ...actor('hr') }, 401],
    ['an actor beside an unknown client', clients, { AGENT: 'gateway', sub: 'ann', ...actor('hr') }, 401],
    ['an actor for nobody known', ['plain', ...clients], { sub: 'junior', ...actor('hr') }, 401],
    ['an actor for itself', ['plain', ...clients], { sub: 'hr', ...actor('hr') }, 401],
    ['an actor for nobody', ['plain', ...clients], actor('hr'), 401],
    ['an unknown actor', ['plain', ...clients], { sub: 'ann', ...actor('nobody') }, 403],
    ['an actor of another issuer', ['plain', ...clients], { sub: 'ann', ...actor('hr', { iss: 'https://x' }) }, 401],
    ...[[], {}, null, 'hr', 7, true, [{ sub: 'hr' }], { sub: 7 }, { sub: '' }, { sub: ['hr'] }].map(
      (act): [string, readonly IssuerName[], object, number] => [
        ...([`act ${JSON.stringify(act)}`, ['plain', ...clients]] as const),
        { AGENT: 'hr', sub: 'ann', act },
        401,
      ],
    ),
    ...[7, 0, false, '', null, ['junior'], ['ann'], [], { sub: 'ann' }, 'a\u0000', 'x'.repeat(200)].flatMap(
      (bad): [string, readonly IssuerName[], object, number][] => [
        [`sub ${JSON.stringify(bad)}`, ['plain', ...clients], { AGENT: 'hr', sub: bad }, 401],
        [`an agent ${JSON.stringify(bad)}`, clients, { AGENT: bad, sub: 'ann' }, 401],
        [`a tenant ${JSON.stringify(bad)}`, clients, { AGENT: 'hr', tenant: bad }, 401],
      ],
    ),
  ];
  for (const [what, from, claims, expected] of tokens) {
    it(`${what}: ${typeof expected === 'number' ? expected : JSON.stringify(expected)}`, async () => {
      for (const issuer of from) {
        const { AGENT: agent, ...rest } = claims as { AGENT?: unknown };
        const own = agent === undefined || issuer === 'plain' ? {} : { [issuers[issuer].agentClaim]: agent };
        const { status, principal, text } = await ask(issuer, { ...rest, ...own });
        if (typeof expected === 'number') assert.equal(status, expected, `${issuer} ${text}`);
        else assert.deepEqual(principal, JSON.parse(JSON.stringify(expected)), `${issuer} ${text}`);
      }
    });
  }

  it('a dropped person is told in the log with what to set, once a minute, without the token or the name', async () => {
    const claims = { client_id: 'hr', sub: 'junior' };
    const first = await ask('client', claims);
    assert.match(String(first.body['detail']), /neither its agent nor a person whom the policy knows/);
    await ask('client', { ...claims, jti: 'another' });
    assert.equal(warned.length, 1);
    assert.match(warned[0]!, /"issuer":"client","check":"sub"/);
    assert.match(
      warned[0]!,
      /neither the agent that client_id names nor a person .* add that to the agent's identities/,
    );
    assert.doesNotMatch(warned[0]!, /junior/);
  });

  for (const [claim, value] of [
    ['cnf', { jkt: 'x' }],
    ['cnf', { 'x5t#S256': 'x' }],
    ['cnf', {}],
    ['cnf', null],
    ['cnf', 'x'],
    ['authorization_details', [{ type: 'x' }]],
    ['authorization_details', []],
    ['authorization_details', null],
  ] as const) {
    it(`a token that ${claim} ${JSON.stringify(value)} limits is refused, and the answer and the log say why`, async () => {
      const { status, body } = await ask('client', { client_id: 'hr', [claim]: value });
      assert.equal(status, 401);
      assert.match(String(body['detail']), new RegExp(`its claim ${claim} `));
      assert.match(warned[0]!, new RegExp(`"check":"${claim}"`));
    });
  }

  const ours = 'decrypt:bank:last4';
  const narrowed: readonly [
    what: string,
    from: IssuerName,
    claims: object,
    expected: readonly (readonly string[])[] | 401,
  ][] = [
    ['no claim', 'client', {}, []],
    ['scope', 'client', { scope: `${ours}  openid` }, [[ours, 'openid']]],
    ['an empty scope', 'client', { scope: '' }, [[]]],
    ['scope that is foreign', 'client', { scope: 'openid profile' }, [['openid', 'profile']]],
    ['scp as a list', 'client', { scp: [ours] }, [[ours]]],
    ['scp as a text', 'client', { scp: `${ours} b` }, [[ours, 'b']]],
    ['an empty scp', 'client', { scp: [] }, [[]]],
    ['scope and scp', 'client', { scope: 'audit', scp: [ours] }, [['audit'], [ours]]],
    ['scope and scp that say the same', 'client', { scope: `a ${ours}`, scp: [ours, 'a'] }, [['a', ours]]],
    ['one of the list is no text', 'client', { scp: [ours, 7] }, 401],
    ['a list of lists', 'client', { scp: [[ours]] }, 401],
    ...[7, null, {}, true, [null]].flatMap((bad): [string, IssuerName, object, 401][] => [
      [`scope ${JSON.stringify(bad)}`, 'client', { scope: bad }, 401],
      [`scp ${JSON.stringify(bad)}`, 'plain', { scp: bad, sub: 'hr' }, 401],
      [`roles ${JSON.stringify(bad)}`, 'roles', { roles: bad }, 401],
    ]),
    ['a list in scope', 'client', { scope: [ours] }, 401],
    ['roles that the policy names', 'roles', { roles: [ours] }, [[ours]]],
    ['roles and scp', 'roles', { roles: [ours], scp: 'audit' }, [['audit'], [ours]]],
    ['scope that the policy leaves out, foreign', 'roles', { scope: 'openid', roles: [ours] }, [[ours]]],
    ['scope that the policy leaves out, ours', 'roles', { scope: ours }, 401],
    ['roles that the policy does not name, ours', 'client', { roles: [ours] }, 401],
    ['permissions that the policy does not name, ours', 'client', { permissions: ['x', ours] }, 401],
    ['roles that the policy does not name, foreign', 'client', { roles: ['boss'] }, []],
  ];
  for (const [what, issuer, claims, expected] of narrowed) {
    it(`narrowing: ${what}`, async () => {
      const { status, principal, text } = await ask(issuer, { client_id: 'hr', ...claims });
      if (expected === 401) return void assert.equal(status, 401, text);
      const { scopes, moreScopes = [] } = principal!;
      assert.deepEqual(scopes === undefined ? [] : [scopes, ...moreScopes], expected);
    });
  }

  it('a scope that is foreign is told in the log, one that is ours is not', async () => {
    await ask('client', { client_id: 'hr', scope: `openid ${ours}` });
    assert.deepEqual(warned, []);
    await ask('client', { client_id: 'hr', scope: 'openid profile' });
    assert.match(warned.join(), /"check":"scope".*the token allows nothing/);
  });
});
