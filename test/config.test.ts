import assert from 'node:assert/strict';
import { readConfig } from '../src/config.ts';
import { StartupError } from '../src/errors.ts';

const vault = { VAULT_ADDR: 'https://vault:8200', VAULT_TOKEN: 'CANARY' };
const production = {
  NODE_ENV: 'production',
  DATABASE_URL: 'postgresql://a@b/c',
  DATABASE_WORKER_URL: 'postgresql://w@b/c',
  ...vault,
};

describe('the environment', () => {
  it('knows every way to log in to Vault', () => {
    const authOf = (env: Record<string, string>) =>
      readConfig({ VAULT_ADDR: 'https://vault:8200', ...env }).vault!.auth;
    assert.deepEqual(authOf({ VAULT_TOKEN: 't' }), { method: 'token', token: 't' });
    assert.deepEqual(authOf({ VAULT_TOKEN_FILE: '/t' }), { method: 'token', file: '/t' });
    const role = { VAULT_AUTH: 'approle', VAULT_ROLE: 'r' };
    const appRole = { method: 'approle', mount: 'approle', roleId: 'r', secretIdFile: '/s' };
    assert.deepEqual(authOf({ ...role, VAULT_SECRET_ID_FILE: '/s' }), { ...appRole, wrapped: false });
    assert.deepEqual(authOf({ ...role, VAULT_WRAPPED_SECRET_ID_FILE: '/s' }), { ...appRole, wrapped: true });
    assert.deepEqual(authOf({ VAULT_AUTH: 'kubernetes', VAULT_ROLE: 'r', VAULT_AUTH_MOUNT: 'k8s/eu' }), {
      ...{ method: 'kubernetes', mount: 'k8s/eu', role: 'r' },
      file: '/var/run/secrets/kubernetes.io/serviceaccount/token',
    });
    assert.deepEqual(authOf({ VAULT_AUTH: 'jwt', VAULT_ROLE: 'r', VAULT_JWT_FILE: '/j' }), {
      ...{ method: 'jwt', mount: 'jwt', role: 'r', file: '/j' },
    });
  });

  it('takes roles, families, a namespace and a mount', () => {
    const env = { ...vault, ROLE: 'api', DATABASE_URL: 'postgresql://a@b/c', FIELDKEEP_FAMILIES: 'bank,ssn' };
    const config = readConfig({ ...env, VAULT_NAMESPACE: 'team', VAULT_TRANSIT_MOUNT: 'deep/transit' });
    assert.equal(config.role, 'api');
    assert.deepEqual(config.families, ['bank', 'ssn']);
    assert.equal(config.vault!.namespace, 'team');
    assert.equal(config.vault!.mount, 'deep/transit');
    assert.equal(readConfig({}).vault, undefined);
    assert.equal(readConfig(production).production, true);
  });

  it('takes passphrases of others, and the places in Vault where they are', () => {
    const env = { ...vault, SOURCE_HR_SECRET: 'pass#phrase', SOURCE_OLD_CRM_VAULT: 'secret/data/crm#passphrase' };
    const { sources } = readConfig({ ...env, SOURCE_EMPTY_SECRET: '' });
    assert.deepEqual(
      [...sources],
      [
        ['hr', { passphrase: 'pass#phrase' }],
        ['old_crm', { path: 'secret/data/crm', field: 'passphrase' }],
      ],
    );
  });

  it('knows the databases by their names, and their readers and owners apart', () => {
    const env = {
      ...{ DATABASE_URL: 'postgresql://s@b/c', DATABASE_READER_URL: 'postgresql://r@b/c' },
      ...{ TARGET_HR_URL: 'postgresql://w@h/c', TARGET_HR_READER_URL: 'postgresql://r@h/c' },
      ...{ TARGET_HR_OWNER_URL: 'postgresql://o@h/c', TARGET_READER_URL: 'postgresql://w@r/c' },
    };
    const config = readConfig(env);
    assert.deepEqual(
      [...config.targets],
      [
        ['hr', 'postgresql://w@h/c'],
        ['reader', 'postgresql://w@r/c'],
      ],
    );
    assert.deepEqual(
      [...config.readers],
      [
        [undefined, 'postgresql://r@b/c'],
        ['hr', 'postgresql://r@h/c'],
      ],
    );
    assert.deepEqual([...config.targetOwners], [['hr', 'postgresql://o@h/c']]);
    assert.equal(readConfig({}).readers.size, 0);
  });

  const refusals: [Record<string, string>, RegExp][] = [
    [{ ...production, DATABASE_WORKER_URL: '' }, /ROLE=all needs DATABASE_WORKER_URL in production/],
    [{ ...production, ROLE: 'worker' }, /DATABASE_WORKER_URL is for ROLE=all/],
    [{ DATABASE_ROWS_URL: 'postgresql://r@b/c' }, /DATABASE_ROWS_URL needs DATABASE_URL/],
    [{ ...production, TARGET_HR_URL: 'postgresql://w@b/hr' }, /TARGET_HR_URL needs TARGET_HR_ROWS_URL in production/],
    [{ TARGET_HR_ROWS_URL: 'postgresql://r@b/hr' }, /TARGET_HR_ROWS_URL needs TARGET_HR_URL/],
    [
      { ...vault, ROLE: 'api', DATABASE_URL: 'postgresql://a@b/c', TARGET_HR_URL: 'postgresql://w@b/hr' },
      /ROLE=api must not hold TARGET_HR_URL/,
    ],
    [
      { ...vault, ROLE: 'api', DATABASE_URL: 'postgresql://a@b/c', DATABASE_ROWS_URL: 'postgresql://r@b/c' },
      /ROLE=api must not hold DATABASE_ROWS_URL/,
    ],
    [{ ...production, VAULT_SKIP_VERIFY: '1' }, /VAULT_SKIP_VERIFY is refused in production/],
    [{ ...production, VAULT_SKIP_VERIFY: 'false' }, /VAULT_SKIP_VERIFY is refused in production/],
    [{ ...production, DEBUG: '*' }, /DEBUG naming node-vault/],
    [{ ...production, DEBUG: 'express:*,node-vault' }, /DEBUG naming node-vault/],
    [{ ...production, VAULT_ADDR: 'http://vault:8200' }, /VAULT_ADDR must be https in production/],
    [{ ...vault, VAULT_ADDR: 'vault:8200' }, /VAULT_ADDR: must be an https:\/\/ URL/],
    [{ ...vault, VAULT_ADDR: 'https://u:CANARY@vault' }, /VAULT_ADDR: must be an https:\/\/ URL/],
    [{ ...vault, VAULT_TOKEN_FILE: '/t' }, /VAULT_TOKEN and VAULT_TOKEN_FILE exclude each other/],
    [{ VAULT_ADDR: 'https://vault', VAULT_AUTH: 'approle', VAULT_ROLE: 'r' }, /VAULT_AUTH=approle needs VAULT_ROLE/],
    [{ VAULT_ADDR: 'https://vault', VAULT_AUTH: 'jwt', VAULT_ROLE: 'r' }, /needs VAULT_ROLE and VAULT_JWT_FILE/],
    [{ VAULT_ADDR: 'https://vault', VAULT_AUTH: 'ldap' }, /VAULT_AUTH/],
    [{ ROLE: 'worker' }, /ROLE=worker needs VAULT_ADDR.*ROLE=worker needs DATABASE_URL/],
    [{ ...vault, FIELDKEEP_FAMILIES: 'bank' }, /FIELDKEEP_FAMILIES needs ROLE=api/],
    [{ SOURCE_HR_VAULT: 'secret/data/hr#p' }, /SOURCE_HR_VAULT needs VAULT_ADDR/],
    [{ ...vault, SOURCE_HR_VAULT: 'CANARY' }, /SOURCE_HR_VAULT: must be a path and a field/],
    [
      { ...vault, SOURCE_HR_VAULT: 'a/CANARY#b', SOURCE_HR_SECRET: 'x' },
      /SOURCE_HR_SECRET and SOURCE_HR_VAULT exclude/,
    ],
    [{ SOURCE_HR_VAULT: 'CANARY', ROLE: 'worker' }, /ROLE=worker needs.*SOURCE_HR_VAULT: must.*SOURCE_HR_VAULT needs/],
    [{ TARGET_HR_READER_URL: 'mysql://CANARY' }, /TARGET_HR_READER_URL: must be a postgresql:\/\/ URL/],
    [{ TARGET_HR_OWNER_URL: 'CANARY' }, /TARGET_HR_OWNER_URL: must be a postgresql:\/\/ URL/],
    [{ DATABASE_READER_URL: 'CANARY' }, /DATABASE_READER_URL: must be a postgresql:\/\/ URL/],
    [{ ...vault, VAULT_TRANSIT_MOUNT: '/transit/' }, /VAULT_TRANSIT_MOUNT: must be a mount path/],
  ];
  for (const [env, pattern] of refusals) {
    it(`refuses what matches ${String(pattern)}, without its values`, () => {
      assert.throws(
        () => readConfig(env),
        (error: unknown) =>
          error instanceof StartupError && pattern.test(error.message) && !error.message.includes('CANARY'),
      );
    });
  }

  it('lets DEBUG for others, and http on loopback, be', () => {
    readConfig({ ...production, DEBUG: 'express:*' });
    readConfig({ ...production, VAULT_ADDR: 'http://127.0.0.1:8100' });
    readConfig({ ...vault, VAULT_SKIP_VERIFY: '1', DEBUG: '*' });
  });
});
