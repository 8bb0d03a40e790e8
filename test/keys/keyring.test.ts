import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DataKey } from '../../src/crypto/data-key.ts';
import { openPool, transaction, type Pool } from '../../src/db.ts';
import { StartupError } from '../../src/errors.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { ensureFamilies } from '../../src/keys/families.ts';
import { Keyring } from '../../src/keys/keyring.ts';
import { RootKeyError, type RootKeys } from '../../src/keys/root-keys.ts';
import { activateVersion, insertVersion, raiseEpoch } from '../../src/keys/store.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { shippedPolicy } from '../support/service.ts';

const context = Buffer.from('context of a data key');

describe('root keys in a file', () => {
  let folder: string;
  let file: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-keys-'));
    file = join(folder, 'root-keys.json');
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it('wraps under the version that is named, and opens with the same context only', async () => {
    const keys = await openEmbeddedRootKeys(file);
    assert.equal(await keys.ensureFamily('ssn'), 1);
    assert.equal(await keys.ensureFamily('ssn'), 1);
    assert.equal(await keys.rotate('ssn'), 2);
    const old = await keys.makeDataKey('ssn', 1, context);
    assert.match(old, /^embedded:v1:/);
    assert.equal((await keys.unwrap('ssn', old, context)).length, 64);
    const again = await openEmbeddedRootKeys(file);
    assert.deepEqual(await again.unwrap('ssn', old, context), await keys.unwrap('ssn', old, context));
    const refused = (error: unknown) => error instanceof RootKeyError && error.refused;
    await assert.rejects(keys.unwrap('ssn', old, Buffer.from('another')), refused);
    await assert.rejects(keys.unwrap('bank', old, context), refused);
    await assert.rejects(keys.unwrap('ssn', 'embedded:v1:AAAA', context), refused);
    await assert.rejects(keys.unwrap('ssn', `${old.slice(0, -8)}AAAAAAA=`, context), refused);
    await keys.destroyBelow('ssn', 2);
    await assert.rejects(keys.unwrap('ssn', old, context), refused);
    await assert.rejects((await openEmbeddedRootKeys(file)).unwrap('ssn', old, context), refused);
  });

  it('keeps its file to its owner, whole, and says when it is damaged', async () => {
    const keys = await openEmbeddedRootKeys(file);
    await Promise.all(['ssn', 'bank', 'salary'].map((family) => keys.ensureFamily(family)));
    assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.deepEqual(Object.keys(JSON.parse(readFileSync(file, 'utf8')) as object).sort(), ['bank', 'salary', 'ssn']);
    writeFileSync(file, '{"ssn":');
    await assert.rejects(openEmbeddedRootKeys(file), StartupError);
  });
});

describe('the keyring', () => {
  let database: TestDatabase;
  let pool: Pool;
  let owner: Pool;
  let rootKeys: RootKeys;
  let folder: string;
  const clock = { now: 0 };
  /** What the keeper does next; tests break it. */
  const keeper: { fail?: RootKeyError; slow?: Promise<void> } = {};
  const rings: Keyring[] = [];

  beforeEach(async () => {
    database = await createDatabase();
    pool = openPool(database.workerUrl, { max: 8, name: 'test' });
    owner = openPool(database.ownerUrl, { max: 2, name: 'owner' });
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-keyring-'));
    const real = await openEmbeddedRootKeys(join(folder, 'root-keys.json'));
    rootKeys = {
      ...real,
      async unwrap(family, wrapped, ctx) {
        await keeper.slow;
        if (keeper.fail !== undefined) throw keeper.fail;
        return await real.unwrap(family, wrapped, ctx);
      },
    };
    delete keeper.fail;
    delete keeper.slow;
    clock.now = 0;
  });
  afterEach(async () => {
    for (const ring of rings.splice(0)) ring.close();
    await pool.end();
    await owner.end();
    await database.drop();
    rmSync(folder, { recursive: true, force: true });
  });

  async function openRing(onError: (error: unknown) => void = () => undefined): Promise<Keyring> {
    const ring = await Keyring.open({ pool, rootKeys, onError, now: () => clock.now });
    await ensureFamilies(pool, rootKeys, shippedPolicy, ring.state);
    await ring.refresh();
    rings.push(ring);
    return ring;
  }

  const outage = () => new RootKeyError('away', { refused: false });

  it('makes one key for a name, however many callers and processes ask at once', async () => {
    const two = [await openRing(), await openRing()];
    const keys = await Promise.all(
      Array.from({ length: 200 }, async (_, i) => await two[i % 2]!.getOrMake('acme', 'ssn', 1)),
    );
    assert.equal(new Set(keys.map((key) => key.fingerprint.toString('hex'))).size, 1);
    const { rows } = await owner.query<{ n: number }>('select count(*)::int as n from fieldkeep.data_keys');
    assert.equal(rows[0]!.n, 1);
  });

  it('answers a key at hand at once, asks the keeper nothing for it, and never makes one by itself', async () => {
    const ring = await openRing();
    assert.equal(await ring.get('acme', 'ssn', 1), undefined);
    await ring.getOrMake('acme', 'ssn', 1);
    const asked = ring.unwraps;
    for (let i = 0; i < 100; i += 1) assert.ok(ring.get('acme', 'ssn', 1) instanceof DataKey);
    assert.equal(ring.unwraps, asked);
  });

  it('drops a key after a minute without use and after its lifetime, and refreshes ahead', async () => {
    const ring = await openRing();
    await ring.getOrMake('acme', 'ssn', 1);
    clock.now = 59_000;
    assert.ok(ring.get('acme', 'ssn', 1) instanceof DataKey);
    clock.now += 60_001;
    assert.ok(ring.get('acme', 'ssn', 1) instanceof Promise, 'idle for a minute');
    await ring.get('acme', 'ssn', 1);
    const asked = ring.unwraps;
    const start = clock.now;
    for (; clock.now < start + 265_000; clock.now += 1_000) void ring.get('acme', 'ssn', 1);
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.ok(ring.unwraps > asked, 'refreshed before its time');
    keeper.fail = outage();
    const refreshed = clock.now;
    for (; clock.now < refreshed + 200_000; clock.now += 1_000)
      assert.ok(ring.get('acme', 'ssn', 1) instanceof DataKey, 'an outage changes nothing');
    for (; clock.now < refreshed + 340_000; clock.now += 1_000)
      await Promise.resolve(ring.get('acme', 'ssn', 1)).catch(() => undefined);
    await assert.rejects(Promise.resolve(ring.get('acme', 'ssn', 1)), { code: 'vault_unavailable' });
    delete keeper.fail;
    assert.ok((await ring.get('acme', 'ssn', 1)) instanceof DataKey, 'and it returns by itself');
  });

  it('evicts a key at once when the keeper refuses it', async () => {
    const errors: unknown[] = [];
    const ring = await openRing((error) => errors.push(error));
    await ring.getOrMake('acme', 'ssn', 1);
    keeper.fail = new RootKeyError('gone', { refused: true });
    for (; clock.now < 270_000 && errors.length === 0; clock.now += 1_000) {
      void ring.get('acme', 'ssn', 1);
      if (clock.now > 210_000) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.equal(errors.length, 1);
    await assert.rejects(Promise.resolve(ring.get('acme', 'ssn', 1)), { code: 'vault_unavailable' });
  });

  it('asks once for callers that come at once, and remembers for two seconds that there is none', async () => {
    const ring = await openRing();
    await ring.getOrMake('acme', 'ssn', 1);
    const other = await openRing();
    const before = other.unwraps;
    await Promise.all(Array.from({ length: 50 }, async () => await other.get('acme', 'ssn', 1)));
    assert.equal(other.unwraps - before, 1);
    assert.equal(await other.get('globex', 'ssn', 1), undefined);
    await ring.getOrMake('globex', 'ssn', 1);
    assert.equal(await other.get('globex', 'ssn', 1), undefined, 'remembered');
    clock.now += 2_001;
    assert.ok((await other.get('globex', 'ssn', 1)) instanceof DataKey);
  });

  it('uses no key whose fingerprint is another', async () => {
    const ring = await openRing();
    await ring.getOrMake('acme', 'ssn', 1);
    await owner.query(`update fieldkeep.data_keys set fingerprint = decode(repeat('00', 16), 'hex')`);
    const other = await openRing();
    await assert.rejects(Promise.resolve(other.get('acme', 'ssn', 1)), { code: 'internal' });
  });

  it('holds the states of versions in the database', async () => {
    await openRing();
    const version = (n: number, state: 'pending' | 'active') =>
      transaction(pool, (tx) =>
        insertVersion(tx, { family: 'ssn', version: n, state, transitVersion: n, bind: 'row', indexes: [] }),
      );
    await assert.rejects(version(2, 'active'), { code: '23505' }, 'one active version');
    await version(2, 'pending');
    await assert.rejects(version(3, 'pending'), { code: '23505' }, 'one pending version');
    await transaction(pool, async (tx) => {
      assert.equal(await activateVersion(tx, 'ssn', 2), true);
      assert.equal(await activateVersion(tx, 'ssn', 2), false);
      await raiseEpoch(tx);
    });
    const set = (state: string, n: number) =>
      pool.query('update fieldkeep.key_versions set state = $1 where family = $2 and version = $3', [state, 'ssn', n]);
    await assert.rejects(set('active', 1), /cannot become|key_versions_one_active/);
    await assert.rejects(set('pending', 1), /cannot become/);
    await assert.rejects(set('destroyed', 2), /cannot become/);
    await assert.rejects(pool.query(`update fieldkeep.data_keys set wrapped = ''`), { code: '42501' });
  });
});
