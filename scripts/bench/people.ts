/**
 * The table that is rotated: complete rows whose values follow from column, id and a generation, so that what a row must
 * hold is known without being kept. A value's next generation is what an application writes over it.
 */
import { hash } from 'node:crypto';
import type { Pool } from '../../src/db.ts';

export const address = 'demo.employees';
export const columns = ['ssn', 'bank', 'salary'] as const;
export type Column = (typeof columns)[number];

export const tenants = ['acme', 'globex'] as const;

/** One person in five works for the second tenant. */
export function tenantOf(id: number): (typeof tenants)[number] {
  return id % 5 === 0 ? 'globex' : 'acme';
}

export function valueOf(column: Column, id: number, generation = 0): string {
  const seed = hash('sha256', `${column}/${id}/${generation}`).slice(0, 16);
  const digits = BigInt(`0x${seed}`).toString().padStart(20, '0');
  const take = (from: number, to: number) => digits.slice(from, to);
  if (column === 'ssn') return `${take(4, 7)}-${take(7, 9)}-${take(9, 13)}`;
  if (column === 'salary') return String(20_000 + Number(take(14, 20)));
  return `GB${take(2, 4)} NWBK ${take(4, 8)} ${take(8, 12)} ${take(12, 16)} ${take(16, 18)}`;
}

const chunkRows = 5_000;

/** Calls `insert` with the ids 1 … `rows`, a few thousand at a time. */
export async function inChunks(rows: number, insert: (ids: number[]) => Promise<unknown>): Promise<void> {
  for (let from = 0; from < rows; from += chunkRows) {
    await insert(Array.from({ length: Math.min(chunkRows, rows - from) }, (_, i) => from + i + 1));
  }
}

/** Fills the table with plaintext, as an application leaves it that has not heard of us. */
export async function fill(owner: Pool, rows: number): Promise<void> {
  await inChunks(rows, (ids) =>
    owner.query(
      `insert into demo.employees (id, tenant, name, ssn, bank, salary)
       select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])`,
      [
        ids,
        ids.map(tenantOf),
        ids.map((id) => `Employee ${id}`),
        ...columns.map((column) => ids.map((id) => valueOf(column, id))),
      ],
    ),
  );
  await owner.query('vacuum analyze demo.employees');
}
