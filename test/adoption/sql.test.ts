/** The printed SQL runs as it is printed, by psql's rules: statement by statement, again, on tables of every kind. */
import assert from 'node:assert/strict';
import { openPool, quoteIdentifier as q, type Pool } from '../../src/db.ts';
import {
  formatFinish,
  formatPreparation,
  formatUndo,
  type AdoptedColumn,
  toTriggerColumn,
} from '../../src/adoption/sql.ts';
import { findMissingTriggers } from '../../src/targets/adoption-triggers.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';

const plain = { partitions: [], isNested: false };

/** Statements of a script, as psql finds them: a semicolon ends one unless it stands in quotes, comments or $…$. */
function splitSql(script: string): string[] {
  const token = /--[^\n]*|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\w*)\$[\s\S]*?\$\1\$|;|[^;'"$-]+|[-$]/g;
  const statements: string[] = [''];
  for (const [text] of script.matchAll(token)) {
    if (text === ';') statements.push('');
    else if (!text.startsWith('--')) statements[statements.length - 1] += text;
  }
  return statements.map((each) => each.trim()).filter((each) => each !== '');
}

describe('adoption/sql', () => {
  let target: TestDatabase;
  let pool: Pool;
  before(async () => {
    target = await createTarget();
    pool = openPool(target.ownerUrl, { max: 1, name: 'adoption sql' });
    await pool.query('create schema app');
  });
  after(async () => {
    await pool.end();
    await target.drop();
  });

  const column = (more: Partial<AdoptedColumn> = {}): AdoptedColumn => ({
    ...{ schema: 'app', name: 'people', key: ['id'], tenant: { value: 'acme' }, column: 'pay_enc', from: 'pay' },
    index: [{ name: 'eq', column: 'pay_eq', bits: 12, unique: false }],
    ...more,
  });
  async function runScript(script: string): Promise<void> {
    for (const statement of splitSql(script)) await pool.query(statement);
  }
  const indexesOf = async (schema: string, name: string) => {
    const { rows } = await pool.query<{ def: string }>(
      `select pg_get_indexdef(indexrelid) as def from pg_index
       where indrelid = format('%I.%I', $1::text, $2::text)::regclass and not indisprimary and indisvalid`,
      [schema, name],
    );
    return rows.map(({ def }) => def.replace(/^CREATE INDEX .* USING btree /, '')).sort();
  };

  it('prepares a table, finishes with it, and may be run twice', async () => {
    await pool.query('create table app.people (id int primary key, pay numeric)');
    await pool.query('insert into app.people values (1, 10)');
    for (let n = 0; n < 2; n += 1) await runScript(formatPreparation(column(), plain));
    assert.deepEqual(await findMissingTriggers(pool, toTriggerColumn(column())!), []);
    assert.deepEqual(await indexesOf('app', 'people'), [
      '(fieldkeep.fe_version(pay_enc), id)',
      '(id) WHERE ((pay IS NOT NULL) AND (pay_enc IS NULL))',
    ]);
    await assert.rejects(runScript(formatFinish(column(), plain)), /is violated by some row/);
    await pool.query('drop table app.people; create table app.people (id int primary key, pay numeric)');
    await runScript(formatPreparation(column(), plain));
    for (let n = 0; n < 2; n += 1) await runScript(formatFinish(column(), plain));
    assert.equal((await findMissingTriggers(pool, toTriggerColumn(column())!)).length, 6);
    assert.deepEqual(await indexesOf('app', 'people'), ['(fieldkeep.fe_version(pay_enc), id)']);
    await assert.rejects(pool.query('insert into app.people values (1, 10)'), /violates check constraint/);
    await pool.query(`insert into app.people values (1, null, 'E')`);
    await runScript(formatPreparation(column(), plain));
    await pool.query('update app.people set pay = 10'); // plaintext may come back
  });

  it('leaves a table as it was when all is undone', async () => {
    await pool.query('drop table if exists app.people; create table app.people (id int primary key, pay numeric)');
    await runScript(formatPreparation(column(), plain));
    for (let n = 0; n < 2; n += 1) await runScript(formatUndo(column(), plain));
    assert.deepEqual(await indexesOf('app', 'people'), []);
    assert.equal((await findMissingTriggers(pool, toTriggerColumn(column())!)).length, 6);
    const { rows } = await pool.query(`select from pg_proc p where p.pronamespace = 'app'::regnamespace`);
    assert.equal(rows.length, 0);
    for (const line of formatUndo(column(), plain).matchAll(/^-- (alter table .*)$/gm)) await pool.query(line[1]!);
    const left = await pool.query<{ name: string }>(
      `select attname as name from pg_attribute where attrelid = 'app.people'::regclass and attnum > 0 and not attisdropped`,
    );
    assert.deepEqual(
      left.rows.map(({ name }) => name),
      ['id', 'pay'],
    );
  });

  it('prints no trigger and no column for envelopes where a column is adopted in place', async () => {
    const { from: _, ...inPlace } = column({ column: 'pay' });
    await pool.query('drop table if exists app.people; create table app.people (id int primary key, pay text)');
    const script = formatPreparation(inPlace, plain);
    assert.doesNotMatch(script, /trigger|"pay" text/);
    await runScript(script);
    await runScript(formatFinish(inPlace, plain));
    assert.deepEqual(await indexesOf('app', 'people'), ['(fieldkeep.fe_version(pay), id)']);
    await runScript(formatUndo(inPlace, plain));
    assert.deepEqual(await indexesOf('app', 'people'), []);
  });

  it('indexes a partitioned table by its partitions, and one whose partitions are partitioned as a whole', async () => {
    await pool.query(
      `drop table app.people;
       create table app.people (id int, r text, pay int, primary key (id, r)) partition by list (r);
       create schema parts;
       create table parts.eu partition of app.people for values in ('eu');
       create table app.us partition of app.people for values in ('us')`,
    );
    const parts = {
      isNested: false,
      partitions: [
        { schema: 'parts', name: 'eu' },
        { schema: 'app', name: 'us' },
      ],
    };
    const keyed = column({ key: ['id', 'r'] });
    for (let n = 0; n < 2; n += 1) await runScript(formatPreparation(keyed, parts));
    for (const [schema, name] of [
      ['app', 'people'],
      ['parts', 'eu'],
      ['app', 'us'],
    ] as const) {
      assert.deepEqual(await indexesOf(schema, name), [
        '(fieldkeep.fe_version(pay_enc), id, r)',
        '(id, r) WHERE ((pay IS NOT NULL) AND (pay_enc IS NULL))',
      ]);
    }
    await runScript(formatUndo(keyed, parts));
    assert.deepEqual(await indexesOf('parts', 'eu'), []);
    await runScript(formatPreparation(keyed, { partitions: [], isNested: true }));
    await runScript(formatFinish(keyed, { partitions: [], isNested: true }));
    assert.deepEqual(await indexesOf('app', 'us'), ['(fieldkeep.fe_version(pay_enc), id, r)']);
  });

  it('takes names that would end a comment, a quote or a dollar quote', async () => {
    const odd = column({
      ...{ schema: `s"; drop schema app; --`, name: `t\n; drop schema app; --`, key: [`k"'1`, 'K2'] },
      ...{ column: `e $fieldkeep$;'`, from: `f\r\n'; --"` },
      index: [{ name: 'eq', column: `i "\n'`, bits: 12, unique: false }],
    });
    await pool.query(`create schema ${q(odd.schema)}`);
    await pool.query(
      `create table ${q(odd.schema)}.${q(odd.name)} (${q(odd.key[0]!)} text, ${q('K2')} uuid, ${q(odd.from!)} text)`,
    );
    await runScript(formatPreparation(odd, plain));
    assert.deepEqual(await findMissingTriggers(pool, toTriggerColumn(odd)!), []);
    await runScript(formatFinish(odd, plain));
    await runScript(formatUndo(odd, plain));
    assert.equal((await pool.query(`select from pg_namespace where nspname = 'app'`)).rowCount, 1);
  });
});
