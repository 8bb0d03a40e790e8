/**
 * Does to one row, in memory, what its run is for (work.ts): envelopes of older versions are opened and sealed under the
 * active one, plaintext is sealed, a source is compared, filled or cleared, blind index tokens are made anew. What does
 * not open is recorded and left as it is.
 *
 * The row's context is what an agent would name: the table's address, the column, the key as Postgres spells it.
 */
import { open, seal } from '../crypto/aead.ts';
import type { DataKey } from '../crypto/data-key.ts';
import { formatEnvelope, parseEnvelope } from '../crypto/envelope.ts';
import { decryptionFailed, FieldkeepError } from '../errors.ts';
import { follows } from '../keys/epoch.ts';
import type { Keyring } from '../keys/keyring.ts';
import { getActive, getReadable, type KeyState } from '../keys/version.ts';
import type { FieldClass, RegisteredColumn } from '../policy/policy.ts';
import type { Row } from './batch.ts';
import { formatRow, type TableShape } from '../targets/catalog.ts';
import { encodePlace, getContext, Unsealable, type Place } from '../values/place.ts';
import { assertValue, makeTokens } from '../values/value.ts';
import type { Failure } from './failure-store.ts';
import { writtenBy, type RunKind } from './work.ts';

/** A registered column of the run, and where it stands among the values of a row. */
export interface Slot {
  readonly column: RegisteredColumn;
  readonly fieldClass: FieldClass;
  /** Of the value; its index columns follow. */
  readonly at: number;
  /** Of its source, where that is another column. */
  readonly sourceAt?: number;
}

export interface Renewed {
  /** Undefined when nothing of the row changes. */
  readonly next?: readonly (string | null)[];
  /** Columns whose value is done: changed, or compared and found equal. */
  readonly columns: readonly string[];
  readonly failures: readonly Failure[];
}

export interface Layout {
  readonly slots: readonly Slot[];
  /** The columns to read: each registered column, its index columns, its source. */
  readonly read: readonly string[];
  /** Those among them that may change. */
  readonly written: readonly string[];
}

export function layOut(
  kind: RunKind,
  columns: readonly RegisteredColumn[],
  classOf: (name: string) => FieldClass,
): Layout {
  const read: string[] = [];
  const slots = columns.map((column): Slot => {
    const at = read.push(column.column) - 1;
    read.push(...column.index.map((index) => index.column));
    const slot = { column, fieldClass: classOf(column.class), at };
    return column.from === undefined ? slot : { ...slot, sourceAt: read.push(column.from) - 1 };
  });
  return { slots, read, written: columns.flatMap((column) => writtenBy(kind, column)) };
}

/** What others sealed, opened: by the text that stands in the column. */
export type Opened = ReadonlyMap<string, string | FieldkeepError>;

/** Where a value of a row goes instead: place among the values, text. */
type Patch = readonly (readonly [number, string | null])[];
type Maybe<T> = T | Promise<T>;

/** Keys are at hand most of the time; only a miss is a promise, so a warm row costs no turn of the event loop. */
function after<T, U>(value: Maybe<T>, next: (value: T) => Maybe<U>): Maybe<U> {
  return value instanceof Promise ? value.then(next) : next(value);
}

/** The source and the envelope beside it hold different values: neither is touched. */
class SourceDiffers extends Error {}

export class Renewer {
  readonly #keyring: Keyring;
  readonly #state: KeyState;
  readonly #table: TableShape;
  readonly #kind: RunKind;
  readonly #slots: readonly Slot[];

  /** Works from one picture of key state: the active version does not change under way. */
  constructor(keyring: Keyring, state: KeyState, table: TableShape, kind: RunKind, slots: readonly Slot[]) {
    this.#keyring = keyring;
    this.#state = state;
    this.#table = table;
    this.#kind = kind;
    this.#slots = slots;
  }

  /** Whether values are still sealed under what is active, and the database still has the keys that they are sealed with. */
  isCurrent(state: KeyState): boolean {
    if (!follows(state.epoch, this.#state.epoch)) return false;
    const active = ({ families }: KeyState, family: string) => families.get(family)?.active;
    return this.#slots.every(({ column }) => active(state, column.class) === active(this.#state, column.class));
  }

  /** Texts of these rows that others sealed, by their column; they are opened before the rows are renewed. */
  listSealed(rows: readonly Row[]): Map<RegisteredColumn, string[]> {
    const found = new Map<RegisteredColumn, string[]>();
    for (const slot of this.#slots) {
      if (slot.column.sealed === undefined) continue;
      const wanted = rows.filter(({ values }) => this.#readsSource(slot, values[slot.at] ?? null));
      const texts = wanted.map(({ values }) => values[slot.sourceAt ?? slot.at]);
      const isSealed = (text: string | null | undefined) => typeof text === 'string' && versionOf(text) === 0;
      found.set(slot.column, [...new Set(texts.filter(isSealed) as string[])]);
    }
    return found;
  }

  /** A source is opened to fill its column, and beside an envelope only to compare the two: no rotation needs it. */
  #readsSource({ sourceAt }: Slot, value: string | null): boolean {
    if (sourceAt === undefined) return true;
    if (value === null) return this.#kind === 'adoption' || this.#kind === 'finish';
    return this.#kind === 'finish' || this.#kind === 'verification' || this.#kind === 'leave';
  }

  /** Errors: outages (`vault_unavailable`, `database_unavailable`, `keys_not_ready`); everything else is a failure of the row. */
  async renew(row: Row, opened: Opened = new Map()): Promise<Renewed> {
    const name = formatRow(row.key);
    const columns: string[] = [];
    const failures: Failure[] = [];
    let next: (string | null)[] | undefined;
    for (const slot of this.#slots) {
      try {
        const work = this.#workOn(slot, row, name, opened);
        const patch = work instanceof Promise ? await work : work;
        if (patch === undefined) continue;
        if (patch.length > 0) next ??= [...row.values];
        for (const [at, text] of patch) next![at] = text;
        columns.push(slot.column.column);
      } catch (error) {
        if (!(error instanceof SourceDiffers || error instanceof FieldkeepError) || isOutage(error)) throw error;
        failures.push({ column: slot.column.column, row: name, code: codeOf(error) });
      }
    }
    return { columns, failures, ...(next !== undefined && { next }) };
  }

  /** What becomes of a value and its source; undefined where there is nothing to do, empty where it was only compared. */
  #workOn(slot: Slot, row: Row, name: string, opened: Opened): Maybe<Patch | undefined> {
    const value = row.values[slot.at] ?? null;
    const source = slot.sourceAt === undefined ? null : (row.values[slot.sourceAt] ?? null);
    const isEnvelope = value !== null && versionOf(value) > 0;
    switch (this.#kind) {
      case 'rotation':
      case 'adoption':
        return this.#renewValue(slot, row, name, value, source, opened);
      case 'finish':
        if (source === null) return undefined;
        if (value === null) return this.#fill(slot, row, name, source, opened);
        if (!isEnvelope) return undefined;
        return after(this.#compare(slot, row, name, value, source, opened), () => [[slot.sourceAt!, null]]);
      case 'verification':
        if (source === null || !isEnvelope) return undefined;
        return after(this.#compare(slot, row, name, value, source, opened), () => []);
      case 'leave':
        if (source === null || !isEnvelope) return undefined;
        return after(this.#compare(slot, row, name, value, source, opened), () => this.#patch(slot, null));
      case 'undo':
        if (source !== null || !isEnvelope) return undefined;
        return after(this.#open(slot, row, name, value), (plaintext) =>
          slot.sourceAt === undefined ? this.#patch(slot, plaintext) : [[slot.sourceAt, plaintext]],
        );
    }
  }

  #renewValue(
    slot: Slot,
    row: Row,
    name: string,
    value: string | null,
    source: string | null,
    opened: Opened,
  ): Maybe<Patch | undefined> {
    const { adopt, class: family, from } = slot.column;
    if (value === null) {
      const isWaiting = this.#kind === 'adoption' && adopt && source !== null;
      return isWaiting ? this.#fill(slot, row, name, source, opened) : undefined;
    }
    const version = versionOf(value);
    if (version === 0) return adopt && from === undefined ? this.#fill(slot, row, name, value, opened) : undefined;
    if (version < 0 || version >= (this.#state.families.get(family)?.active ?? 0)) return undefined;
    return after(this.#open(slot, row, name, value), (plaintext) => this.#seal(slot, row, name, plaintext, false));
  }

  /** Seals plaintext, if the row's tenant is one of those who are adopted. */
  #fill(slot: Slot, row: Row, name: string, text: string, opened: Opened): Maybe<Patch | undefined> {
    const { tenants } = slot.column;
    if (tenants !== undefined && !tenants.includes(row.tenant ?? '')) return undefined;
    return this.#seal(slot, row, name, this.#readSource(slot, text, opened), true);
  }

  /** The plaintext that a source's text stands for. */
  #readSource({ column }: Slot, text: string, opened: Opened): string {
    if (column.sealed === undefined) return text;
    const found = opened.get(text);
    if (typeof found === 'string') return found;
    throw found ?? decryptionFailed();
  }

  #compare(slot: Slot, row: Row, name: string, value: string, source: string, opened: Opened): Maybe<void> {
    return after(this.#open(slot, row, name, value), (plaintext) => {
      if (this.#kind === 'leave' && plaintext === source) return; // undone: what others had sealed comes back as plaintext
      if (plaintext !== this.#readSource(slot, source, opened)) throw new SourceDiffers();
    });
  }

  #open(slot: Slot, row: Row, name: string, value: string): Maybe<string> {
    const tenant = getTenant(row);
    const family = slot.column.class;
    const envelope = parseEnvelope(value);
    if (envelope.family !== family) throw decryptionFailed();
    const version = getReadable(this.#state, family, envelope.version);
    return after(this.#keyring.get(tenant, family, envelope.version), (key) => {
      if (key === undefined) throw decryptionFailed();
      return open(key, envelope, encodePlace(version, this.#placeOf(slot, tenant, name)));
    });
  }

  #placeOf({ column }: Slot, tenant: string, row: string): Place {
    return { tenant, table: this.#table.address, column: column.column, row };
  }

  /** The new envelope and the tokens of the column's indexes; a value that was not sealed before must be one for the API. */
  #seal(slot: Slot, row: Row, name: string, plaintext: string, isNew: boolean): Maybe<Patch> {
    const place = this.#placeOf(slot, getTenant(row), name);
    const active = getActive(this.#state, slot.column.class);
    const ctx = getContext(active, place);
    if (isNew) assertValue(active, place, plaintext);
    const { database } = this.#table;
    return after(this.#keyring.getOrMake(place.tenant, active.family, active.version, database), (key: DataKey) => {
      const envelope = seal(key, active.family, active.version, ctx, plaintext, slot.fieldClass.padTo);
      const tokens = makeTokens(key, active, place, plaintext);
      // An index that was registered after the version was made counts from the next.
      const inOrder = slot.column.index.map((index) => tokens.get(index.name) ?? null);
      return this.#patch(slot, formatEnvelope(envelope), inOrder);
    });
  }

  #patch({ column, at }: Slot, value: string | null, tokens?: readonly (string | null)[]): Patch {
    return [[at, value], ...column.index.map((_, i) => [at + 1 + i, tokens?.[i] ?? null] as const)];
  }
}

function codeOf(error: SourceDiffers | FieldkeepError): string {
  if (error instanceof Unsealable) return `${error.code}:${error.why}`;
  return error instanceof FieldkeepError ? error.code : 'source_differs';
}

function getTenant({ tenant }: Row): string {
  if (tenant === null || tenant === '') throw new Unsealable('tenant_missing', 'The row has no tenant.');
  return tenant;
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

function isOutage(error: Error): boolean {
  if (!(error instanceof FieldkeepError)) return false;
  const { code } = error;
  return code === 'vault_unavailable' || code === 'database_unavailable' || code === 'keys_not_ready';
}
