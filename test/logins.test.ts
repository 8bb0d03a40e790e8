/** Logins of a process at Fieldkeep's own database: one for everything, as on a laptop, and one that is not let in. */
import assert from 'node:assert/strict';
import { pino } from 'pino';
import { readConfig } from '../src/config.ts';
import { connect, roleOf } from '../src/db.ts';
import { StartupError } from '../src/errors.ts';
import { migrateAll, openDatabase } from '../src/logins.ts';
import { createTarget, type TestDatabase } from './support/database.ts';

const log = pino({ level: 'silent' });

describe('logins', () => {
  let empty: TestDatabase;
  beforeEach(async () => {
    empty = await createTarget(false);
  });
  afterEach(() => empty.drop());

  const ask = async (sql: string, values: unknown[]) => {
    const client = await connect(empty.ownerUrl, { name: 'test' });
    try {
      return (await client.query<Record<string, unknown>>(sql, values)).rows[0];
    } finally {
      await client.end();
    }
  };
  const configOf = (url: string) => readConfig({ DATABASE_URL: url, DATABASE_OWNER_URL: empty.ownerUrl });

  it('one login alone has every duty outside production, that of the rows too', async () => {
    const config = configOf(empty.workerUrl);
    const database = await openDatabase(config, []);
    assert.equal(database.rows.get(undefined), empty.workerUrl);
    await migrateAll(config, database, log);
    const may = `select has_column_privilege($1, 'demo.employees', 'bank', 'update') as rows,
        has_column_privilege($1, 'fieldkeep.asked_calls', 'mac', 'insert') as api,
        has_table_privilege($1, 'fieldkeep.key_versions', 'update') as worker`;
    assert.deepEqual(await ask(may, [roleOf(empty.workerUrl)]), { rows: true, api: true, worker: true });
    const apart = await openDatabase({ ...config, production: true }, []);
    assert.equal(apart.rows.get(undefined), undefined);
  });

  it('a login that is not let in stops the start before its owner changes anything', async () => {
    const wrong = new URL(empty.workerUrl);
    wrong.username = 'nobody_of_this_name';
    const config = configOf(wrong.href);
    const database = await openDatabase(config, []);
    await assert.rejects(migrateAll(config, database, log), (error: unknown) => {
      assert.ok(error instanceof StartupError);
      assert.match(error.message, /refuses the credentials of DATABASE_URL/);
      return true;
    });
    assert.deepEqual(await ask(`select to_regnamespace('fieldkeep') as made`, []), { made: null });
  });
});
