/** An application that knows nothing of encryption: it writes plaintext to random rows at an even pace, NULLs among it. */
import { randomInt } from 'node:crypto';
import type { Pool } from '../../../src/db.ts';
import { keepPace, type Beside } from '../../demo/beside.ts';
import { typed, valueOf, type Person, type Source } from './people.ts';

const rowsAtOnce = 50;
const sources: readonly Source[] = ['salary', 'ssn'];

/** What every row must hold: the generation of each value that was written last. */
export class Shadow {
  readonly rows: number;
  readonly #generations: Readonly<Record<Source, Uint16Array>>;

  constructor(rows: number) {
    this.rows = rows;
    this.#generations = { salary: new Uint16Array(rows + 1), ssn: new Uint16Array(rows + 1) };
  }

  write(source: Source, id: number): string | null {
    this.#generations[source][id]! += 1;
    return this.value(source, id);
  }

  value(source: Source, id: number): string | null {
    return valueOf(source, id, this.#generations[source][id]!);
  }

  person(id: number): Person {
    return { salary: this.value('salary', id), ssn: this.value('ssn', id) };
  }
}

/** Writes until it is stopped. */
export function startApplication(owner: Pool, table: string, shadow: Shadow, perSecond: number): Beside {
  const writeOne = async () => {
    const source = sources[randomInt(sources.length)]!;
    const id = 1 + randomInt(shadow.rows);
    const value = shadow.write(source, id);
    const sent = source === 'ssn' ? typed(value) : value;
    await owner.query(`update app.${table} set ${source} = $2 where id = $1`, [id, sent]);
  };
  return keepPace(perSecond, async (due) => {
    const rows = Math.min(due, rowsAtOnce);
    for (let n = 0; n < rows; n += 1) await writeOne();
    return rows;
  });
}
