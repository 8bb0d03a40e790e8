/** Customers' databases whose table app.people has an envelope column of class bank, and services that write to them. */
import { readFileSync } from 'node:fs';
import { openPool, quoteIdentifier, roleOf, type Pool } from '../../src/db.ts';
import { changePolicy } from '../rotation/support.ts';
import { createTarget, type TestDatabase } from '../support/database.ts';
import { openProxy, type Proxy } from '../support/proxy.ts';
import type { Reply, TestService } from '../support/service.ts';

const table = { table: 'app.people', key: ['id'], tenant: { column: 'tenant' }, column: 'bank', class: 'bank' };
const demo = { table: 'demo.employees', key: ['id'], tenant: { column: 'tenant' } };

/** Columns of class bank in the targets hr and crm and in our own database; ssn in our own alone. */
export const columns = [
  { ...table, database: 'hr' },
  { ...table, database: 'crm' },
  { ...demo, column: 'bank', class: 'bank' },
  { ...demo, column: 'ssn', class: 'ssn', index: [{ name: 'eq', column: 'ssn_eq', bits: 13 }] },
];
export const policy = changePolicy({ columns, grants: { 'payroll-agent': ['move:bank'] } });

export interface Customer {
  readonly database: TestDatabase;
  readonly owner: Pool;
  /** Between the services and it. */
  readonly proxy: Proxy;
  readonly url: string;
  close(): Promise<void>;
}

/** What its owner runs there; more than once does no harm. */
export async function prepare({ owner, database }: Pick<Customer, 'owner' | 'database'>): Promise<void> {
  const sql = readFileSync(new URL('../../migrations/target.sql', import.meta.url), 'utf8');
  await owner.query(sql.replaceAll(':service', quoteIdentifier(roleOf(database.workerUrl))));
}

export async function openCustomer(): Promise<Customer> {
  const database = await createTarget();
  const owner = openPool(database.ownerUrl, { max: 2, name: 'owner' });
  const service = roleOf(database.workerUrl);
  await owner.query(`create schema app; create table app.people (id bigint primary key, tenant text not null, bank text);
    grant usage on schema app to ${service}; grant select, update (bank) on app.people to ${service};
    create index on app.people (fieldkeep.fe_version(bank), id)`);
  const proxy = await openProxy(database.workerUrl);
  return {
    database,
    owner,
    proxy,
    url: proxy.through(database.workerUrl),
    async close() {
      await proxy.close();
      await owner.end();
      await database.drop();
    },
  };
}

/** Gone, for open connections and for new ones. */
export function goAway({ proxy }: Customer): void {
  proxy.mode = 'refuse';
  proxy.cut();
}

export function comeBack({ proxy }: Customer): void {
  proxy.mode = 'pass';
  proxy.cut(); // of connections that swallowed something
}

export const placeIn = (target: string | undefined, row: number) => ({
  table: target === undefined ? 'demo.employees' : `${target}:app.people`,
  column: 'bank',
  row: String(row),
});

export function encryptFor(
  it_: Pick<TestService, 'call'>,
  target: string | undefined,
  row: number,
  { tenant = 'acme', value = 'x' } = {},
): Promise<Reply> {
  const body = { class: 'bank', value, context: placeIn(target, row) };
  return it_.call('payroll-agent', 'POST', '/v1/encrypt', body, { tenant });
}

export function decryptIn(
  it_: Pick<TestService, 'call'>,
  target: string | undefined,
  row: number,
  envelope: unknown,
  tenant = 'acme',
): Promise<Reply> {
  const body = { envelope, context: placeIn(target, row), view: 'full' };
  return it_.call('payroll-agent', 'POST', '/v1/decrypt', body, { tenant });
}

/** `tenant/family/version state` of each key in a mirror. */
export async function listKept(customer: Customer): Promise<string[]> {
  const { rows } = await customer.owner.query<{ text: string }>(
    `select tenant || '/' || family || '/' || version || ' ' || state as text from fieldkeep.wrapped_keys
     order by version, tenant collate "C"`,
  );
  return rows.map((row) => row.text);
}

/** The stored forms of a tenant's first key of bank: what there is of them in these databases. */
export async function listWrapped(databases: readonly Pool[], tenant: string): Promise<string[]> {
  const found: string[] = [];
  for (const db of databases) {
    const isOwn = await db.query(`select to_regclass('fieldkeep.data_keys') is not null as yes`);
    const name = (isOwn.rows[0] as { yes: boolean }).yes ? 'data_keys' : 'wrapped_keys';
    const { rows } = await db.query<{ wrapped: string }>(
      `select wrapped from fieldkeep.${name} where tenant = $1 and family = 'bank' and version = 1`,
      [tenant],
    );
    found.push(...rows.map((row) => row.wrapped));
  }
  return found;
}
