/**
 * A live table as customers have them: a numeric salary, an SSN of eleven characters, NULLs, a view, triggers of its own and
 * an index on what is about to be encrypted. What a row holds follows from its id, until an application writes over it.
 */
import { hash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Pool } from '../../../src/db.ts';
import { formatTriggers } from '../../../src/targets/adoption-triggers.ts';
import { policyFile } from '../engine.ts';
import { inChunks, tenantOf } from '../people.ts';

export const address = 'app.people';

/** Each column of plaintext, and what is made of it. */
export const columns = [
  { from: 'salary', column: 'salary_enc', class: 'salary' },
  { from: 'ssn', column: 'ssn_enc', class: 'ssn', index: [{ name: 'eq', column: 'ssn_eq', bits: 16 }] },
] as const;
export type Source = (typeof columns)[number]['from'];
export type Person = Readonly<Record<Source, string | null>>;

/** The shipped policy, with this table's columns and so many ranges at once. */
export async function makePolicy(concurrency: number): Promise<string> {
  const file = JSON.parse(await readFile(policyFile, 'utf8')) as { classes: Record<string, object> };
  for (const [name, each] of Object.entries(file.classes)) file.classes[name] = { ...each, rotation: { concurrency } };
  const shared = { table: address, key: ['id'], tenant: { column: 'tenant' }, adopt: true };
  return JSON.stringify({ ...file, columns: columns.map((column) => ({ ...shared, ...column })) });
}

/** What a row holds in its generation; null now and then. */
export function valueOf(source: Source, id: number, generation: number): string | null {
  const seed = parseInt(hash('sha256', `${source}/${id}/${generation}`).slice(0, 12), 16);
  if (seed % 9 === 0) return null;
  if (source === 'salary') return `${20_000 + (seed % 180_000)}.${String(seed % 100).padStart(2, '0')}`;
  const digits = String(100_000_000 + (seed % 900_000_000));
  return `${digits.slice(0, 3)}-${digits.slice(3, 5)}-${digits.slice(5)}`;
}

/** The application sends SSNs as they were typed; its own trigger brings them into shape. */
export const typed = (ssn: string | null) => ssn?.replaceAll('-', '') ?? null;

const tableSql = `
  create schema if not exists app;
  create table app.NAME (id bigint primary key, tenant text not null, name text not null, salary numeric(12,2),
    ssn varchar(11), updated_at timestamptz not null default now(), salary_enc text, ssn_enc text, ssn_eq text);
  create view app.NAME_well_paid as select id, name from app.NAME where salary > 150000;
  create or replace function app.shape() returns trigger language plpgsql as $$
  begin
    new.updated_at := now();
    if length(new.ssn) = 9 then
      new.ssn := substr(new.ssn, 1, 3) || '-' || substr(new.ssn, 4, 2) || '-' || substr(new.ssn, 6);
    end if;
    return new;
  end $$;
  create trigger shape before insert or update on app.NAME for each row execute function app.shape();
  create index on app.NAME (salary)`;

const rest = `
  create index on app.NAME (fieldkeep.fe_version(salary_enc), id);
  create index on app.NAME (fieldkeep.fe_version(ssn_enc), id);
  create index on app.NAME (tenant, ssn_eq)`;

/** The table, full, with everything on it that an adoption needs. `name` is without its schema. */
export async function makeTable(owner: Pool, name: string, rows: number, serviceRole: string): Promise<void> {
  await owner.query(tableSql.replaceAll('NAME', name));
  await inChunks(rows, (ids) =>
    owner.query(
      `insert into app.${name} (id, tenant, name, salary, ssn)
       select * from unnest($1::bigint[], $2::text[], $3::text[], $4::numeric[], $5::text[])`,
      [
        ids,
        ids.map(tenantOf),
        ids.map((id) => `Person ${id}`),
        ids.map((id) => valueOf('salary', id, 0)),
        ids.map((id) => valueOf('ssn', id, 0)),
      ],
    ),
  );
  await owner.query(rest.replaceAll('NAME', name));
  for (const { from: source, column, ...more } of columns) {
    const indexColumns = 'index' in more ? more.index.map((index) => index.column) : [];
    for (const statement of formatTriggers({
      schema: 'app',
      name,
      column,
      source,
      indexColumns,
      bound: ['id', 'tenant'],
    })) {
      await owner.query(statement);
    }
  }
  await owner.query(
    `grant usage on schema app to ${serviceRole}; grant select, update on app.${name} to ${serviceRole}`,
  );
  await owner.query(`vacuum analyze app.${name}`);
}
