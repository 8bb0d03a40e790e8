/** Counts that take longer than whoever asks can wait. */
import assert from 'node:assert/strict';
import { Counts } from '../../src/rotation/counts.ts';
import { openTestService, type TestService } from '../support/service.ts';

const inTime = () => performance.now() + 10_000;
const atOnce = () => performance.now();

describe('rotation/counts', () => {
  it('are made for every call that can wait for them', async () => {
    const counts = new Counts(assert.ifError);
    let n = 0;
    const count = () => Promise.resolve((n += 1));
    assert.equal((await counts.get('a', count, inTime()))?.value, 1);
    assert.equal((await counts.get('a', count, inTime()))?.value, 2);
    assert.equal((await counts.get('b', count, inTime()))?.value, 3);
  });

  it('go on without a call that cannot, which has what was counted before', async () => {
    const counts = new Counts(assert.ifError);
    await counts.get('a', () => Promise.resolve(7), inTime());
    const slow = Promise.withResolvers<number>();
    const before = await counts.get('a', () => slow.promise, atOnce());
    assert.equal(before?.value, 7);
    assert.equal(await counts.get('other', () => Promise.resolve(1), atOnce()), undefined);
    slow.resolve(8);
    const never = () => Promise.reject<number>(new Error('a second count of the same'));
    assert.equal((await counts.get('a', never, inTime()))?.value, 8);
    assert.ok(before.at.getTime() <= Date.now());
  });

  it('are made one at a time', async () => {
    const counts = new Counts(assert.ifError);
    let [running, most] = [0, 0];
    const count = async () => {
      most = Math.max(most, (running += 1));
      await new Promise((resolve) => setTimeout(resolve, 5));
      running -= 1;
    };
    await Promise.all(['a', 'b', 'c', 'd'].map((name) => counts.get(name, count, inTime())));
    assert.equal(most, 1);
  });

  it('that fail are told, and leave what was counted before', async () => {
    const told: unknown[] = [];
    const counts = new Counts((error) => told.push(error));
    await counts.get('a', () => Promise.resolve(7), inTime());
    const broken = new Error('canceling statement due to statement timeout');
    assert.equal((await counts.get('a', () => Promise.reject<number>(broken), inTime()))?.value, 7);
    assert.deepEqual(told, [broken]);
    assert.equal((await counts.get('a', () => Promise.resolve(8), inTime()))?.value, 8);
  });

  describe('of a table that takes seconds', () => {
    let test: TestService;
    before(async () => {
      test = await openTestService();
      await test.owner.query(`insert into demo.employees (id, tenant, name, salary) values (1, 'acme', 'n', '1')`);
      // Each value costs a second and a half, like a table of a million of them.
      await test.owner.query(
        `create or replace function fieldkeep.fe_version(v text) returns int language plpgsql volatile as
         $$ begin if v is not null then perform pg_sleep(1.5); end if; return 0; end $$`,
      );
    });
    after(() => test.close());

    interface Census {
      readonly column: string;
      readonly versions?: Record<string, number>;
      readonly countedAt?: string;
    }
    async function look(): Promise<Census> {
      const { status, body, text } = await test.call('operator', 'GET', '/v1/keys/salary');
      assert.equal(status, 200, text);
      const [census] = body['census'] as Census[];
      return census!;
    }

    it('do not keep a call, which says when they were made once they are', async () => {
      const first = await look();
      assert.equal(first.column, 'salary');
      assert.equal(first.versions, undefined);
      assert.equal(first.countedAt, undefined);
      let later = first;
      for (const until = performance.now() + 15_000; later.versions === undefined; later = await look()) {
        assert.ok(performance.now() < until);
      }
      assert.deepEqual(later.versions, { 0: 1 });
      assert.ok(Date.parse(later.countedAt!) <= Date.now());
      const again = await look();
      assert.equal(again.countedAt, later.countedAt, 'it rests');
    });
  });
});
