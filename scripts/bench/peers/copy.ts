/** Tables for peers: the table of people once more, as wide and with as many indexes, its salaries sealed by the peer. */
import type { Pool } from '../../../src/db.ts';
import { inChunks } from '../people.ts';

/** Makes demo.`name` from the first `rows` people. */
export async function copyPeople(
  owner: Pool,
  name: string,
  rows: number,
  seal: (ids: readonly number[]) => readonly string[] | Promise<readonly string[]>,
): Promise<void> {
  await owner.query(`create table demo.${name} (like demo.employees including all)`);
  await inChunks(rows, async (ids) =>
    owner.query(
      `insert into demo.${name} (id, tenant, name, ssn, ssn_eq, bank, salary)
       select e.id, e.tenant, e.name, e.ssn, e.ssn_eq, e.bank, u.salary
       from demo.employees e join unnest($1::bigint[], $2::text[]) as u(id, salary) on e.id = u.id`,
      [ids, await seal(ids)],
    ),
  );
  await owner.query(`vacuum analyze demo.${name}`);
}
