/**
 * The customer's application, as far as the demo needs one: it encrypts new values through the API and writes them to
 * random rows of the table, while Fieldkeep re-encrypts the same rows. What it wrote is remembered for the proof.
 */
import { randomInt } from 'node:crypto';
import type { Pool } from '../../src/db.ts';
import { mustBeOk, type Api } from '../support.ts';
import { goOn, type Beside } from './beside.ts';
import { makeSalary, makeSsn, type Person } from './data.ts';

const batchRows = 20;
const pauseMs = 25;

interface Encrypted {
  readonly envelope: string;
  readonly indexes?: { readonly eq?: string | null };
}

type Change = Person & { readonly column: 'ssn' | 'salary'; readonly value: string };

function chooseChanges(people: readonly Person[]): Change[] {
  const ids = new Set(Array.from({ length: batchRows }, () => randomInt(people.length)));
  const tenant = people[ids.values().next().value!]!.tenant;
  return [...ids]
    .map((i) => people[i]!)
    .filter((person) => person.tenant === tenant)
    .map((person) => {
      const column = randomInt(2) === 0 ? 'ssn' : 'salary';
      return { ...person, column, value: column === 'ssn' ? makeSsn() : makeSalary() };
    });
}

async function writeOnce(api: Api, owner: Pool, people: Person[]): Promise<number> {
  const changes = chooseChanges(people);
  const items = changes.map(({ id, column, value }) => ({
    class: column,
    value,
    context: { table: 'demo.employees', column, row: String(id) },
  }));
  const caller = { name: 'payroll-agent', tenant: changes[0]!.tenant };
  const body = mustBeOk(await api.call(caller, 'POST', '/v1/encrypt', { items }));
  for (const [i, encrypted] of (body.items as Encrypted[]).entries()) {
    const { id, column, value } = changes[i]!;
    const sql =
      column === 'ssn'
        ? 'update demo.employees set ssn = $2, ssn_eq = $3 where id = $1'
        : 'update demo.employees set salary = $2 where id = $1';
    const token = column === 'ssn' ? [encrypted.indexes?.eq ?? null] : [];
    await owner.query(sql, [id, encrypted.envelope, ...token]);
    people[id - 1] = { ...people[id - 1]!, [column]: value };
  }
  return changes.length;
}

/** Keeps writing until stopped; `people` always says what the table must hold. */
export function startWriter(api: Api, owner: Pool, people: Person[]): Beside {
  return goOn(pauseMs, () => writeOnce(api, owner, people));
}
