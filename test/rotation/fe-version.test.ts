import assert from 'node:assert/strict';
import fc from 'fast-check';
import { connect } from '../../src/db.ts';
import { versionOf } from '../../src/rotation/renew.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';

describe('fe_version', () => {
  let database: TestDatabase;
  let client: Awaited<ReturnType<typeof connect>>;
  before(async () => {
    database = await createDatabase();
    client = await connect(database.workerUrl, { name: 'test' });
  });
  after(async () => {
    await client.end();
    await database.drop();
  });

  async function ask(text: string | null): Promise<number | null> {
    const { rows } = await client.query<{ v: number | null }>('select fieldkeep.fe_version($1) as v', [text]);
    return rows[0]!.v;
  }

  const cases: [string | null, number | null][] = [
    [null, null],
    ['', 0],
    ['536-22-1234', 0],
    ['fe', 0],
    ['fe1', 0],
    ['february', 0],
    ['fe1.ssn.4.AAAA', 4],
    ['fe1.ssn.999999999.A', 999_999_999],
    ['fe1.ssn.1000000000.A', -1],
    ['fe1.ssn.0.A', -1],
    ['fe1.ssn.04.A', -1],
    ['fe1.ssn.4.', -1],
    ['fe1.ssn.4', -1],
    ['fe1.ssn.-4.A', -1],
    ['fe1.ssn.4x.A', -1],
    ['fe1.ssn.١.A', -1],
    ['fe2.ssn.4.A', -1],
    ['fe12.anything', -1],
    ['fe1.', -1],
    ['FE1.ssn.4.A', 0],
    ['fe.ssn', 0],
    ['fe1.BAD family.7.A', 7],
  ];
  for (const [text, version] of cases) {
    it(`is ${version} for ${JSON.stringify(text)}`, async () => {
      assert.equal(await ask(text), version);
      if (text !== null) assert.equal(versionOf(text), version, 'the engine counts as the database does');
    });
  }

  it('never fails, and the engine agrees with it, on any text', async () => {
    const part = fc.oneof(
      fc.constantFrom('fe1', 'fe', 'fe2', 'ssn', '4', '0', '', '1234567890', '9'.repeat(40)),
      fc.string({ unit: 'binary' }),
    );
    const text = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc.array(part, { maxLength: 6 }).map((parts) => parts.join('.')),
    );
    await fc.assert(
      fc.asyncProperty(
        text.map((t) => t.replaceAll('\0', '').toWellFormed()),
        async (t) => {
          assert.equal(await ask(t), versionOf(t));
        },
      ),
      { numRuns: 1000 },
    );
  });
});
