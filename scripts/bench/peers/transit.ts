/**
 * Re-encryption with transit alone: ciphertexts of a derived key are read in batches, rewrapped by the server under the
 * key's newest version, and written with the same statement as ours. A request holds no more than 249 of them, each
 * with its context (OpenBao takes 1,000 JSON strings a request, names counted).
 */
import type { Pool } from '../../../src/db.ts';
import { sweep, type Row, type TableShape } from '../engine.ts';
import { pace, type Peer } from '../pace.ts';
import { tenantOf, valueOf } from '../people.ts';
import type { BenchVault } from '../vault-server.ts';
import { copyPeople } from './copy.ts';

const batchItems = 249;
const keyName = 'rewrapped';

interface Item {
  readonly id: string | number;
  readonly tenant: string;
}

const contextOf = ({ id, tenant }: Item) => Buffer.from(`${tenant}/${id}`).toString('base64');

function readCiphertexts({ data = {} }: Awaited<ReturnType<BenchVault['call']>>): string[] {
  return (data['batch_results'] as { ciphertext: string }[]).map(({ ciphertext }) => ciphertext);
}

export async function openTransitPeer(
  owner: Pool,
  people: TableShape,
  vault: BenchVault,
  { rows, lanes }: { rows: number; lanes: number },
): Promise<Peer> {
  const { mount } = vault.settings;
  const table = { ...people, name: 'rewrapped', address: 'demo.rewrapped' };
  await vault.call('POST', `${mount}/keys/${keyName}`, { type: 'aes256-gcm96', derived: true });

  async function encrypt(ids: readonly number[]): Promise<string[]> {
    const sealed: string[] = [];
    for (let from = 0; from < ids.length; from += batchItems) {
      const items = ids.slice(from, from + batchItems).map((id) => ({
        plaintext: Buffer.from(valueOf('salary', id)).toString('base64'),
        context: contextOf({ id, tenant: tenantOf(id) }),
      }));
      sealed.push(...readCiphertexts(await vault.call('POST', `${mount}/encrypt/${keyName}`, { batch_input: items })));
    }
    return sealed;
  }

  async function rewrap(batch: readonly Row[]): Promise<string[][]> {
    const items = batch.map(({ key, tenant, values }) => ({
      ciphertext: values[0],
      context: contextOf({ id: key[0]!, tenant: tenant! }),
    }));
    const answer = await vault.call('POST', `${mount}/rewrap/${keyName}`, { batch_input: items });
    return readCiphertexts(answer).map((text) => [text]);
  }

  await copyPeople(owner, 'rewrapped', rows, encrypt);
  return {
    name: `transit rewrap, ${batchItems} a request`,
    async rotate() {
      await vault.call('POST', `${mount}/keys/${keyName}/rotate`, {});
      // For fe_version a ciphertext of transit is no envelope: version 0.
      const stale = [{ column: 'salary', value: [0] }];
      const what = { table, columns: ['salary'], stale, rowsMax: batchItems, renew: rewrap };
      return await pace(() => sweep(owner, what, rows, lanes));
    },
  };
}
