/** Openers of what others have sealed: where passphrases come from, and what is told when one is missing. */
import assert from 'node:assert/strict';
import { connect } from '../../src/db.ts';
import { FieldkeepError } from '../../src/errors.ts';
import type { Vault, VaultAnswer } from '../../src/keys/vault.ts';
import type { VaultSession } from '../../src/keys/vault-session.ts';
import { listVaultNeeds, openSources } from '../../src/rotation/sources.ts';
import { createTarget } from '../support/database.ts';

const bySecret = { by: 'pgcrypto', key: 'hr' } as const;

/** A Vault that answers what it is told to, and a session whose token is always good. */
function answering(answer: () => VaultAnswer) {
  const paths: string[] = [];
  const call = (_method: string, path: string) => {
    paths.push(path);
    return Promise.resolve().then(answer);
  };
  const vault = { call } as unknown as Vault;
  const session = { getToken: () => Promise.resolve('t') } as unknown as VaultSession;
  return { caller: { vault, session }, paths };
}

async function sealAll(passphrase: string, texts: readonly string[]): Promise<string[]> {
  const target = await createTarget();
  const db = await connect(target.ownerUrl, { name: 'sources' });
  try {
    await db.query('create extension pgcrypto schema public');
    const { rows } = await db.query<{ sealed: string }>(
      'select public.pgp_sym_encrypt(t, $2)::text as sealed from unnest($1::text[]) t',
      [texts, passphrase],
    );
    return rows.map(({ sealed }) => sealed);
  } finally {
    await db.end();
    await target.drop();
  }
}

describe('rotation/sources', () => {
  let sealed: string[];
  before(async () => {
    sealed = await sealAll('pass', ['one', 'two', 'three']);
  });
  const codes = (opened: readonly (string | FieldkeepError)[]) =>
    opened.map((each) => (each instanceof FieldkeepError ? each.code : each));

  it('opens with a passphrase of the environment, by item', async () => {
    const sources = openSources({ secrets: new Map([['hr', { passphrase: 'pass' }]]) });
    const opened = await sources.get(bySecret).open([sealed[0]!, 'plain', `${sealed[1]!.slice(0, -2)}00`, sealed[2]!]);
    assert.deepEqual(codes(opened), ['one', 'envelope_malformed', 'decryption_failed', 'three']);
    const wrong = openSources({ secrets: new Map([['hr', { passphrase: 'other' }]]) });
    assert.deepEqual(codes(await wrong.get(bySecret).open(sealed)), Array(3).fill('decryption_failed'));
  });

  it('asks Vault for a passphrase once, however many batches come, and again after it could not answer', async () => {
    let away = true;
    const { caller, paths } = answering(() => {
      if (away) throw new FieldkeepError('vault_unavailable', 'Vault is away.');
      return { data: { data: { phrase: 'pass' }, metadata: {} } };
    });
    const secrets = new Map([['hr', { path: 'secret/data/hr', field: 'phrase' }]]);
    const sources = openSources({ vault: caller, secrets });
    await assert.rejects(
      sources.get(bySecret).open(sealed),
      (error: unknown) => (error as FieldkeepError).code === 'vault_unavailable',
    );
    away = false;
    const batches = [1, 2, 3].map(() => sources.get(bySecret).open(sealed));
    for (const opened of await Promise.all(batches)) assert.deepEqual(opened, ['one', 'two', 'three']);
    assert.deepEqual(paths, ['secret/data/hr', 'secret/data/hr']);
  });

  it('says what is missing, before anything is opened', () => {
    const conflict = (words: RegExp) => (error: unknown) =>
      error instanceof FieldkeepError && error.code === 'conflict' && words.test(error.message);
    assert.throws(() => openSources().get(bySecret), conflict(/SOURCE_HR_SECRET or SOURCE_HR_VAULT/));
    const secrets = new Map([['hr', { path: 'secret/data/hr', field: 'phrase' }]]);
    assert.throws(() => openSources({ secrets }).get(bySecret), conflict(/set VAULT_ADDR/));
    assert.throws(() => openSources().get({ by: 'transit', key: 'hr' }), conflict(/set VAULT_ADDR/));
  });

  it('asks the transit engine that the policy names', async () => {
    const plaintext = Buffer.from('one').toString('base64');
    const { caller, paths } = answering(() => ({ data: { batch_results: [{ plaintext }] } }));
    const sources = openSources({ vault: caller });
    assert.deepEqual(await sources.get({ by: 'transit', key: 'hr' }).open(['vault:v1:AAAA']), ['one']);
    await sources.get({ by: 'transit', key: 'hr', mount: 'deep/transit' }).open(['vault:v1:AAAA']);
    assert.deepEqual(paths, ['transit/decrypt/hr', 'deep/transit/decrypt/hr']);
  });

  it('takes no answer that leaves a text out', async () => {
    for (const data of [{}, { batch_results: [] }, { batch_results: [{}] }, { batch_results: [null] }]) {
      const { caller } = answering(() => ({ data }));
      const opening = openSources({ vault: caller }).get({ by: 'transit', key: 'hr' }).open(['vault:v1:AAAA']);
      await assert.rejects(opening, (error: unknown) => (error as FieldkeepError).code === 'vault_unavailable');
    }
  });

  it('says what workers need at Vault, each once', () => {
    const secrets = new Map([
      ['hr', { path: 'secret/data/hr', field: 'a' }],
      ['own', { passphrase: 'p' }],
    ]);
    const column = (name: string, sealed?: Parameters<typeof listVaultNeeds>[0][number]['sealed']) => ({
      class: name,
      ...(sealed !== undefined && { sealed }),
    });
    const columns = [
      ...[column('ssn', bySecret), column('ssn', bySecret), column('bank', bySecret), column('bank')],
      ...[column('ssn', { by: 'pgcrypto', key: 'own' }), column('ssn', { by: 'transit', key: 'hr' })],
    ];
    assert.deepEqual(listVaultNeeds(columns, secrets), [
      { family: 'ssn', path: 'secret/data/hr', capability: 'read' },
      { family: 'bank', path: 'secret/data/hr', capability: 'read' },
      { family: 'ssn', path: 'transit/decrypt/hr', capability: 'update' },
    ]);
  });
});
