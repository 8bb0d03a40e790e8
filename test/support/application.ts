/**
 * An application that keeps writing to the demo's table: values that it has encrypted by the API, one row at a time, and a
 * shadow of what must stand there. A write counts when its UPDATE was acknowledged; where the answer was lost, the row is
 * looked at, and must hold what was there before or what was sent.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { open } from '../../src/crypto/aead.ts';
import { indexToken, normalise } from '../../src/crypto/blind-index.ts';
import { encodeContext } from '../../src/crypto/context.ts';
import { parseEnvelope } from '../../src/crypto/envelope.ts';
import type { Pool } from '../../src/db.ts';
import type { Keyring } from '../../src/keys/keyring.ts';
import type { Answer } from './processes.ts';

export const columns = ['ssn', 'bank', 'salary'] as const;
export type Column = (typeof columns)[number];

export type Encrypt = (tenant: string, body: object) => Promise<Answer>;

interface Row {
  readonly tenant: string;
  readonly values: Record<Column, string | null>;
}

const table = 'demo.employees';
const writers = 4;

/** What a whole look at the table came to. */
export interface Verdict {
  readonly verified: number;
  /** Values that are gone or do not open. */
  readonly lost: string[];
  /** Values that open, and are others than were written. */
  readonly mixed: string[];
  /** Values that are not of the active version. */
  readonly stale: string[];
}

export class Application {
  acknowledged = 0;
  /** Answers to an UPDATE that did not come. */
  unheard = 0;
  /** Encryptions that were refused or not answered. */
  refused = 0;
  readonly #db: Pool;
  readonly #keyring: Keyring;
  readonly #encrypt: Encrypt;
  readonly #rows = new Map<number, Row>();
  #counter = 0;
  #running: Promise<unknown> | undefined;
  #stopping = false;
  #abandoned = false;

  constructor(db: Pool, keyring: Keyring, encrypt: Encrypt) {
    this.#db = db;
    this.#keyring = keyring;
    this.#encrypt = encrypt;
  }

  /** Rows 1 … n of two tenants, as plaintext. */
  async fill(n: number): Promise<void> {
    const ids = Array.from({ length: n }, (_, i) => i + 1);
    for (const id of ids) {
      const values = { ssn: this.#make(id), bank: this.#make(id), salary: this.#make(id) };
      this.#rows.set(id, { tenant: id % 3 === 0 ? 'globex' : 'acme', values });
    }
    const rows = [...this.#rows.values()];
    await this.#db.query(
      `insert into ${table} (id, tenant, name, ssn, bank, salary)
       select u.id, u.tenant, 'n', u.ssn, u.bank, u.salary
       from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[]) as u (id, tenant, ssn, bank, salary)`,
      [ids, rows.map(({ tenant }) => tenant), ...columns.map((column) => rows.map(({ values }) => values[column]))],
    );
  }

  start(): void {
    this.#stopping = false;
    this.#running = Promise.all(Array.from({ length: writers }, (_, writer) => this.#write(writer)));
  }

  /** Afterwards nothing is on its way any more. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
  }

  /** Ends as fast as it can, also when the database is gone for good. */
  async abandon(): Promise<void> {
    this.#abandoned = true;
    await this.stop();
  }

  /** Mostly digits that occur once; sometimes nothing, or an empty text. */
  #make(id: number): string | null {
    this.#counter += 1;
    if (this.#counter % 37 === 0) return null;
    return this.#counter % 41 === 0 ? '' : `${id}${String(this.#counter).padStart(9, '0')}`;
  }

  /** Rows are shared out among the writers, so that no two write to one. */
  async #write(writer: number): Promise<void> {
    const ids = [...this.#rows.keys()].filter((id) => id % writers === writer);
    while (!this.#stopping) {
      const id = ids[randomInt(ids.length)]!;
      const column = columns[randomInt(columns.length)]!;
      const value = this.#make(id);
      const sealed = await this.#seal(id, column, value);
      if (sealed === undefined) {
        this.refused += 1;
        await sleep(50);
        continue;
      }
      await sleep(randomInt(50));
      await this.#store(id, column, value, sealed);
    }
  }

  /** The texts to store, or undefined when the API did not give them. */
  async #seal(id: number, column: Column, value: string | null): Promise<(string | null)[] | undefined> {
    if (value === null) return column === 'ssn' ? [null, null] : [null];
    const body = { class: column, value, context: { table, column, row: String(id) } };
    const answer = await this.#encrypt(this.#rows.get(id)!.tenant, body).catch(() => undefined);
    if (answer?.status !== 200) return undefined;
    const { envelope, indexes } = answer.body as { envelope: string; indexes?: { eq: string | null } };
    return column === 'ssn' ? [envelope, indexes!.eq] : [envelope];
  }

  async #store(id: number, column: Column, value: string | null, sealed: readonly (string | null)[]): Promise<void> {
    const { values } = this.#rows.get(id)!;
    const names = column === 'ssn' ? ['ssn', 'ssn_eq'] : [column];
    const set = names.map((name, i) => `${name} = $${i + 2}`).join(', ');
    try {
      await this.#db.query(`update ${table} set ${set} where id = $1`, [id, ...sealed]);
      this.acknowledged += 1;
      values[column] = value;
    } catch {
      this.unheard += 1;
      const stands = await this.#look(id, column);
      if (stands === value) values[column] = value; // otherwise it must be what was there: verify tells
    }
  }

  /** The value that stands in a row, as soon as the database can be asked; undefined when nobody wants to know any more. */
  async #look(id: number, column: Column): Promise<string | null | undefined> {
    while (!this.#abandoned) {
      try {
        const { rows } = await this.#db.query<{ text: string | null }>(
          `select ${column} as text from ${table} where id = $1`,
          [id],
        );
        const { text } = rows[0]!;
        return text === null ? null : await this.#open(this.#rows.get(id)!.tenant, column, id, text);
      } catch {
        await sleep(50);
      }
    }
    return undefined;
  }

  async #open(tenant: string, column: Column, id: number, text: string): Promise<string> {
    const envelope = parseEnvelope(text);
    const key = await this.#keyring.get(tenant, envelope.family, envelope.version);
    if (key === undefined)
      throw new Error(`There is no key of family ${envelope.family}, version ${envelope.version}.`);
    const place = { tenant, table, column, row: String(id) };
    return open(key, envelope, encodeContext(envelope.family, envelope.version, place));
  }

  /** Opens every value; to be called while nobody writes. */
  async verify(): Promise<Verdict> {
    await this.#keyring.refresh();
    const verdict = { verified: 0, lost: [] as string[], mixed: [] as string[], stale: [] as string[] };
    const { rows } = await this.#db.query<Record<Column | 'id' | 'ssn_eq', string | null>>(
      `select id, ssn, ssn_eq, bank, salary from ${table}`,
    );
    const found = new Map(rows.map((row) => [Number(row.id), row]));
    for (const [id, { tenant, values }] of this.#rows) {
      for (const column of columns) {
        const place = `${column} of row ${id}`;
        const [want, text] = [values[column], found.get(id)?.[column]];
        verdict.verified += 1;
        if (text === undefined || (text === null) !== (want === null)) verdict.lost.push(place);
        if (typeof text !== 'string') continue;
        const value = await this.#open(tenant, column, id, text).catch(() => undefined);
        if (value === undefined) verdict.lost.push(place);
        else if (value !== want) verdict.mixed.push(place);
        if (!text.startsWith(`fe1.${column}.${this.#activeOf(column)}.`)) verdict.stale.push(place);
      }
      if (found.get(id)?.ssn_eq !== (await this.#token(tenant, values.ssn))) verdict.mixed.push(`token of row ${id}`);
    }
    return verdict;
  }

  #activeOf(column: Column): number {
    return this.#keyring.state.families.get(column)!.active!;
  }

  async #token(tenant: string, value: string | null): Promise<string | null> {
    if (value === null) return null;
    const version = this.#activeOf('ssn');
    const { normalise: how, indexes } = this.#keyring.state.families.get('ssn')!.versions.get(version)!;
    const { name, bits } = indexes[0]!;
    const key = (await this.#keyring.get(tenant, 'ssn', version))!;
    return (
      indexToken(key, version, { tenant, table, column: 'ssn', index: name, bits }, normalise(how, value)!) ?? null
    );
  }
}
