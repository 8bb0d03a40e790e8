/** Sessions are as session.ts says, or nobody gets them; and what a person then reads. */
import assert from 'node:assert/strict';
import { connect, findRefusal, openPool, toUnavailable } from '../src/db.ts';
import { FieldkeepError } from '../src/errors.ts';
import { proofOf, SessionRefused, settingsToHave, settingsToSend, spellMs, startOptions } from '../src/session.ts';
import { createTarget, type TestDatabase } from './support/database.ts';
import { openForgetful } from './support/pooler.ts';

/** What each setting is set to by those who set up the database; ours must not follow. */
export const wrong: Readonly<Record<string, string>> = {
  search_path: 'public, pg_catalog',
  client_encoding: 'LATIN1',
  array_nulls: 'off',
  bytea_output: 'escape',
  datestyle: 'SQL, DMY',
  extra_float_digits: '-15',
  intervalstyle: 'sql_standard',
  lc_monetary: 'C.UTF-8',
  lc_numeric: 'C.UTF-8',
  lc_time: 'C.UTF-8',
  timezone: 'Asia/Tokyo',
  timezone_abbreviations: 'Australia',
  xmlbinary: 'hex',
  xmloption: 'document',
  backslash_quote: 'off',
  quote_all_identifiers: 'on',
  standard_conforming_strings: 'off',
  transform_null_equals: 'on',
  default_transaction_deferrable: 'on',
  default_transaction_isolation: 'serializable',
  exit_on_error: 'on',
  gin_fuzzy_search_limit: '1',
  row_security: 'on',
  synchronous_commit: 'off',
  lock_timeout: '1ms',
  statement_timeout: '1ms',
  'fieldkeep.reencrypting': 'off',
};

describe('a session', () => {
  let database: TestDatabase;
  before(async () => (database = await createTarget(false)));
  after(() => database.drop());

  /** From outside: a session of the database itself may be refused. */
  async function alter(statement: string): Promise<void> {
    const url = new URL(database.ownerUrl);
    const name = url.pathname.slice(1);
    url.pathname = '/postgres';
    const db = await connect(url.href, { name: 'admin' });
    try {
      await db.query(`alter database ${name} ${statement}`);
    } finally {
      await db.end();
    }
  }
  const open = () => connect(database.workerUrl, { name: 'test' });

  it('has every setting that is sent, whatever the database says', async () => {
    const settings = settingsToSend({});
    assert.deepEqual(
      Object.keys(settings).sort(),
      Object.keys(wrong)
        .filter((name) => name in settings)
        .sort(),
    );
    for (const name of Object.keys(settings)) await alter(`set ${name} = ${quoteEach(wrong[name]!)}`);
    const plain = openPool(database.workerUrl, { max: 1, name: 'test' });
    try {
      for (const [name, value] of Object.entries(settings)) {
        const { rows } = await plain.query<{ now: string; reset: string }>(
          `select current_setting($1) as now, setting as reset from pg_settings where lower(name) = $1`,
          [name],
        );
        assert.equal(rows[0]!.now, value, name);
      }
    } finally {
      await plain.end();
      await alter('reset all');
    }
  });

  for (const [name, value, words] of [
    ['session_replication_role', 'replica', /session_replication_role is replica, and must be origin\. No trigger/],
    ['default_transaction_read_only', 'on', /default_transaction_read_only is on, and must be off\. Nothing may be/],
  ] as const) {
    it(`is refused where ${name} is ${value}, which is not ours to set`, async () => {
      await alter(`set ${name} = ${value}`);
      try {
        await assert.rejects(open(), (error) => {
          assert.ok(error instanceof SessionRefused);
          assert.match(error.message, words);
          assert.match(error.message, new RegExp(`alter role … reset ${name}, alter database … reset ${name}`));
          return true;
        });
        const reader = await connect(database.workerUrl, {
          name: 'test',
          settings: { default_transaction_read_only: 'on' },
        }).catch((error: unknown) => findRefusal(error));
        assert.equal(reader instanceof SessionRefused, name === 'session_replication_role');
        if (reader !== undefined && !(reader instanceof SessionRefused)) await reader.end();
      } finally {
        await alter('reset all');
      }
    });
  }

  it('is refused where a pooler drops what it starts with; an agent is told no more than that the database is away', async () => {
    const pooler = await openForgetful(database.ownerUrl);
    const pool = openPool(pooler.through(database.workerUrl), { max: 1, name: 'test' });
    try {
      const refused = await pool.query('select 1').then(
        () => undefined,
        (error: unknown) => findRefusal(error),
      );
      assert.match(
        refused!.message,
        /^A session that is not as it must be: search_path is "\$user", public, and must be pg_catalog, pg_temp \(and \d+ more\)\. A pooler in between .* Connect to Postgres itself\.$/,
      );
      const told = toUnavailable(refused);
      assert.ok(told instanceof FieldkeepError && told.code === 'database_unavailable');
    } finally {
      await pool.end();
      await pooler.close();
    }
  });

  it('proves itself in a statement, and fails it where any setting has changed', async () => {
    const proof = proofOf(settingsToHave({}));
    const db = await open();
    try {
      const ask = async () => (await db.query<{ holds: boolean }>(`select ${proof} as holds`)).rows[0]!.holds;
      assert.equal(await ask(), true);
      for (const [name, value] of Object.entries(settingsToSend({}))) {
        if (name.endsWith('_timeout') || name === 'exit_on_error') continue; // the latter ends the session at the error
        await db.query(`begin; set local ${name} = ${quoteEach(wrong[name]!)}`);
        await assert.rejects(ask(), (error) => {
          assert.equal(findRefusal(error)?.message.includes(`${name} was changed after it began`), true, name);
          return true;
        });
        await db.query('rollback');
        assert.equal((await db.query<string[]>({ text: `show ${name}`, rowMode: 'array' })).rows[0]![0], value);
      }
      assert.equal(await ask(), true);
      // Somebody who defines the parameter that it asks for makes it false, and no error: nothing is found, nothing written.
      await db.query(`set array_nulls = off; set fieldkeep.lost.array_nulls = 'x'`);
      assert.equal(await ask(), false);
    } finally {
      await db.end();
    }
  });

  it('spells times and options as Postgres does', () => {
    assert.deepEqual([0, 1, 250, 1500, 2000, 60_000, 300_000, 3_600_000, 86_400_000].map(spellMs), [
      ...['0', '1ms', '250ms', '1500ms', '2s', '1min', '5min', '1h', '1d'],
    ]);
    assert.equal(startOptions({ a: 'x, y', b: '\\' }), '-c a=x,\\ y -c b=\\\\');
  });

  it('shows no value that somebody made up', () => {
    const shown = (found: string | null) =>
      SessionRefused.onConnecting([{ name: 'timezone', found, needed: 'UTC' }]).message;
    assert.match(shown('Asia/Tokyo'), /timezone is Asia\/Tokyo, and/);
    assert.match(shown(null), /timezone is not set, and/);
    for (const odd of ['123-45-6789\n', `'; drop`, 'x'.repeat(61)]) assert.match(shown(odd), /is another one, and/);
  });
});

/** A list stays a list: `set search_path = 'a, b'` would name one schema. */
function quoteEach(value: string): string {
  return value
    .split(', ')
    .map((part) => `'${part}'`)
    .join(', ');
}
