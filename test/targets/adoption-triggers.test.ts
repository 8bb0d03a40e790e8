/**
 * What the printed triggers do, against real Postgres. The engine does not run here: a test seals and re-encrypts by hand, as
 * its sessions do, with `fieldkeep.reencrypting`.
 */
import assert from 'node:assert/strict';
import { openPool, quoteIdentifier as q, withClient, type Client, type Pool } from '../../src/db.ts';
import {
  buildTriggers,
  findMissingTriggers,
  formatTriggerDrops,
  formatTriggers,
  type TriggerColumn,
} from '../../src/targets/adoption-triggers.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';

const people: TriggerColumn = {
  ...{ schema: 'app', name: 'people', column: 'pay_enc', source: 'pay', indexColumns: ['pay_eq'], bound: [] },
};

/** Source, envelope, token. */
type State = readonly [string | null, string | null, string | null];

describe('targets/adoption-triggers', () => {
  let target: TestDatabase;
  let pool: Pool;
  before(async () => {
    target = await createTarget();
    pool = openPool(target.ownerUrl, { max: 2, name: 'triggers' });
    await pool.query('create schema app');
  });
  after(async () => {
    await pool.end();
    await target.drop();
  });

  async function install(of: TriggerColumn): Promise<void> {
    for (const statement of formatTriggers(of)) await pool.query(statement);
  }

  async function make(type = 'text', more = ''): Promise<void> {
    await pool.query('drop table if exists app.people cascade');
    await pool.query(
      `create table app.people (id int primary key, name text, pay ${type}, pay_enc text, pay_eq text ${more})`,
    );
    await install(people);
  }

  /** As the worker's sessions do. */
  async function asWorker<T>(work: (db: Client) => Promise<T>): Promise<T> {
    return await withClient(pool, async (db) => {
      await db.query(`set fieldkeep.reencrypting = on`);
      try {
        return await work(db);
      } finally {
        await db.query('reset fieldkeep.reencrypting');
      }
    });
  }

  const put = (state: State, id = 1) =>
    asWorker((db) =>
      db.query(
        `insert into app.people (id, name, pay, pay_enc, pay_eq) values ($1, 'n', $2, $3, $4)
         on conflict (id) do update set pay = excluded.pay, pay_enc = excluded.pay_enc, pay_eq = excluded.pay_eq`,
        [id, ...state],
      ),
    );
  async function read(id = 1): Promise<State> {
    const { rows } = await pool.query<{ s: State }>(
      'select array[pay::text, pay_enc, pay_eq] as s from app.people where id = $1',
      [id],
    );
    return rows[0]!.s;
  }
  const places = ['pay', 'pay_enc', 'pay_eq'];
  /** Sets columns of row 1; '=' is the value that is there, as whoever saves a whole row sends it. */
  async function save(from: State, set: Readonly<Record<string, string | null>>): Promise<void> {
    const names = Object.keys(set);
    const values = names.map((name) => (set[name] === '=' ? from[places.indexOf(name)] : set[name]));
    await pool.query(
      `update app.people set ${names.map((name, i) => `${name} = $${i + 1}`).join(', ')} where id = 1`,
      values,
    );
  }

  /** The rules once more, in the words that people are told them in. */
  function expect([pay, env, token]: State, set: Readonly<Record<string, string | null>>): State {
    const at = (name: string, was: string | null) => {
      const sent = set[name];
      return sent === undefined || sent === '=' ? was : sent;
    };
    const [newPay, newEnv, newToken] = [at('pay', pay), at('pay_enc', env), at('pay_eq', token)];
    if (newPay !== pay) {
      const movedOver = newPay === null && newEnv !== null && newEnv !== env;
      return movedOver ? [null, newEnv, newToken] : [newPay, null, null];
    }
    if (pay === null) return [null, newEnv, newToken]; // it has moved: the source has no say any more
    if ('pay' in set) return [pay, env, token]; // the source holds the value, so it alone counts
    return newEnv !== env ? [null, newEnv, newToken] : [pay, env, newToken];
  }

  describe('on one row', () => {
    before(() => make());

    // What is there · what the statement sets · what is there afterwards. '=': the column is named with the value it has.
    const cases: readonly [State, Readonly<Record<string, string | null>>, State, string][] = [
      [['10', 'E', 'T'], { name: 'x' }, ['10', 'E', 'T'], 'something else changes'],
      [['10', null, null], { pay: '20' }, ['20', null, null], 'source, not sealed yet'],
      [['10', 'E', 'T'], { pay: '20' }, ['20', null, null], 'source'],
      [['10', 'E', 'T'], { pay: null }, [null, null, null], 'source becomes null'],
      [[null, 'E', 'T'], { pay: '20' }, ['20', null, null], 'source comes back after it moved'],
      [[null, null, null], { pay: '20' }, ['20', null, null], 'source comes'],
      [['10', 'E', 'T'], { pay: '=' }, ['10', 'E', 'T'], 'source is named and stays'],
      [['10', 'E', 'T'], { pay: '=', pay_enc: null, pay_eq: null }, ['10', 'E', 'T'], 'whole row from before sealing'],
      [
        ['10', 'E2', 'T2'],
        { pay: '=', pay_enc: 'E1', pay_eq: 'T1' },
        ['10', 'E2', 'T2'],
        'whole row from before rotation',
      ],
      [
        ['10', null, null],
        { pay: '=', pay_enc: 'E1', pay_eq: 'T1' },
        ['10', null, null],
        'whole row from before a change',
      ],
      [['10', 'E', 'T'], { pay: '=', pay_eq: null }, ['10', 'E', 'T'], 'whole row that knows the token only'],
      [['10', 'E', 'T'], { pay: '20', pay_enc: 'E', pay_eq: 'T' }, ['20', null, null], 'whole row with another source'],
      [['10', 'E', 'T'], { pay: '20', pay_enc: 'E9', pay_eq: 'T9' }, ['20', null, null], 'both, to values'],
      [['10', null, null], { pay: '20', pay_enc: 'E9', pay_eq: 'T9' }, ['20', null, null], 'both, not sealed yet'],
      [['10', 'E', 'T'], { pay: null, pay_enc: 'E9', pay_eq: 'T9' }, [null, 'E9', 'T9'], 'moved over in one statement'],
      [['10', null, null], { pay: null, pay_enc: 'E9', pay_eq: 'T9' }, [null, 'E9', 'T9'], 'moved over before sealing'],
      [['10', 'E', 'T'], { pay: null, pay_enc: 'E9' }, [null, 'E9', 'T'], 'moved over, token not named'],
      [['10', 'E', 'T'], { pay: null, pay_enc: '=' }, [null, null, null], 'source null, envelope as it was'],
      [['10', 'E', 'T'], { pay: null, pay_enc: null }, [null, null, null], 'both null'],
      [['10', 'E', 'T'], { pay_enc: 'E9', pay_eq: 'T9' }, [null, 'E9', 'T9'], 'envelope'],
      [['10', null, null], { pay_enc: 'E9', pay_eq: 'T9' }, [null, 'E9', 'T9'], 'envelope before sealing'],
      [['10', 'E', 'T'], { pay_enc: null, pay_eq: null }, [null, null, null], 'envelope becomes null'],
      [['10', 'E', 'T'], { pay_enc: '=' }, ['10', 'E', 'T'], 'envelope is named and stays'],
      [['10', null, null], { pay_enc: null }, ['10', null, null], 'envelope was null and is set to null'],
      [[null, 'E', 'T'], { pay_enc: 'E9', pay_eq: 'T9' }, [null, 'E9', 'T9'], 'envelope after the move'],
      [[null, 'E', 'T'], { pay: null, pay_enc: 'E9', pay_eq: 'T9' }, [null, 'E9', 'T9'], 'whole row after the move'],
      [[null, 'E', 'T'], { pay: null, pay_enc: null, pay_eq: null }, [null, null, null], 'all null after the move'],
      [[null, null, null], { pay_enc: 'E9', pay_eq: 'T9' }, [null, 'E9', 'T9'], 'envelope where nothing was'],
    ];
    for (const [from, set, to, what] of cases) {
      it(`update: ${what}`, async () => {
        await put(from);
        await save(from, set);
        assert.deepEqual(await read(), to);
      });
    }

    it('every other combination goes by the same rules', async () => {
      const texts = ['', '=', null, 'new'];
      for (const from of [
        ['10', 'E', 'T'],
        ['10', null, null],
        [null, 'E', 'T'],
        [null, null, null],
      ] as const) {
        for (const pay of texts) {
          for (const env of texts) {
            for (const token of texts) {
              const set = Object.fromEntries(
                [
                  ['name', 'n'],
                  ['pay', pay],
                  ['pay_enc', env],
                  ['pay_eq', token],
                ].filter(([, text]) => text !== ''),
              ) as Record<string, string | null>;
              await put(from);
              await save(from, set);
              assert.deepEqual(await read(), expect(from, set), JSON.stringify([from, set]));
            }
          }
        }
      }
    });

    it('insert: what holds a source has no envelope yet; what holds none keeps its own', async () => {
      for (const [row, to] of [
        [
          ['10', 'E', 'T'],
          ['10', null, null],
        ],
        [
          ['10', null, 'T'],
          ['10', null, null],
        ],
        [
          ['10', null, null],
          ['10', null, null],
        ],
        [
          [null, 'E', 'T'],
          [null, 'E', 'T'],
        ],
        [
          [null, null, null],
          [null, null, null],
        ],
      ] as const) {
        await pool.query('delete from app.people');
        await pool.query(`insert into app.people values (1, 'n', $1, $2, $3)`, [...row]);
        assert.deepEqual(await read(), to);
      }
    });

    it('lets re-encryption be: sealing, rotating, finishing, undoing', async () => {
      await put(['10', null, null]);
      const steps: [string, State][] = [
        [`pay_enc = 'E', pay_eq = 'T'`, ['10', 'E', 'T']],
        [`pay_enc = 'E2', pay_eq = 'T2'`, ['10', 'E2', 'T2']],
        [`pay = null`, [null, 'E2', 'T2']],
        [`pay = '10', pay_enc = null, pay_eq = null`, ['10', null, null]],
      ];
      for (const [set, to] of steps) {
        await asWorker((db) => db.query(`update app.people set ${set} where id = 1`));
        assert.deepEqual(await read(), to);
      }
      await pool.query('delete from app.people');
      await asWorker((db) => db.query(`insert into app.people values (1, 'n', '10', 'E', 'T')`));
      assert.deepEqual(await read(), ['10', 'E', 'T']);
    });
  });

  it('knows a change of any type by what is stored, where equality says nothing or too little', async () => {
    await pool.query(`create collation app.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`);
    const types: [string, string, string][] = [
      ['json', '{"a": 1}', '{"a":1}'],
      ['jsonb', '{"a": 1}', '{"a": 2}'],
      ['numeric(12,2)', '10.00', '10.01'],
      ['numeric', '1.0', '1.00'],
      ['point', '(1,2)', '(1,3)'],
      ['xml', '<a/>', '<b/>'],
      ['bytea', '\\x00', '\\x01'],
      ['text collate app.loose', 'abc', 'ABC'],
      ['timestamptz', '2020-01-01T00:00:00Z', '2020-01-01T00:00:01Z'],
      ['money', '1.00', '1.01'],
      ['int[]', '{1,null}', '{1,2}'],
      ['text', 'x'.repeat(9000) + '1', 'x'.repeat(9000) + '2'],
    ];
    for (const [type, one, other] of types) {
      await make(type);
      await put([one, 'E', 'T']);
      await pool.query('update app.people set pay = $1, pay_enc = null', [one]);
      assert.equal((await read())[1], 'E', `${type}: named and the same`);
      await pool.query('update app.people set pay = $1', [other]);
      assert.deepEqual((await read()).slice(1), [null, null], type);
    }
  });

  it('stands beside triggers of the customer’s, whose changes count', async () => {
    await make();
    await pool.query(
      `create or replace function app.tidy() returns trigger language plpgsql as
       'begin new.pay := trim(new.pay); return new; end'`,
    );
    await pool.query(
      `create trigger tidy before insert or update on app.people for each row execute function app.tidy()`,
    );
    await pool.query(`insert into app.people values (1, 'n', ' 10 ', 'E', 'T')`);
    assert.deepEqual(await read(), ['10', null, null]);
    await put(['10', 'E', 'T']);
    await save(['10', 'E', 'T'], { pay: ' 10 ', pay_enc: null });
    assert.deepEqual(await read(), ['10', 'E', 'T'], 'tidied to what was there');
    await save(['10', 'E', 'T'], { pay: ' 20 ' });
    assert.deepEqual(await read(), ['20', null, null]);
    await pool.query(`alter table app.people disable trigger tidy; update app.people set pay = ' 30 '`);
    await put([' 30 ', 'E', 'T']);
    await pool.query('alter table app.people enable trigger tidy');
    await save([' 30 ', 'E', 'T'], { name: 'x' });
    assert.deepEqual(
      await read(),
      ['30', null, null],
      'a statement about something else, in which the trigger changes it',
    );
  });

  it('sees INSERT … ON CONFLICT, MERGE, COPY and updates through a view', async () => {
    await make();
    const upsert = (values: string, set: string) =>
      pool.query(`insert into app.people values (${values}) on conflict (id) do update set ${set}`);
    await put(['10', 'E', 'T']);
    await upsert(
      `1, 'n', '10', null, null`,
      'pay = excluded.pay, pay_enc = excluded.pay_enc, pay_eq = excluded.pay_eq',
    );
    assert.deepEqual(await read(), ['10', 'E', 'T']);
    await upsert(`1, 'n', '20'`, 'pay = excluded.pay');
    assert.deepEqual(await read(), ['20', null, null]);
    await upsert(`1, 'n', null, 'E9', 'T9'`, 'pay_enc = excluded.pay_enc, pay_eq = excluded.pay_eq');
    assert.deepEqual(await read(), [null, 'E9', 'T9']);
    const merge = (pay: string) =>
      pool.query(
        `merge into app.people p using (values (1, ${pay}), (2, ${pay})) v(id, pay) on p.id = v.id
         when matched then update set pay = v.pay when not matched then insert values (v.id, 'n', v.pay, 'E', 'T')`,
      );
    await merge(`'30'`);
    assert.deepEqual(
      [await read(1), await read(2)],
      [
        ['30', null, null],
        ['30', null, null],
      ],
    );
    await pool.query('create view app.v as select id, pay, pay_enc, pay_eq from app.people');
    await put(['10', 'E', 'T']);
    await pool.query(`update app.v set pay = '20' where id = 1`);
    assert.deepEqual(await read(), ['20', null, null]);
    await pool.query(`insert into app.v values (3, '1', 'E', 'T')`);
    assert.deepEqual(await read(3), ['1', null, null]);
    await pool.query(`copy app.people (id, pay, pay_enc, pay_eq) from program 'printf "4\\t10\\tE\\tT\\n"'`);
    assert.deepEqual(await read(4), ['10', null, null]);
  });

  it('stands on a partitioned table; a row that moves is sealed once more', async () => {
    await pool.query('drop table if exists app.people cascade');
    await pool.query(
      `create table app.people (id int, region text, name text, pay numeric, pay_enc text, pay_eq text,
                                primary key (id, region)) partition by list (region);
       create table app.people_eu partition of app.people for values in ('eu');
       create table app.people_us partition of app.people for values in ('us')`,
    );
    await install(people);
    await pool.query(`insert into app.people values (1, 'eu', 'n', 10, 'E', 'T'), (2, 'eu', 'n', null, 'E', 'T')`);
    assert.deepEqual(await read(1), ['10', null, null]);
    await asWorker((db) => db.query(`update app.people set pay_enc = 'E', pay_eq = 'T' where id = 1`));
    await pool.query(`update app.people set region = 'us'`);
    assert.deepEqual(
      [await read(1), await read(2)],
      [
        ['10', null, null],
        [null, 'E', 'T'],
      ],
    );
    await pool.query(`create table app.people_asia partition of app.people for values in ('asia')`);
    assert.deepEqual(await findMissingTriggers(pool, people), []);
    const [insert] = buildTriggers(people).triggers;
    await pool.query(`alter table app.people_us disable trigger ${q(insert!.name)}`);
    assert.deepEqual(await findMissingTriggers(pool, people), [insert!.name]);
  });

  it('takes any names, and two columns of one table, beside generated ones', async () => {
    const schema = `Odd "schema".x`;
    const name = `ta.ble $fieldkeep$ "T" ${'ü'.repeat(12)}`;
    const columns = ['One', `t"w.o ' \ ${'long '.repeat(9)}1`, `t"w.o ' \ ${'long '.repeat(9)}2`];
    const all = columns.map((column, i): TriggerColumn => {
      return {
        schema,
        name,
        column,
        source: `${i} Source "$$"`,
        indexColumns: i === 0 ? [] : [`${i} eq`, `${i} EQ`],
        bound: [],
      };
    });
    const texts = all.flatMap((each) => [each.column, each.source, ...each.indexColumns]);
    await pool.query(`create schema ${q(schema)}`);
    const { rows: servers } = await pool.query<{ version: number }>(
      `select current_setting('server_version_num')::int as version`,
    );
    const virtual = servers[0]!.version >= 180_000 ? 'virtual' : 'stored'; // those came with Postgres 18
    await pool.query(
      `create table ${q(schema)}.${q(name)} (id int primary key, ${texts.map((text) => `${q(text)} text`).join(', ')},
        made text generated always as (upper(${q(all[0]!.source)})) stored,
        thought text generated always as (lower(${q(all[0]!.source)})) ${virtual})`,
    );
    for (const each of all) await install(each);
    const names = all.flatMap((each) => buildTriggers(each).triggers.map((trigger) => trigger.name));
    assert.equal(new Set(names).size, 12);
    assert.ok(names.every((each) => Buffer.byteLength(each) <= 63 && each.startsWith('zzz_fieldkeep_')));
    const at = `${q(schema)}.${q(name)}`;
    await pool.query(
      `insert into ${at} (id, ${texts.map(q).join(', ')}) values (1, ${texts.map(() => `'x'`).join(', ')})`,
    );
    const { rows } = await pool.query<Record<string, unknown>>(`select * from ${at}`);
    for (const each of all) {
      assert.equal(rows[0]![each.source], 'x');
      for (const sealed of [each.column, ...each.indexColumns]) assert.equal(rows[0]![sealed], null);
      await pool.query(`update ${at} set ${q(each.column)} = 'E'`);
      const after = await pool.query<Record<string, unknown>>(`select * from ${at}`);
      assert.deepEqual([after.rows[0]![each.source], after.rows[0]![each.column]], [null, 'E']);
      assert.deepEqual(await findMissingTriggers(pool, each), []);
    }
    for (const each of all) for (const drop of formatTriggerDrops(each)) await pool.query(drop);
    for (const each of all) assert.equal((await findMissingTriggers(pool, each)).length, 5);
  });
});
