import assert from 'node:assert/strict';
import { formatPlan, listNeeds, planTarget } from '../../src/targets/plan.ts';
import { changePolicy } from '../rotation/support.ts';

const entry = { database: 'hr', key: ['id'], tenant: { value: 'acme' }, class: 'bank', adopt: true };

describe('targets/plan', () => {
  it('needs key, tenant, registered columns, their tokens and sources, and nothing else', () => {
    const { columns } = changePolicy({
      columns: [
        {
          ...{ ...entry, key: ['a', 'b'], tenant: { column: 't' }, table: 'app.x', column: 'enc', from: 'plain' },
          index: [{ name: 'eq', column: 'eq', bits: 8 }],
        },
        { ...entry, key: ['a', 'b'], tenant: { column: 't' }, table: 'app.x', column: 'other' },
      ],
    });
    assert.deepEqual(listNeeds(columns), {
      read: ['a', 'b', 't', 'enc', 'eq', 'plain', 'other'],
      write: ['enc', 'eq', 'plain', 'other'],
    });
  });

  it('lets no name out of its comment or its quotes', () => {
    const { columns } = changePolicy({
      columns: [{ ...entry, table: `a"p.x\n;drop y`, column: `c'd"e\n--` }],
    });
    const text = formatPlan(planTarget({ columns, guarded: true, worker: `w"o\ndrop owned by w; --`, reader: `r'e` }));
    const code = text.replaceAll(/--[^\n]*|"(?:[^"]|"")*"|'(?:[^']|'')*'/g, (token) =>
      token.startsWith('--') ? '' : token.startsWith('"') ? 'NAME' : 'TEXT',
    );
    assert.doesNotMatch(code, /drop/);
    assert.match(code, /grant select \(NAME, NAME\), update \(NAME\) on NAME\.NAME to NAME;/);
    assert.match(code, /\(TEXT, TEXT, TEXT\)\non conflict do nothing;/);
  });

  it('indexes partitions one by one beside the application, and then the table, which takes them in', () => {
    const { columns } = changePolicy({ columns: [{ ...entry, table: 'app.x', column: 'enc' }] });
    const leaves = ['x_1', 'x_2'].map((name) => ({ schema: 'app', name }));
    const steps = planTarget({ columns, guarded: false, worker: 'w', partitions: new Map([['hr:app.x', leaves]]) });
    const { statements } = steps.find(({ what }) => what === 'version index of app.x.enc')!;
    const shapes = statements.map((each) => each.replace(/ if not exists "\w+"/, '').split(' (')[0]);
    assert.deepEqual(shapes, [
      'create index concurrently on "app"."x_1"',
      'create index concurrently on "app"."x_2"',
      "set lock_timeout = '2s'",
      'create index on "app"."x"',
      'reset lock_timeout',
    ]);
  });
});
