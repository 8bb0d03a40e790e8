/** npm run -s token: a token of the local issuer on stdout and nothing else, or one sentence on stderr. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { createLocalJWKSet, jwtVerify } from 'jose';
import { openIssuer, type Issuer } from '../../src/embedded/issuer.ts';
import { makeFolder, makeHome } from './support.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));

interface Run {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

describe('scripts/token', () => {
  const folder = makeFolder();
  const home = makeHome(folder.path);
  let issuer: Issuer;
  before(async () => {
    issuer = await openIssuer(home);
  });
  after(() => folder.remove());

  function token(args: readonly string[], where = home): Promise<Run> {
    const env = { ...process.env, FIELDKEEP_HOME: where, FIELDKEEP_POLICY: '' };
    return new Promise((resolve) => {
      execFile(process.execPath, ['scripts/token.ts', ...args], { cwd: root, env }, (error, stdout, stderr) => {
        resolve({ code: typeof error?.code === 'number' ? error.code : error === null ? 0 : -1, stdout, stderr });
      });
    });
  }

  async function claimsOf(...args: readonly string[]) {
    const { code, stdout, stderr } = await token(args);
    assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
    assert.match(stdout, /^[\w-]+\.[\w-]+\.[\w-]+\n$/, 'a token, a line end, nothing else');
    const options = { audience: 'fieldkeep', typ: 'at+jwt', algorithms: ['EdDSA'] };
    return (await jwtVerify(stdout.trim(), createLocalJWKSet(issuer.jwks), options)).payload;
  }

  async function refusal(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await token(args);
    assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
    assert.match(stderr, /^[^\n]+\n$/, 'one sentence');
    return stderr;
  }

  it('prints a token for an agent, of tenant acme and for a quarter of an hour', async () => {
    const claims = await claimsOf('--agent', 'invoice-agent');
    assert.equal(claims.sub, 'invoice-agent');
    assert.equal(claims.tenant, 'acme');
    assert.equal(claims.exp! - claims.iat!, 900);
    assert.ok(!('act' in claims) && !('scope' in claims));
  });

  it('takes tenant, lifetime and scopes', async () => {
    const claims = await claimsOf(
      '--agent',
      'cx-agent',
      '--tenant',
      'globex',
      '--ttl',
      '2h',
      '--scope',
      'match:ssn decrypt:ssn:last4',
    );
    assert.equal(claims.tenant, 'globex');
    assert.equal(claims.scope, 'match:ssn decrypt:ssn:last4');
    assert.equal(claims.exp! - claims.iat!, 7200);
  });

  it('makes the person the subject and the agent the actor', async () => {
    const claims = await claimsOf('--agent', 'invoice-agent', '--on-behalf-of', 'security-lead');
    assert.equal(claims.sub, 'security-lead');
    assert.deepEqual(claims.act, { sub: 'invoice-agent' });
  });

  it('prints one for a system principal, without a tenant, and refuses to give it one', async () => {
    const claims = await claimsOf('--agent', 'operator');
    assert.equal(claims.sub, 'operator');
    assert.ok(!('tenant' in claims));
    assert.match(await refusal('--agent', 'operator', '--tenant', 'acme'), /system principal has no tenant/);
  });

  it('lists the names of the policy when it has no such one', async () => {
    const stderr = await refusal('--agent', 'nobody');
    for (const name of ['invoice-agent', 'hr-agent', 'operator']) assert.ok(stderr.includes(name), stderr);
    assert.match(await refusal('--agent', 'cx-agent', '--on-behalf-of', 'nobody'), /security-lead/);
  });

  it('refuses to let a person act for an agent', async () => {
    assert.match(await refusal('--agent', 'operator', '--on-behalf-of', 'security-lead'), /takes a person/);
    assert.match(await refusal('--agent', 'cx-agent', '--on-behalf-of', 'hr-agent'), /takes a person/);
  });

  it('refuses a lifetime it cannot read or that is over a day, and options it does not know', async () => {
    for (const ttl of ['', '0m', '15', '2d', '1e3s'])
      assert.match(await refusal('--agent', 'cx-agent', '--ttl', ttl), /--ttl/);
    assert.match(await refusal('--agnet', 'cx-agent'), /^Usage: /);
    assert.match(await refusal(), /^Usage: /);
  });

  it('says how to begin where no service has been', async () => {
    const { code, stdout, stderr } = await token(['--agent', 'cx-agent'], makeHome(folder.path, 'empty'));
    assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
    assert.match(stderr, /npm start\n$/);
  });
});
