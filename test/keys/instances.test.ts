import assert from 'node:assert/strict';
import type { Pool } from '../../src/db.ts';
import { startHeartbeat } from '../../src/keys/instances.ts';
import type { Keyring } from '../../src/keys/keyring.ts';
import type { KeyVersion } from '../../src/keys/version.ts';

describe('keys/instances', () => {
  it('loses no use of a version: not when the database is away, and not at the end', async () => {
    const noted: unknown[] = [];
    let isAway = true;
    const query = (text: string, values: unknown[]) => {
      if (!text.includes('key_uses')) return Promise.resolve({ rows: [] });
      if (isAway) return Promise.reject(new Error('away'));
      noted.push(values);
      return Promise.resolve({ rows: [] });
    };
    const use = (version: number) => ({ family: 'ssn', version }) as KeyVersion;
    const used = new Set([use(1), use(2)]);
    const keyring = { state: { families: new Map() }, used } as unknown as Keyring;
    const errors: unknown[] = [];
    const { beat, stop } = startHeartbeat({
      ...{ pool: { query } as unknown as Pool, keyring, id: 'one', families: null },
      onError: (error) => errors.push(error),
    });
    await beat();
    assert.equal(errors.length, 1);
    isAway = false;
    await beat();
    assert.deepEqual(noted.toSorted(), [
      ['ssn', 1],
      ['ssn', 2],
    ]);
    used.add(use(3));
    await stop();
    assert.deepEqual(noted.at(-1), ['ssn', 3]);
    assert.equal(used.size, 0);
  });
});
