/** Logins and the life of a token, against a real server. */
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SignJWT } from 'jose';
import { ensureTls } from '../../src/embedded/tls.ts';
import { RootKeyError } from '../../src/keys/root-keys.ts';
import type { VaultAuth } from '../../src/keys/vault-login.ts';
import { openProxy } from '../support/proxy.ts';
import {
  describeVault,
  mountTransit,
  openAt,
  openVaultServer,
  wrapSecretId,
  type Opened,
  type VaultServer,
} from '../support/vault.ts';

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const context = Buffer.from('context');

describeVault('logins to Vault', function () {
  this.timeout(60_000);
  let server: VaultServer;
  let mount: string;
  let folder: string;
  const open: Opened[] = [];
  const policy = 'fieldkeep-test-auth';

  before(async () => {
    server = await openVaultServer();
    mount = await mountTransit(server);
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-auth-'));
    const rules = `path "${mount}/*" { capabilities = ["create", "read", "update"] }`;
    await server.call('POST', `sys/policies/acl/${policy}`, { policy: rules });
  });
  afterEach(() => {
    for (const each of open.splice(0)) each.rootKeys.close();
  });
  after(async () => {
    rmSync(folder, { recursive: true, force: true });
    await server.close();
  });

  function file(name: string, text: string): string {
    const path = join(folder, name);
    writeFileSync(path, `${text}\n`);
    return path;
  }

  function logIn(auth: VaultAuth, options: Partial<Parameters<typeof openAt>[1]> = {}): Opened {
    const opened = openAt(server, { mount, auth, ...options });
    open.push(opened);
    return opened;
  }

  /** An auth method of this run's own. */
  async function enable(type: string): Promise<string> {
    const path = `${type}-${Math.random().toString(36).slice(2, 10)}`;
    await server.call('POST', `sys/auth/${path}`, { type });
    return path;
  }

  async function makeToken(body: object): Promise<string> {
    const made = await server.call('POST', 'auth/token/create', { policies: [policy], ...body });
    return made.auth!['client_token'] as string;
  }

  const refused = (pattern: RegExp) => (error: unknown) =>
    error instanceof RootKeyError && error.refused && pattern.test(error.message);

  it('takes a token, and one from a file that an agent renews', async () => {
    const given = logIn({ method: 'token', token: await makeToken({ ttl: '1h' }) });
    assert.equal(await given.rootKeys.ensureFamily('ssn'), 1);
    const ends = given.session.state.expiresAt!.getTime() - Date.now();
    assert.ok(ends > 3_500_000 && ends <= 3_600_000, String(ends));
    const first = await makeToken({ ttl: '1h' });
    const path = file('token', first);
    const fromFile = logIn({ method: 'token', file: path });
    await fromFile.rootKeys.ensureFamily('ssn');
    file('token', await makeToken({ ttl: '1h' }));
    await server.call('POST', 'auth/token/revoke', { token: first });
    await fromFile.rootKeys.ensureFamily('ssn');
    assert.equal(fromFile.session.state.logins, 2, 'the refusal made it read the file again');
  });

  it('refuses every call that was under way when its token was revoked, and says so of each', async () => {
    const token = await makeToken({ ttl: '1h' });
    const { rootKeys } = logIn({ method: 'token', token });
    await rootKeys.ensureFamily('ssn');
    const askAtOnce = () => Promise.allSettled(Array.from({ length: 20 }, () => rootKeys.ensureFamily('ssn')));
    await askAtOnce(); // opens the connections, so that the refusals come together
    await server.call('POST', 'auth/token/revoke', { token });
    const answers = await askAtOnce();
    for (const answer of answers) {
      assert.ok(answer.status === 'rejected' && refused(/^Vault refuses the token \(403\)\.$/)(answer.reason));
    }
  });

  it('says in a sentence why it cannot log in, naming files and no credential', async () => {
    const wrong = logIn({ method: 'token', token: 's.CANARYTOKEN' });
    await assert.rejects(wrong.rootKeys.ensureFamily('ssn'), refused(/^Vault refuses the token \(403\)\.$/));
    const missing = logIn({ method: 'token', file: join(folder, 'none') });
    await assert.rejects(missing.rootKeys.ensureFamily('ssn'), refused(/none cannot be read/));
    const empty = logIn({ method: 'token', file: file('empty', '') });
    await assert.rejects(empty.rootKeys.ensureFamily('ssn'), refused(/is empty/));
    assert.match((await empty.rootKeys.findProblem())!, /is empty/);
  });

  async function makeAppRole(settings: object) {
    const method = await enable('approle');
    await server.call('POST', `auth/${method}/role/api`, { token_policies: [policy], ...settings });
    const { data } = await server.call('GET', `auth/${method}/role/api/role-id`);
    return { mount: method, roleId: data!['role_id'] as string };
  }

  it('logs in by AppRole, and again when the token may not be renewed any more', async () => {
    const role = await makeAppRole({ token_ttl: '3s', token_max_ttl: '5s' });
    const secret = await server.call('POST', `auth/${role.mount}/role/api/secret-id`, {});
    const secretIdFile = file('secret-id', secret.data!['secret_id'] as string);
    const { rootKeys, session } = logIn({ method: 'approle', ...role, secretIdFile, wrapped: false });
    await rootKeys.ensureFamily('ssn');
    const wrapped = await rootKeys.makeDataKey('ssn', 1, context);
    const until = Date.now() + 6_500;
    while (Date.now() < until) {
      assert.equal((await rootKeys.unwrap('ssn', wrapped, context)).length, 64);
      await wait(50);
    }
    const { logins, renewals } = session.state;
    assert.ok(renewals >= 2 && renewals <= 12, `${renewals} renewals`);
    assert.ok(logins >= 2 && logins <= 8, `${logins} logins`);
  });

  it('unwraps a secret id once, and reports a wrapping that was used or exchanged', async () => {
    const role = await makeAppRole({ token_ttl: '1h' });
    const path = `auth/${role.mount}/role/api/secret-id`;
    const events: string[] = [];
    const onSecurityEvent = (event: string) => events.push(event);
    const wrappedFile = file('wrapped', await wrapSecretId(server, path));
    const auth = { method: 'approle', ...role, secretIdFile: wrappedFile, wrapped: true } as const;
    const first = logIn(auth, { onSecurityEvent });
    await first.rootKeys.ensureFamily('ssn');
    await server.call('POST', 'auth/token/revoke', { token: await first.session.getToken() });
    await first.rootKeys.ensureFamily('ssn');
    assert.equal(first.session.state.logins, 2, 'the secret id that was in it serves the next login');
    assert.deepEqual(events, []);

    const thief = logIn(auth, { onSecurityEvent });
    await assert.rejects(thief.rootKeys.ensureFamily('ssn'), refused(/somebody has used it before/));
    await wait(600);
    await assert.rejects(thief.rootKeys.ensureFamily('ssn'), refused(/somebody has used it before/));
    assert.deepEqual(events, ['wrapped_secret_id_already_used'], 'told once');
    assert.equal(thief.session.state.securityEvents, 1);

    // Whatever else kept it from logging in before, the event is told.
    const late = logIn({ ...auth, secretIdFile: join(folder, 'not-yet') }, { onSecurityEvent });
    await assert.rejects(late.rootKeys.ensureFamily('ssn'), refused(/cannot be read/));
    file('not-yet', readFileSync(wrappedFile, 'utf8'));
    await wait(600);
    await assert.rejects(late.rootKeys.ensureFamily('ssn'), refused(/somebody has used it before/));
    assert.equal(late.session.state.securityEvents, 1);
    events.pop();

    const exchanged = file('exchanged', await wrapSecretId(server, `auth/${role.mount}/role/api/role-id`));
    const other = logIn({ ...auth, secretIdFile: exchanged }, { onSecurityEvent });
    await assert.rejects(other.rootKeys.ensureFamily('ssn'), refused(/put another in its place/));
    assert.equal(events[1], 'wrapped_secret_id_from_elsewhere');
  });

  it('logs in with a JWT of a trusted issuer, read anew each time', async () => {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const method = await enable('jwt');
    const pem = String(publicKey.export({ type: 'spki', format: 'pem' }));
    await server.call('POST', `auth/${method}/config`, { jwt_validation_pubkeys: [pem] });
    const role = { role_type: 'jwt', user_claim: 'sub', bound_audiences: ['vault'], token_policies: [policy] };
    await server.call('POST', `auth/${method}/role/api`, { ...role, token_ttl: '1h' });
    const issue = (audience: string) =>
      new SignJWT({}).setProtectedHeader({ alg: 'ES256' }).setSubject('fieldkeep').setAudience(audience);
    const sign = (audience: string) => issue(audience).setIssuedAt().setExpirationTime('5m').sign(privateKey);
    const path = file('jwt', await sign('vault'));
    const { rootKeys, session } = logIn({ method: 'jwt', mount: method, role: 'api', file: path });
    await rootKeys.ensureFamily('ssn');
    file('jwt', await sign('elsewhere'));
    await server.call('POST', 'auth/token/revoke', { token: await session.getToken() });
    await assert.rejects(rootKeys.ensureFamily('ssn'), refused(/^Vault refuses the jwt login \(400\)\.$/));
    file('jwt', await sign('vault'));
    await wait(600);
    await rootKeys.ensureFamily('ssn');
  });

  it('logs in as a Kubernetes service account', async () => {
    // Vault asks this API server who the token belongs to (TokenReview); everything else is real.
    const tls = await ensureTls(mkdtempSync(join(folder, 'tls-')));
    const api = createServer({ cert: tls.cert, key: tls.key }, (req, res) => {
      let text = '';
      req.on('data', (chunk: Buffer) => (text += chunk.toString()));
      req.on('end', () => {
        const review = JSON.parse(text) as { spec: { token: string } };
        const authenticated = review.spec.token === jwt;
        const user = { username: 'system:serviceaccount:fieldkeep:fieldkeep-api', uid: 'u-1', groups: [] };
        res.setHeader('content-type', 'application/json');
        res.end(
          JSON.stringify({
            ...{ apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview' },
            status: authenticated ? { authenticated, user } : { authenticated: false, error: 'no' },
          }),
        );
      });
    });
    await new Promise<void>((resolve) => api.listen(0, '127.0.0.1', resolve));
    const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const claims = {
      'kubernetes.io': { namespace: 'fieldkeep', serviceaccount: { name: 'fieldkeep-api', uid: 'u-1' } },
    };
    const jwt = await new SignJWT(claims)
      .setProtectedHeader({ alg: 'RS256' })
      .setSubject('system:serviceaccount:fieldkeep:fieldkeep-api')
      .setIssuer('https://kubernetes.default.svc')
      .setIssuedAt()
      .setExpirationTime('10m')
      .sign(privateKey);
    try {
      const method = await enable('kubernetes');
      const host = `https://127.0.0.1:${(api.address() as AddressInfo).port}`;
      await server.call('POST', `auth/${method}/config`, {
        ...{ kubernetes_host: host, kubernetes_ca_cert: tls.ca, disable_local_ca_jwt: true },
      });
      await server.call('POST', `auth/${method}/role/fieldkeep-api`, {
        bound_service_account_names: ['fieldkeep-api'],
        bound_service_account_namespaces: ['fieldkeep'],
        ...{ token_policies: [policy], token_ttl: '1h' },
      });
      const path = file('account', jwt);
      const auth = { method: 'kubernetes', mount: method, role: 'fieldkeep-api', file: path } as const;
      await logIn(auth).rootKeys.ensureFamily('ssn');
      file('account', `${jwt.slice(0, -4)}AAAA`);
      await assert.rejects(logIn(auth).rootKeys.ensureFamily('ssn'), refused(/^Vault refuses the kubernetes login/));
    } finally {
      api.close();
      api.closeAllConnections();
    }
  });

  it('renews at two thirds of the life, and does not spin with a life of 768 hours', async () => {
    const long = logIn({ method: 'token', token: await makeToken({ ttl: '767h' }) });
    await long.rootKeys.ensureFamily('ssn');
    const before = long.vault.counters().calls;
    await wait(1_500);
    assert.equal(long.vault.counters().calls, before);
    const token = await makeToken({ ttl: '6s', period: '6s' });
    const short = logIn({ method: 'token', token });
    const began = performance.now();
    await short.rootKeys.ensureFamily('ssn');
    while (short.session.state.renewals === 0) await wait(10);
    const after = performance.now() - began; // Vault counts in whole seconds: it may say 5
    assert.ok(after > 2_900 && after < 6_000, `renewed after ${after} ms of 6,000`);
  });

  it('renews through an outage as soon as Vault is back, and logs in again when the token died meanwhile', async () => {
    const proxy = await openProxy(server.address);
    try {
      const role = await makeAppRole({ token_ttl: '8s' });
      const secret = await server.call('POST', `auth/${role.mount}/role/api/secret-id`, {});
      const secretIdFile = file('secret-id-2', secret.data!['secret_id'] as string);
      const auth = { method: 'approle', ...role, secretIdFile, wrapped: false } as const;
      const { rootKeys, session } = logIn(auth, { address: proxy.through(server.address).replace(/\/$/, '') });
      await rootKeys.ensureFamily('ssn');
      const lose = () => {
        proxy.mode = 'refuse';
        proxy.cut();
      };
      lose();
      while (session.state.failures === 0) await wait(10);
      proxy.mode = 'pass';
      while (session.state.renewals === 0 && session.state.authenticated) await wait(10);
      assert.equal(session.state.logins, 1, 'its next try came in time');
      lose();
      while (session.state.authenticated) await wait(50);
      await assert.rejects(rootKeys.ensureFamily('ssn'), (error: RootKeyError) => !error.refused);
      proxy.mode = 'pass';
      await wait(600);
      await rootKeys.ensureFamily('ssn');
      assert.ok(session.state.logins >= 2);
    } finally {
      await proxy.close();
    }
  });

  it('works in a namespace, with transit mounted elsewhere', async () => {
    const namespace = `team-${Math.random().toString(36).slice(2, 10)}`;
    try {
      await server.call('POST', `sys/namespaces/${namespace}`, {});
    } catch {
      return; // HashiCorp's community edition has none
    }
    const inside = openAt(server, { mount: 'deep/transit', namespace });
    open.push(inside);
    await inside.vault.call('POST', 'sys/mounts/deep/transit', server.rootToken, { type: 'transit' });
    assert.equal(await inside.rootKeys.ensureFamily('ssn'), 1);
    const wrapped = await inside.rootKeys.makeDataKey('ssn', 1, context);
    assert.equal((await inside.rootKeys.unwrap('ssn', wrapped, context)).length, 64);
    const outside = logIn({ method: 'token', token: server.rootToken }, { mount: 'deep/transit' });
    await assert.rejects(outside.rootKeys.unwrap('ssn', wrapped, context), refused(/404/));
  });
});
