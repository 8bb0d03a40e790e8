/** What a start says of database logins that may do more than their duty, and refuses in production. */
import assert from 'node:assert/strict';
import { openPool, roleOf, type Pool } from '../../src/db.ts';
import { checkLogins } from '../../src/logins.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';

describe('the logins of a start', () => {
  let database: TestDatabase;
  let owner: Pool;
  before(async () => {
    database = await createDatabase();
    owner = openPool(database.ownerUrl, { max: 1, name: 'owner' });
  });
  after(async () => {
    await owner.end();
    await database.drop();
  });

  async function findTold(role: 'api' | 'worker' | 'all', apiUrl: string, workerUrl = apiUrl): Promise<string> {
    const told: string[] = [];
    const log = { warn: (sentence: string) => void told.push(sentence) };
    const urls = { apiUrl, workerUrl, embedded: false };
    await checkLogins({ role, production: false }, urls, log);
    const inProduction = checkLogins({ role, production: true }, urls, log);
    if (told.length === 0) await inProduction;
    else await assert.rejects(inProduction, { message: told.join(' ') });
    return told.join(' ');
  }

  it('of one duty each are right', async () => {
    assert.equal(await findTold('api', database.apiUrl), '');
    assert.equal(await findTold('worker', database.workerUrl), '');
    assert.equal(await findTold('all', database.apiUrl, database.workerUrl), '');
  });

  it('that own the audit log are told, with and without DATABASE_OWNER_URL', async () => {
    assert.match(await findTold('worker', database.ownerUrl), /owns its audit log/);
    assert.match(await findTold('all', database.apiUrl, database.ownerUrl), /owns its audit log/);
    assert.match(await findTold('api', database.ownerUrl), /owns its audit log.* may change all tables/);
  });

  it('that face agents and are the worker, or may write a table of the customer’s, are told with what they may change', async () => {
    assert.match(await findTold('api', database.workerUrl), /may change fieldkeep\.adoptions, .*fieldkeep\.rotations/);
    await owner.query(`create table public.own (v text); grant update (v) on public.own to ${roleOf(database.apiUrl)}`);
    assert.match(await findTold('api', database.apiUrl), /may change public\.own: give each duty a login of its own/);
  });
});
