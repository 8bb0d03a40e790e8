/**
 * The proof at the end of the demo and of `bench live`: every row is read from the table, every envelope is opened through
 * the API, and the value is compared with what was loaded or what the writer wrote last.
 */
import type { Pool } from '../../src/db.ts';
import { mustBeOk, type Api } from '../support.ts';
import type { Person } from './data.ts';

export interface Verdict {
  opened: number;
  /** Null on both sides. */
  nulls: number;
  /** A value was expected and none is there. */
  lost: number;
  /** Opened, but another value than expected. */
  mixed: number;
  /** Does not open. */
  closed: number;
  /** Still as it was loaded, readable by anybody. */
  plaintext: number;
}

/** What the table must hold. */
export interface Expected {
  /** Rows have the ids 1 … this. */
  readonly rows: number;
  readonly tenants: readonly string[];
  person(id: number): Pick<Person, 'id' | 'ssn' | 'bank' | 'salary'>;
}

type Column = 'ssn' | 'bank' | 'salary';
type Row = { readonly id: string; readonly tenant: string } & Readonly<Record<Column, string | null>>;

const pageRows = 1000;

interface Check {
  readonly person: ReturnType<Expected['person']>;
  readonly envelope: string;
}

/**
 * Who may see the full value: payroll for bank and salary, HR for the numbers of its own tenant. Nobody may see the
 * numbers of the other tenant in full, so there the envelope is matched against what it should hold.
 */
function ask(column: Column, tenant: string): { agent: string; path: string; extra: object } {
  if (column !== 'ssn') return { agent: 'payroll-agent', path: '/v1/decrypt', extra: { view: 'full' } };
  if (tenant === 'acme')
    return { agent: 'hr-agent', path: '/v1/decrypt', extra: { view: 'full', purpose: 'onboarding' } };
  return { agent: 'cx-agent', path: '/v1/match', extra: {} };
}

async function open(
  api: Api,
  column: Column,
  tenant: string,
  checks: readonly Check[],
  verdict: Verdict,
): Promise<void> {
  if (checks.length === 0) return;
  const { agent, path, extra } = ask(column, tenant);
  const items = checks.map(({ person, envelope }) => ({
    envelope,
    context: { table: 'demo.employees', column, row: String(person.id) },
    ...(path === '/v1/match' && { candidate: person[column] }),
  }));
  const body = mustBeOk(await api.call({ name: agent, tenant }, 'POST', path, { items, ...extra }));
  for (const [i, answer] of (body.items as { value?: string; match?: boolean; error?: object }[]).entries()) {
    if (answer.error !== undefined) verdict.closed += 1;
    else if (answer.match === true || answer.value === checks[i]!.person[column]) verdict.opened += 1;
    else verdict.mixed += 1;
  }
}

function sortOut(rows: readonly Row[], expected: Expected, column: Column, tenant: string, verdict: Verdict): Check[] {
  const checks: Check[] = [];
  for (const row of rows.filter((each) => each.tenant === tenant)) {
    const person = expected.person(Number(row.id));
    const stored = row[column];
    if (stored === null) verdict[person[column] === null ? 'nulls' : 'lost'] += 1;
    else if (!stored.startsWith('fe1.')) verdict.plaintext += 1;
    else checks.push({ person, envelope: stored });
  }
  return checks;
}

/** Opens every envelope of the table. Calls `onPage` with the rows done so far. */
export async function verify(
  api: Api,
  owner: Pool,
  expected: Expected,
  onPage: (rows: number) => void,
): Promise<Verdict> {
  const verdict: Verdict = { opened: 0, nulls: 0, lost: 0, mixed: 0, closed: 0, plaintext: 0 };
  let seen = 0;
  for (let last = 0; ;) {
    const { rows } = await owner.query<Row>(
      'select e.id::text, e.tenant, e.ssn, e.bank, e.salary from demo.employees e where e.id > $1 order by e.id limit $2',
      [last, pageRows],
    );
    if (rows.length === 0) break;
    last = Number(rows.at(-1)!.id);
    seen += rows.length;
    for (const tenant of expected.tenants) {
      for (const column of ['ssn', 'bank', 'salary'] as const) {
        await open(api, column, tenant, sortOut(rows, expected, column, tenant, verdict), verdict);
      }
    }
    onPage(seen);
  }
  verdict.lost += 3 * (expected.rows - seen); // rows that are gone altogether
  return verdict;
}
