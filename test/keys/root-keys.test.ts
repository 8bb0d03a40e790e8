/** One contract for both keepers of root keys; Vault's runs against a real server. */
import assert from 'node:assert/strict';
import { createPublicKey, verify } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { RootKeyError, type RootKeys } from '../../src/keys/root-keys.ts';
import { describeVault, mountTransit, openAt, openVaultServer, type VaultServer } from '../support/vault.ts';

const context = Buffer.from('context of a data key');
const refused = (error: unknown) => error instanceof RootKeyError && error.refused && error.cause === undefined;

function keepsTheContract(open: () => Promise<RootKeys>): void {
  let keys: RootKeys;
  beforeEach(async () => {
    keys = await open();
  });
  afterEach(() => keys.close());

  it('makes a family once and rotates it', async () => {
    assert.equal(await keys.ensureFamily('ssn'), 1);
    assert.equal(await keys.ensureFamily('ssn'), 1);
    assert.equal(await keys.rotate('ssn'), 2);
    assert.equal(await keys.rotate('ssn'), 3);
    assert.equal(await keys.ensureFamily('ssn'), 3);
    await assert.rejects(keys.rotate('bank'), refused);
  });

  it('answers no two rotations with the same version', async () => {
    await keys.ensureFamily('ssn');
    const answers = await Promise.allSettled(Array.from({ length: 8 }, () => keys.rotate('ssn')));
    const versions = answers.flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []));
    assert.ok(versions.length >= 1);
    assert.equal(new Set(versions).size, versions.length);
    // OpenBao answers 500 to one of two that meet in its storage: worth another try, not a refusal.
    for (const answer of answers) if (answer.status === 'rejected') assert.ok(!refused(answer.reason));
  });

  it('wraps under the version that is named, also when a newer one exists', async () => {
    await keys.ensureFamily('ssn');
    await keys.rotate('ssn');
    const old = await keys.makeDataKey('ssn', 1, context);
    const young = await keys.makeDataKey('ssn', 2, context);
    assert.match(old, /^\w+:v1:/);
    assert.match(young, /^\w+:v2:/);
    const [a, b] = await Promise.all([keys.unwrap('ssn', old, context), keys.unwrap('ssn', young, context)]);
    assert.equal(a.length, 64);
    assert.notDeepEqual(a, b);
    assert.deepEqual(await keys.unwrap('ssn', old, context), a);
    await assert.rejects(keys.makeDataKey('ssn', 3, context), refused);
  });

  it('opens with the same family and context only, and one that does not open spoils no other', async () => {
    await keys.ensureFamily('ssn');
    await keys.ensureFamily('bank');
    const wrapped = await keys.makeDataKey('ssn', 1, context);
    const answers = await Promise.allSettled([
      keys.unwrap('ssn', wrapped, context),
      keys.unwrap('ssn', wrapped, Buffer.from('another')),
      keys.unwrap('bank', wrapped, context),
      keys.unwrap('ssn', `${wrapped.slice(0, -8)}AAAAAAA=`, context),
      keys.unwrap('ssn', 'nonsense', context),
      keys.unwrap('ssn', wrapped, context),
    ]);
    assert.deepEqual(
      answers.map(({ status }) => status),
      ['fulfilled', 'rejected', 'rejected', 'rejected', 'rejected', 'fulfilled'],
    );
    for (const answer of answers) if (answer.status === 'rejected') assert.ok(refused(answer.reason));
  });

  it('opens a thousand keys that are asked for at once', async () => {
    await keys.ensureFamily('ssn');
    const wrapped = await Promise.all([1, 2, 3].map(() => keys.makeDataKey('ssn', 1, context)));
    const opened = await Promise.all(
      Array.from({ length: 1_000 }, (_, i) => keys.unwrap('ssn', wrapped[i % 3]!, context)),
    );
    assert.equal(new Set(opened.map((key) => key.toString('hex'))).size, 3);
  });

  it('gives versions up for ever', async () => {
    await keys.ensureFamily('ssn');
    await keys.rotate('ssn');
    const old = await keys.makeDataKey('ssn', 1, context);
    const young = await keys.makeDataKey('ssn', 2, context);
    assert.ok((await keys.findOldest('ssn')) < 2);
    await keys.destroyBelow('ssn', 2);
    assert.equal(await keys.findOldest('ssn'), 2);
    await keys.destroyBelow('ssn', 2);
    await assert.rejects(keys.unwrap('ssn', old, context), refused);
    assert.equal((await keys.unwrap('ssn', young, context)).length, 64);
    await assert.rejects(keys.makeDataKey('ssn', 1, context), refused);
    await assert.rejects(keys.destroyBelow('bank', 2), refused);
    await assert.rejects(keys.findOldest('bank'), refused);
  });

  it('signs with an Ed25519 key whose public half it shows', async () => {
    const { publicKey } = await keys.getSigningKey();
    const signature = await keys.sign(Buffer.from('a checkpoint'));
    const spki = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), publicKey]);
    const key = createPublicKey({ key: spki, format: 'der', type: 'spki' });
    assert.ok(verify(null, Buffer.from('a checkpoint'), key, signature));
    assert.ok(!verify(null, Buffer.from('another'), key, signature));
    assert.deepEqual((await keys.getSigningKey()).publicKey, publicKey);
  });

  it('says that it is well', async () => {
    assert.equal(await keys.findProblem(), undefined);
  });
}

describe('root keys in a file keep the contract', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-keys-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));
  keepsTheContract(() => openEmbeddedRootKeys(join(folder, 'root-keys.json')));
});

describeVault('root keys in Vault keep the contract', () => {
  let server: VaultServer;
  before(async () => {
    server = await openVaultServer();
  });
  after(() => server.close());

  keepsTheContract(async () => openAt(server, { mount: await mountTransit(server) }).rootKeys);

  it('asks once for many, and refuses keys that could leave Vault', async () => {
    const mount = await mountTransit(server);
    const { rootKeys, vault } = openAt(server, { mount });
    await rootKeys.ensureFamily('ssn');
    const wrapped = await rootKeys.makeDataKey('ssn', 1, context);
    const before = vault.counters().calls;
    await Promise.all(Array.from({ length: 1_000 }, () => rootKeys.unwrap('ssn', wrapped, context)));
    assert.equal(vault.counters().calls - before, 5, '249 at most in a request');
    for (const [family, settings] of Object.entries({
      aa: { derived: true, exportable: true },
      bb: { derived: true, allow_plaintext_backup: true },
      cc: { derived: false },
      dd: { derived: true, type: 'chacha20-poly1305' },
      ee: { derived: true, auto_rotate_period: '24h' },
    })) {
      await server.call('POST', `${mount}/keys/fk-${family}`, { type: 'aes256-gcm96', ...settings });
      await assert.rejects(rootKeys.ensureFamily(family), refused, family);
      if (family < 'cc') await assert.rejects(rootKeys.destroyBelow(family, 2), /copied out/);
    }
    rootKeys.close();
  });
});
