/** Values that an application sealed with its own transit key, and secrets in KV, against a real server. */
import assert from 'node:assert/strict';
import { FieldkeepError } from '../../src/errors.ts';
import { openTransitTexts } from '../../src/keys/transit-source.ts';
import { VaultError } from '../../src/keys/vault.ts';
import { readSecret } from '../../src/keys/vault-secret.ts';
import {
  describeVault,
  mountEngine,
  mountTransit,
  openAt,
  openVaultServer,
  type Opened,
  type VaultServer,
} from '../support/vault.ts';

describeVault(
  'keys/transit-source',
  () => {
    let server: VaultServer;
    let mount: string;
    let at: Opened;
    before(async () => {
      server = await openVaultServer({ own: true });
      mount = await mountTransit(server);
      await server.call('POST', `${mount}/keys/hr`, {});
      await server.call('POST', `${mount}/keys/derived`, { derived: true });
      at = openAt(server, { mount });
      await at.session.getToken();
    });
    after(async () => {
      at.session.stop();
      at.vault.close();
      await server.close();
    });

    async function seal(texts: readonly (string | Buffer)[], key = 'hr'): Promise<string[]> {
      const inputs = texts.map((text) => ({ plaintext: Buffer.from(text).toString('base64') }));
      const sealed: string[] = [];
      for (let i = 0; i < inputs.length; i += 100) {
        const answer = await server.call('POST', `${mount}/encrypt/${key}`, { batch_input: inputs.slice(i, i + 100) });
        sealed.push(...(answer.data!['batch_results'] as { ciphertext: string }[]).map(({ ciphertext }) => ciphertext));
      }
      return sealed;
    }
    const open = (texts: readonly string[], key = 'hr') => openTransitTexts(at, { mount, key }, texts);
    const codes = (opened: readonly (string | FieldkeepError)[]) =>
      opened.map((each) => (each instanceof FieldkeepError ? each.code : each));

    it('opens more than fit one request, in order, of every version of the key', async () => {
      const values = Array.from({ length: 600 }, (_, i) => `value ${i} ü`);
      const sealed = await seal(values.slice(0, 300));
      await server.call('POST', `${mount}/keys/hr/rotate`, {});
      sealed.push(...(await seal(values.slice(300))));
      const { calls } = at.vault.counters();
      assert.deepEqual(await open(sealed), values);
      assert.equal(at.vault.counters().calls - calls, 3);
    });

    it('opens long values, whose answer would not fit if they went together', async () => {
      const values = Array.from({ length: 300 }, (_, i) => String(i).padEnd(16_384, 'x'));
      assert.deepEqual(await open(await seal(values)), values);
    });

    it('opens the empty text, and asks nothing for no text', async () => {
      assert.deepEqual(await open(await seal([''])), ['']);
      const { calls } = at.vault.counters();
      assert.deepEqual(await open([]), []);
      assert.deepEqual(codes(await open(['123-45-6789'])), ['envelope_malformed']);
      assert.equal(at.vault.counters().calls, calls);
    });

    it('fails by item: damage, other keys, versions that are not there, no UTF-8, no envelopes', async () => {
      const [good, damaged, bytes] = await seal(['good', 'damaged', Buffer.from([0xff, 0x00])]);
      const [derived] = await seal(['other key']);
      await server.call('POST', `${mount}/keys/other`, {});
      const [other] = await seal(['other'], 'other');
      const opened = await open([
        ...[good!, `${damaged!.slice(0, -8)}AAAAAAA=`, other!, bytes!],
        ...['vault:v99:AAAA', 'vault:v1:A', '', 'plain', good!.replace('vault:v', 'vault:V'), derived!],
      ]);
      const failed = 'decryption_failed';
      const none = 'envelope_malformed';
      assert.deepEqual(codes(opened), ['good', failed, failed, failed, failed, failed, none, none, none, 'other key']);
    });

    it('throws when nothing can be said of any: no such key, no right, no Vault', async () => {
      const [sealed] = await seal(['value']);
      const isOutage = (error: unknown) => error instanceof VaultError && error.code === 'vault_unavailable';
      await assert.rejects(open([sealed!], 'absent'), isOutage);
      const { auth } = await server.call('POST', 'auth/token/create', { policies: ['default'] });
      const weak = openAt(server, { mount, auth: { method: 'token', token: auth!['client_token'] as string } });
      await assert.rejects(openTransitTexts(weak, { mount, key: 'hr' }, [sealed!]), isOutage);
      weak.session.stop();
      weak.vault.close();
      await server.seal();
      await assert.rejects(open([sealed!]), isOutage);
      await server.unseal();
      assert.deepEqual(await open([sealed!]), ['value']);
    });

    it('reads a field of a secret, in both versions of the engine', async () => {
      await mountEngine(server, 'kv2', { type: 'kv', options: { version: '2' } });
      await mountEngine(server, 'kv1', { type: 'kv', options: { version: '1' } });
      for (let n = 0; ; n += 1) {
        // Version 2 upgrades itself for a moment after it was mounted.
        const done = await server
          .call('POST', 'kv2/data/hr', { data: { passphrase: 'second' } })
          .catch(() => undefined);
        if (done !== undefined) break;
        if (n > 100) throw new Error('kv2 does not come up');
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      await server.call('POST', 'kv1/hr', { passphrase: 'first', data: 'beside', number: 7 });
      assert.equal(await readSecret(at, { path: 'kv2/data/hr', field: 'passphrase' }), 'second');
      assert.equal(await readSecret(at, { path: 'kv1/hr', field: 'passphrase' }), 'first');
      assert.equal(await readSecret(at, { path: 'kv1/hr', field: 'data' }), 'beside');
      for (const place of [
        { path: 'kv2/data/hr', field: 'absent' },
        { path: 'kv2/data/absent', field: 'passphrase' },
        { path: 'kv1/hr', field: 'number' },
        { path: 'kv2/hr', field: 'passphrase' },
      ]) {
        await assert.rejects(
          readSecret(at, place),
          (error: unknown) => error instanceof FieldkeepError && error.code === 'vault_unavailable',
        );
      }
    });
  },
  true,
);
