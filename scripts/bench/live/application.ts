/**
 * The customer's application: it encrypts new values through the API and writes them to random rows, at an even pace, while
 * the same rows are re-encrypted. What it wrote last is what a row must hold; of that it remembers the generation alone.
 */
import { randomInt } from 'node:crypto';
import type { Pool } from '../../../src/db.ts';
import { keepPace, type Beside } from '../../demo/beside.ts';
import type { Expected } from '../../demo/verify.ts';
import { mustBeOk, type Api } from '../../support.ts';
import { address, columns, tenantOf, tenants, valueOf, type Column } from '../people.ts';
import { clock, Recorder } from './latency.ts';

const batchRowsMax = 100;
const writersMax = 4;

/** What every row must hold, two bytes a value. */
export class Shadow implements Expected {
  readonly rows: number;
  readonly tenants = tenants;
  readonly #generations: Readonly<Record<Column, Uint16Array>>;

  constructor(rows: number) {
    this.rows = rows;
    const none = () => new Uint16Array(rows + 1);
    this.#generations = { ssn: none(), bank: none(), salary: none() };
  }

  next(column: Column, id: number): number {
    return this.#generations[column][id]! + 1;
  }

  set(column: Column, id: number, generation: number): void {
    this.#generations[column][id] = generation;
  }

  person(id: number): { id: number } & Record<Column, string> {
    const value = (column: Column) => valueOf(column, id, this.#generations[column][id]);
    return { id, ssn: value('ssn'), bank: value('bank'), salary: value('salary') };
  }
}

interface Change {
  readonly id: number;
  readonly column: Column;
  readonly generation: number;
}

interface Encrypted {
  readonly envelope: string;
  readonly indexes?: { readonly eq?: string | null };
}

/** Different rows of one tenant, each with one column to be written. */
function chooseChanges(shadow: Shadow, n: number): Change[] {
  const first = 1 + randomInt(shadow.rows);
  const ids = new Set([first]);
  while (ids.size < n) ids.add(1 + randomInt(shadow.rows));
  return [...ids]
    .filter((id) => tenantOf(id) === tenantOf(first))
    .map((id) => {
      const column = columns[randomInt(columns.length)]!;
      return { id, column, generation: shadow.next(column, id) };
    });
}

export interface Application extends Beside {
  /** Of its UPDATEs. */
  readonly recorder: Recorder;
}

interface ApplicationOptions {
  readonly api: Api;
  readonly owner: Pool;
  readonly shadow: Shadow;
  readonly perSecond: number;
}

/** Writes until stopped. */
export function startApplication({ api, owner, shadow, perSecond }: ApplicationOptions): Application {
  const recorder = new Recorder();

  async function store({ id, column, generation }: Change, { envelope, indexes }: Encrypted): Promise<void> {
    const [sql, token] =
      column === 'ssn'
        ? ['update demo.employees set ssn = $2, ssn_eq = $3 where id = $1', [indexes?.eq ?? null]]
        : [`update demo.employees set ${column} = $2 where id = $1`, []];
    const started = clock();
    await owner.query(sql, [id, envelope, ...token]);
    recorder.add(started, clock() - started);
    shadow.set(column, id, generation);
  }

  async function writeSome(n: number): Promise<number> {
    const changes = chooseChanges(shadow, n);
    const items = changes.map(({ id, column, generation }) => ({
      class: column,
      value: valueOf(column, id, generation),
      context: { table: address, column, row: String(id) },
    }));
    const caller = { name: 'payroll-agent', tenant: tenantOf(changes[0]!.id) };
    const body = mustBeOk(await api.call(caller, 'POST', '/v1/encrypt', { items }));
    const pairs = (body.items as Encrypted[]).map((encrypted, i) => [changes[i]!, encrypted] as const);
    const write = async () => {
      for (let pair = pairs.shift(); pair !== undefined; pair = pairs.shift()) await store(...pair);
    };
    await Promise.all(Array.from({ length: writersMax }, write));
    return changes.length;
  }

  const beside = keepPace(perSecond, (due) => writeSome(Math.min(due, batchRowsMax, shadow.rows)));
  return { ...beside, recorder };
}
