/**
 * Brings the values of one row up to date: envelopes of older versions are opened and sealed under the active one,
 * adopted plaintext is sealed, blind index tokens are made anew. What does not open is recorded and left as it is.
 *
 * The row's context is what an agent would name: the table's address, the column, the key as Postgres spells it.
 */
import { open, seal } from '../crypto/aead.ts';
import { indexToken, normalise } from '../crypto/blind-index.ts';
import { encodeContext } from '../crypto/context.ts';
import type { DataKey } from '../crypto/data-key.ts';
import { formatEnvelope, parseEnvelope } from '../crypto/envelope.ts';
import { decryptionFailed, FieldkeepError } from '../errors.ts';
import type { Keyring } from '../keys/keyring.ts';
import { findIndexes, getActive, getReadable, type KeyState, type KeyVersion } from '../keys/version.ts';
import type { FieldClass, RegisteredColumn } from '../policy/policy.ts';
import type { Row } from './batch.ts';
import { formatRow, type TableShape } from './catalog.ts';
import type { Failure } from './failure-store.ts';

/** A registered column of the run, and where it stands among the values of a row. */
export interface Slot {
  readonly column: RegisteredColumn;
  readonly fieldClass: FieldClass;
  /** Of the value; its index columns follow. */
  readonly at: number;
}

export interface Renewed {
  /** Undefined when nothing of the row changes. */
  readonly next?: readonly (string | null)[];
  /** Columns whose value was brought up to date. */
  readonly columns: readonly string[];
  readonly failures: readonly Failure[];
}

/** The columns to read for the slots: each registered column, then its index columns. */
export function layOut(
  columns: readonly RegisteredColumn[],
  classOf: (name: string) => FieldClass,
): {
  readonly slots: readonly Slot[];
  readonly names: readonly string[];
} {
  const names: string[] = [];
  const slots = columns.map((column): Slot => {
    const at = names.push(column.column) - 1;
    names.push(...column.index.map((index) => index.column));
    return { column, fieldClass: classOf(column.class), at };
  });
  return { slots, names };
}

/** Keys are at hand most of the time; only a miss is a promise, so a warm row costs no turn of the event loop. */
type Keys = { readonly opening?: DataKey | undefined; readonly sealing: DataKey };

export class Renewer {
  readonly #keyring: Keyring;
  readonly #state: KeyState;
  readonly #table: TableShape;
  readonly #slots: readonly Slot[];

  /** Works from one picture of key state: the active version does not change under way. */
  constructor(keyring: Keyring, state: KeyState, table: TableShape, slots: readonly Slot[]) {
    this.#keyring = keyring;
    this.#state = state;
    this.#table = table;
    this.#slots = slots;
  }

  /** Whether values are still sealed under what is active. */
  isCurrent(state: KeyState): boolean {
    const active = ({ families }: KeyState, family: string) => families.get(family)?.active;
    return this.#slots.every(({ column }) => active(state, column.class) === active(this.#state, column.class));
  }

  /** Errors: outages (`vault_unavailable`, `database_unavailable`, `keys_not_ready`); everything else is a failure of the row. */
  async renew(row: Row): Promise<Renewed> {
    const name = formatRow(row.key);
    const columns: string[] = [];
    const failures: Failure[] = [];
    let next: (string | null)[] | undefined;
    for (const slot of this.#slots) {
      const value = row.values[slot.at];
      if (value === null || value === undefined || !this.#isStale(slot, value)) continue;
      try {
        const renewed = this.#renewValue(slot, row.tenant, name, value);
        const texts = renewed instanceof Promise ? await renewed : renewed;
        next ??= [...row.values];
        for (const [i, text] of texts.entries()) next[slot.at + i] = text;
        columns.push(slot.column.column);
      } catch (error) {
        if (!(error instanceof FieldkeepError) || isOutage(error)) throw error;
        failures.push({ column: slot.column.column, row: name, code: error.code });
      }
    }
    return { columns, failures, ...(next !== undefined && { next }) };
  }

  #isStale(slot: Slot, value: string): boolean {
    const active = this.#state.families.get(slot.column.class)?.active ?? 0;
    const version = versionOf(value);
    return version === 0 ? slot.column.adopt : version > 0 && version < active;
  }

  #renewValue(
    slot: Slot,
    tenant: string | null,
    row: string,
    value: string,
  ): (string | null)[] | Promise<(string | null)[]> {
    if (tenant === null || tenant === '') throw new FieldkeepError('request_invalid', 'The row has no tenant.');
    const family = slot.column.class;
    const active = getActive(this.#state, family);
    const sealing = this.#keyring.getOrMake(tenant, family, active.version);
    if (versionOf(value) === 0) {
      const store = (keys: Keys) => this.#seal(slot, active, keys.sealing, tenant, row, value);
      return sealing instanceof Promise ? sealing.then((key) => store({ sealing: key })) : store({ sealing });
    }
    const envelope = parseEnvelope(value);
    if (envelope.family !== family) throw decryptionFailed();
    const old = getReadable(this.#state, family, envelope.version);
    const opening = this.#keyring.get(tenant, family, envelope.version);
    const work = ({ opening: key, sealing: to }: Keys) => {
      if (key === undefined) throw decryptionFailed();
      const plaintext = open(key, envelope, this.#context(slot, old, tenant, row));
      return this.#seal(slot, active, to, tenant, row, plaintext);
    };
    if (!(opening instanceof Promise) && !(sealing instanceof Promise)) return work({ opening, sealing });
    return Promise.all([opening, sealing]).then(([from, to]) => work({ opening: from, sealing: to }));
  }

  #context(slot: Slot, version: KeyVersion, tenant: string, row: string): Buffer {
    const place = { tenant, table: this.#table.address, column: slot.column.column };
    return encodeContext(version.family, version.version, { ...place, row: version.bind === 'column' ? '' : row });
  }

  /** The new envelope, then the tokens of the column's indexes in the order of the policy. */
  #seal(slot: Slot, active: KeyVersion, key: DataKey, tenant: string, row: string, value: string): (string | null)[] {
    const { column, fieldClass } = slot;
    const ctx = this.#context(slot, active, tenant, row);
    const envelope = seal(key, column.class, active.version, ctx, value, fieldClass.padTo);
    const indexes = findIndexes(active, this.#table.address, column.column);
    const normalised = indexes.length === 0 ? '' : normalise(active.normalise, value);
    const tokens = column.index.map(({ name }) => {
      const index = indexes.find((each) => each.name === name);
      if (index === undefined) return null; // registered after the version was made: it counts from the next
      const place = { tenant, table: index.table, column: index.column, index: name, bits: index.bits };
      return indexToken(key, active.version, place, normalised) ?? null;
    });
    return [formatEnvelope(envelope), ...tokens];
  }
}

const looksUpTo = 40;

/** The first characters as Postgres counts them: a surrogate pair is one. */
function left(value: string): string {
  const head = value.slice(0, looksUpTo);
  return /[\ud800-\udfff]/.test(head) ? [...value.slice(0, 2 * looksUpTo)].slice(0, looksUpTo).join('') : head;
}

/** As fieldkeep.fe_version counts a text: its version, 0 for plaintext, -1 for what only begins like an envelope. */
export function versionOf(value: string): number {
  const head = left(value);
  const match = /^fe1\.[^.]*\.([1-9][0-9]{0,8})\.[^.]/.exec(head);
  if (match !== null) return Number(match[1]);
  return /^fe[0-9]+\./.test(head) ? -1 : 0;
}

function isOutage({ code }: FieldkeepError): boolean {
  return code === 'vault_unavailable' || code === 'database_unavailable' || code === 'keys_not_ready';
}
