/**
 * Re-encryption one row a transaction, as the migrations do it that prisma-field-encryption generates
 * (github.com/47ng/prisma-field-encryption, src/generator/generateModel.ts): `migrate` calls `migrateRecord` until no row
 * follows, and each call is an interactive transaction of `findFirst` after the cursor, in the key's order, and `update` of
 * that record with its own fields. Reading opens the fields with whichever key of the keychain fits, writing seals them
 * under the newest, by the same library as here (@47ng/cloak).
 *
 * The statements are those that Prisma makes of it, without Prisma's own time.
 */
import {
  decryptStringSync,
  encryptStringSync,
  findKeyForMessage,
  generateKey,
  makeKeychainSync,
  parseKeySync,
} from '@47ng/cloak';
import { transaction, type Pool } from '../../../src/db.ts';
import { pace, type Peer } from '../pace.ts';
import { valueOf } from '../people.ts';
import { copyPeople } from './copy.ts';

/** Prisma reads the cursor's own row in a subquery and skips it. */
const findFirst = `select e.id, e.salary from demo.row_by_row e order by e.id asc limit 1 offset 0`;
const findNext = `
  select e.id, e.salary
  from demo.row_by_row e, (select c.id as id_0 from demo.row_by_row c where c.id = $1) as order_cmp
  where e.id >= order_cmp.id_0 order by e.id asc limit 1 offset 1`;

export async function openRowByRowPeer(owner: Pool, { rows }: { rows: number }): Promise<Peer> {
  const keys = [generateKey()];
  const first = parseKeySync(keys[0]!);
  await copyPeople(owner, 'row_by_row', rows, (ids) =>
    ids.map((id) => encryptStringSync(valueOf('salary', id), first)),
  );

  async function migrateRecord(
    cursor: string | undefined,
    { chain, newest }: { chain: ReturnType<typeof makeKeychainSync>; newest: ReturnType<typeof parseKeySync> },
  ): Promise<string | undefined> {
    return await transaction(owner, async (tx) => {
      const [sql, values] = cursor === undefined ? [findFirst, []] : [findNext, [cursor]];
      const record = (await tx.query<{ id: string; salary: string }>(sql, values)).rows[0];
      if (record === undefined) return cursor;
      const value = decryptStringSync(record.salary, findKeyForMessage(record.salary, chain));
      const sealed = encryptStringSync(value, newest);
      await tx.query('update demo.row_by_row set salary = $1 where id = $2 and 1 = 1 returning id, salary', [
        sealed,
        record.id,
      ]);
      return record.id;
    });
  }

  return {
    name: 'one row a transaction, as prisma-field-encryption',
    async rotate() {
      keys.unshift(generateKey());
      const ring = { chain: makeKeychainSync(keys), newest: parseKeySync(keys[0]!) };
      return await pace(async () => {
        let done = 0;
        for (let cursor: string | undefined; ;) {
          const next = await migrateRecord(cursor, ring);
          if (next === cursor) return done;
          cursor = next;
          done += 1;
        }
      });
    },
  };
}
