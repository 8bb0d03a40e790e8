/** Envelopes in columns that nobody registered are found long before a version is destroyed, named by status, and in its way. */
import assert from 'node:assert/strict';
import { examineVersion } from '../../src/retirement/evidence.ts';
import { findUndeclaredSearch } from '../../src/retirement/retire-store.ts';
import { openReaders } from '../../src/targets/targets.ts';
import { searchDue } from '../../src/retirement/undeclared-watch.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { atOnce, hold, policyOf } from './retiring.ts';
import { rotate } from '../rotation/support.ts';

interface Shown {
  versions: { version: number; retirement?: { missing: { what: string }[]; destroyable: boolean } }[];
}

describe('retirement/undeclared-watch', () => {
  let it_: TestService;
  let shop: TestService['service'];
  before(async () => {
    it_ = await openTestService({ policy: policyOf(atOnce), workers: false });
    shop = { ...it_.service, readers: openReaders(new Map([[undefined, it_.database.ownerUrl]])) };
    await it_.owner.query('create table public.mail (id int primary key, body json)');
    const text = JSON.stringify({ attached: await hold(it_.service, 1, '1', '536-22-1111') });
    await it_.owner.query('insert into public.mail values (1, $1)', [text]);
    await rotate(it_, 'ssn');
  });
  after(async () => {
    await shop.readers.close();
    await it_.close();
  });

  const missing = async () => {
    const { versions } = (await it_.call('operator', 'GET', '/v1/keys/ssn')).body as unknown as Shown;
    return versions[0]!.retirement!.missing.map(({ what }) => what).filter((what) => /registered/.test(what));
  };
  const question = { family: 'ssn', version: 1, withoutGuards: true };

  it('names them once they were looked for, and looks once a day', async () => {
    assert.deepEqual(await missing(), []);
    await searchDue(shop);
    const named = ['envelopes in public.mail.body, which nobody registered, to be cleared or registered'];
    assert.deepEqual(await missing(), named);
    const searchedAt = async () => {
      const { rows } = await it_.owner.query<{ at: Date }>(
        `select searched_at as at from fieldkeep.watches where family = 'ssn'`,
      );
      return rows[0]!.at.getTime();
    };
    const first = await searchedAt();
    await searchDue(shop);
    assert.equal(await searchedAt(), first);
    assert.equal(await findUndeclaredSearch(it_.owner, 'bank'), undefined, 'nothing of it is retired');
    // Also where the database's clock was set back since.
    for (const shift of ['- 25 hours', '+ 25 hours']) {
      await it_.owner.query(
        `update fieldkeep.watches set searched_at = searched_at + interval '${shift.replace(' ', '')}'`,
      );
      const moved = await searchedAt();
      await searchDue(shop);
      const again = await searchedAt();
      assert.ok(again !== moved && again >= first && again < first + 60_000, shift);
    }
  });

  it('has them in the way of destroying, also with a waiver, until they are gone', async () => {
    const refusal = {
      code: 'conflict',
      message: /public\.mail\.body holds envelopes of family ssn and is not registered/,
    };
    await assert.rejects(examineVersion(shop, question, 1_000), refusal);
    await it_.owner.query(`update public.mail set body = '{}'`);
    assert.deepEqual((await examineVersion(shop, question, 1_000)).undeclared.found, []);
    assert.deepEqual(await missing(), [], 'the newest search counts');
  });

  it('goes by the last clean search until the end, which makes its own', async () => {
    const text = JSON.stringify({ attached: await hold(it_.service, 1, '1', '536-22-1111') });
    await it_.owner.query('insert into public.mail values (2, $1)', [text]);
    assert.deepEqual((await examineVersion(shop, question, 1_000)).undeclared.found, []);
    await assert.rejects(examineVersion(shop, question, 1_000, true), {
      message: /public\.mail\.body holds envelopes/,
    });
    await assert.rejects(examineVersion(shop, question, 1_000), { message: /public\.mail\.body holds envelopes/ });
    const blind = { ...shop, readers: openReaders(new Map()) };
    await assert.rejects(examineVersion(blind, question, 1_000), { message: /public\.mail\.body holds envelopes/ });
    await it_.owner.query('delete from public.mail where id = 2');
    await it_.owner.query('update fieldkeep.watches set undeclared = null');
  });

  it('does not take what it may not read for empty', async () => {
    const blind = { ...shop, readers: openReaders(new Map()) };
    const evidence = await examineVersion(blind, question, 1_000);
    assert.match(
      evidence.waived.join(),
      /a search of what is not registered \(the database of Fieldkeep: it has no reader/,
    );
    assert.match((await missing()).join(), /a search of what is not registered .*DATABASE_READER_URL/);
    await assert.rejects(examineVersion(blind, { ...question, withoutGuards: false }, 1_000), { code: 'conflict' });
    await blind.readers.close();
  });
});
