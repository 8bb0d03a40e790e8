/**
 * Re-encryption inside Postgres: pgcrypto opens and seals every value of a batch in one UPDATE. Both keys travel to the
 * server with each statement, and each value costs two slow derivations (PGP's salted and iterated string-to-key).
 */
import { randomBytes } from 'node:crypto';
import type { Pool } from '../../../src/db.ts';
import { pace, type Peer } from '../pace.ts';
import { inChunks, valueOf } from '../people.ts';

const batchRows = 1_000;
const makeKey = () => randomBytes(32).toString('base64');

async function fill(owner: Pool, rows: number, key: string): Promise<void> {
  await owner.query('create extension if not exists pgcrypto schema public');
  await owner.query('create table demo.pgcrypto (id bigint primary key, salary bytea not null)');
  await inChunks(rows, (ids) =>
    owner.query(
      `insert into demo.pgcrypto (id, salary)
       select u.id, public.pgp_sym_encrypt(u.salary, $3, 'cipher-algo=aes256') from unnest($1::bigint[], $2::text[]) as u(id, salary)`,
      [ids, ids.map((id) => valueOf('salary', id)), key],
    ),
  );
  await owner.query('vacuum analyze demo.pgcrypto');
}

export async function openPgcryptoPeer(owner: Pool, { rows, lanes }: { rows: number; lanes: number }): Promise<Peer> {
  let key = makeKey();
  await fill(owner, rows, key);

  async function work(starts: number[], next: string): Promise<number> {
    let done = 0;
    for (let from = starts.shift(); from !== undefined; from = starts.shift()) {
      const { rowCount } = await owner.query(
        `update demo.pgcrypto
         set salary = public.pgp_sym_encrypt(public.pgp_sym_decrypt(salary, $1), $2, 'cipher-algo=aes256')
         where id > $3 and id <= $4`,
        [key, next, from, from + batchRows],
      );
      done += rowCount ?? 0;
    }
    return done;
  }

  return {
    name: 'pgcrypto, in SQL',
    async rotate() {
      const next = makeKey();
      const starts = Array.from({ length: Math.ceil(rows / batchRows) }, (_, i) => i * batchRows);
      const timed = await pace(async () => {
        const done = await Promise.all(Array.from({ length: lanes }, () => work(starts, next)));
        return done.reduce((sum, n) => sum + n, 0);
      });
      key = next;
      return timed;
    },
  };
}
