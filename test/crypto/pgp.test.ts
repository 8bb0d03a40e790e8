/** What the real pgcrypto seals opens, whatever its options; everything else is one of two errors. */
import assert from 'node:assert/strict';
import * as openpgp from 'openpgp';
import { openPgp } from '../../src/crypto/pgp.ts';
import { connect } from '../../src/db.ts';
import { FieldkeepError } from '../../src/errors.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';

const passphrase = 'CANARY-pässword';
const value = 'Zoë\r\n\ufeff123-45-6789 ';

describe('crypto/pgp', () => {
  let target: TestDatabase;
  let db: Awaited<ReturnType<typeof connect>>;
  before(async () => {
    target = await createTarget();
    db = await connect(target.ownerUrl, { name: 'pgp' });
    await db.query('create extension pgcrypto schema public');
  });
  after(async () => {
    await db.end();
    await target.drop();
  });

  /** Both forms of a column: bytea as text, and ASCII armor. */
  async function seal(text: string, options = ''): Promise<readonly [string, string]> {
    const { rows } = await db.query<{ bytes: string; armor: string }>(
      `select b::text as bytes, public.armor(b) as armor from public.pgp_sym_encrypt($1, $2, $3) b`,
      [text, passphrase, options],
    );
    return [rows[0]!.bytes, rows[0]!.armor];
  }

  const fails = async (text: string, code: string, key = passphrase) =>
    await assert.rejects(openPgp(text, key), (error: unknown) => {
      assert.ok(error instanceof FieldkeepError);
      assert.equal(error.code, code);
      assert.doesNotMatch(JSON.stringify(error) + error.message + String(error.cause), /CANARY|6789|c30d/);
      return true;
    });

  const options = [
    ...['', 'cipher-algo=aes256', 'cipher-algo=aes192', 'cipher-algo=bf', 'cipher-algo=3des', 'cipher-algo=cast5'],
    ...['compress-algo=1', 'compress-algo=2,compress-level=9', 'unicode-mode=1'],
    ...['s2k-mode=0', 's2k-mode=1', 's2k-mode=3,s2k-count=1024', 's2k-digest-algo=md5', 's2k-digest-algo=sha256'],
    ...['sess-key=1', 'sess-key=1,s2k-cipher-algo=aes256,cipher-algo=aes256'],
  ];
  for (const option of options) {
    it(`opens pgp_sym_encrypt with ${option || 'its defaults'}, as bytea and in armor`, async () => {
      for (const text of await seal(value, option)) assert.equal(await openPgp(text, passphrase), value);
    });
  }

  it('opens what says nothing, and what is as long as a value may be', async () => {
    for (const text of ['', 'ü'.repeat(8192)]) {
      const [bytes] = await seal(text, 'compress-algo=1');
      assert.equal(await openPgp(bytes, passphrase), text);
    }
  });

  it('opens nothing longer, however well it is packed', async () => {
    const [long] = await seal('x'.repeat(16_385), 'compress-algo=1');
    await fails(long, 'decryption_failed');
    const [bomb] = await seal('x'.repeat(20_000_000), 'compress-algo=1');
    await fails(bomb, 'decryption_failed');
  });

  it('opens nothing with another passphrase, damaged, cut, or without a code that tells damage', async () => {
    const [bytes, armor] = await seal(value);
    await fails(bytes, 'decryption_failed', 'CANARY-other');
    await fails(`${bytes.slice(0, -4)}beef`, 'decryption_failed');
    await fails(armor, 'decryption_failed', '');
    const [loose] = await seal(value, 'disable-mdc=1');
    await fails(loose, 'decryption_failed');
  });

  /** With another maker's options; its types are those of a stream library that is not there. */
  async function sealElsewhere(options: object): Promise<string> {
    const encrypt = openpgp.encrypt as unknown as (options: object) => Promise<Uint8Array>;
    const message = await openpgp.createMessage({ text: value });
    return `\\x${Buffer.from(await encrypt({ message, format: 'binary', ...options })).toString('hex')}`;
  }

  it('tries no message that would cost more than one of pgcrypto: two passphrases, Argon2', async () => {
    const config = { s2kIterationCountByte: 96 };
    assert.equal(await openPgp(await sealElsewhere({ passwords: passphrase, config }), passphrase), value);
    await fails(await sealElsewhere({ passwords: ['other', passphrase], config }), 'envelope_malformed');
    const s2kArgon2Params = { passes: 1, parallelism: 1, memoryExponent: 10 };
    const slow = { s2kType: openpgp.enums.s2k.argon2, s2kArgon2Params };
    await fails(await sealElsewhere({ passwords: passphrase, config: slow }), 'decryption_failed');
  });

  it('tells a message for a public key', async () => {
    const { publicKey } = await openpgp.generateKey({ userIDs: { name: 'n' }, format: 'object' });
    await fails(await sealElsewhere({ encryptionKeys: publicKey }), 'envelope_malformed');
  });

  it('opens no bytes that are not UTF-8', async () => {
    const { rows } = await db.query<{ bytes: string }>(
      `select public.pgp_sym_encrypt_bytea('\\xff00', $1)::text as bytes`,
      [passphrase],
    );
    await fails(rows[0]!.bytes, 'decryption_failed');
  });

  it('tells what is no message', async () => {
    const [bytes] = await seal(value);
    const others = ['', '\\x', '\\xc3', '123-45-6789', bytes.toUpperCase(), bytes.slice(2), '\\xzz', '\\x00'];
    for (const text of [...others, '-----BEGIN PGP MESSAGE-----\n\nCANARY\n-----END PGP MESSAGE-----']) {
      await fails(text, 'envelope_malformed');
    }
  });
});
