/**
 * What a session of ours must be like, so that a statement means the same whoever set up the server, its databases and
 * roles, and whatever stands in between:
 *
 *   1. the settings below are sent as the session starts
 *   2. they are read back before its first other statement; the session is given up where one is not as it must be
 *   3. statements on the customer's rows prove them once more, by a condition of their own (`proofOf`): a trigger, or a
 *      pooler that hands one session to several clients, may have changed them since
 *
 * Left as the database has them: settings that no statement of ours is read by and a trigger of the customer's may be
 * (default_text_search_config), and those that change a plan or a message and no answer (enable_*, lc_messages).
 */
import { FieldkeepError } from './errors.ts';

/** Each spelled as Postgres answers it. */
export type Settings = Readonly<Record<string, string>>;

const pinned: Settings = {
  // pg_temp last: where it is not named it comes first, and a temporary table would stand in for one of the catalogs.
  search_path: 'pg_catalog, pg_temp',
  client_encoding: 'UTF8',
  // How values are spelled as text, and how text is read.
  array_nulls: 'on',
  bytea_output: 'hex',
  datestyle: 'ISO, MDY',
  extra_float_digits: '1',
  intervalstyle: 'postgres',
  lc_monetary: 'C',
  lc_numeric: 'C',
  lc_time: 'C',
  timezone: 'UTC',
  timezone_abbreviations: 'Default',
  xmlbinary: 'base64',
  xmloption: 'content',
  // How statements are read. Definitions are compared as the server prints them, with no more quotes than they need.
  backslash_quote: 'safe_encoding',
  quote_all_identifiers: 'off',
  standard_conforming_strings: 'on',
  transform_null_equals: 'off',
  // Which rows they see, and what becomes of them. A filtered answer is an error.
  default_transaction_deferrable: 'off',
  default_transaction_isolation: 'read committed',
  exit_on_error: 'off',
  gin_fuzzy_search_limit: '0',
  row_security: 'off',
  synchronous_commit: 'on',
  // Who wants others says so.
  lock_timeout: '0',
  statement_timeout: '10s',
};

/** Never sent: the first takes rights that we should not have; the second is how people stop all writing to a database. */
const required: Settings = { session_replication_role: 'origin', default_transaction_read_only: 'off' };

/** What is sent, `more` over what every session has. */
export function settingsToSend(more: Settings): Settings {
  return { ...pinned, ...more };
}

/** What has to be read back. */
export function settingsToHave(more: Settings): Settings {
  return { ...required, ...pinned, ...more };
}

/** A time as Postgres answers it: in the largest unit that it is a whole number of. */
export function spellMs(ms: number): string {
  const units = [
    ['d', 86_400_000],
    ['h', 3_600_000],
    ['min', 60_000],
    ['s', 1000],
  ] as const;
  if (ms === 0) return '0';
  const [unit, size] = units.find(([, size]) => ms % size === 0) ?? ['ms', 1];
  return `${ms / size}${unit}`;
}

/** As the startup parameter `options`. */
export function startOptions(settings: Settings): string {
  const escape = (value: string) => value.replace(/[\\ ]/g, '\\$&');
  return Object.entries(settings)
    .map(([name, value]) => `-c ${name}=${escape(value)}`)
    .join(' ');
}

const ask = (name: string) => `pg_catalog.current_setting('${name}', true)`;

/** One row with the setting of each, in their order. Means the same in any session. */
export function readBackSql(settings: Settings): string {
  return `select ${Object.keys(settings).map(ask).join(', ')}`;
}

export interface Difference {
  readonly name: string;
  readonly found: string | null;
  readonly needed: string;
}

export function findDifferences(settings: Settings, found: readonly (string | null)[]): Difference[] {
  const all = Object.entries(settings).map(([name, needed], i) => ({ name, needed, found: found[i] ?? null }));
  return all.filter((each) => each.found !== each.needed);
}

const lost = 'fieldkeep.lost.';

/**
 * A condition that is true in a session with these settings. In any other it fails the statement (42704) before that has
 * looked at a row, for nobody defines the parameter that it then asks for; `findLost` knows the error. Limits on time are
 * left out: a statement may have its own.
 */
export function proofOf(settings: Settings): string {
  const cases = Object.entries(settings)
    .filter(([name]) => !name.endsWith('_timeout'))
    .map(([name, value]) => `when coalesce(${ask(name)} operator(pg_catalog.<>) '${value}', true) then '${name}'`);
  return `pg_catalog.current_setting('${lost}' operator(pg_catalog.||) case ${cases.join(' ')} end) is null`;
}

/** The setting that a proof missed, from the words of its error. */
export function findLost(message: string): string | undefined {
  return /"fieldkeep\.lost\.([\w.]+)"/.exec(message)?.[1];
}

/** A value as it may be shown: whoever can set it can write anything there. */
function show(value: string | null): string {
  if (value === null) return 'not set';
  return /^[\w ,.:"$+/-]{1,60}$/.test(value) ? value : 'another one';
}

const mend: Readonly<Record<string, string>> = {
  session_replication_role: 'No trigger would fire.',
  default_transaction_read_only: 'Nothing may be written.',
};

function describe(differences: readonly Difference[]): string {
  const [first, ...others] = differences.toSorted((a, b) => Number(b.name in required) - Number(a.name in required));
  const { name, found, needed } = first!;
  const more = others.length === 0 ? '' : ` (and ${others.length} more)`;
  const what = `${name} is ${show(found)}, and must be ${needed}${more}.`;
  if (name in required) {
    const reset = `alter role … reset ${name}, alter database … reset ${name}, or the server’s configuration`;
    return `${what} ${mend[name]} Take it back where it was set: ${reset}.`;
  }
  return `${what} A pooler in between drops what a session starts with (PgBouncer: ignore_startup_parameters). Connect to Postgres itself.`;
}

/** A session that we do not work in. The words name settings, never the database's address. */
export class SessionRefused extends FieldkeepError {
  /** As what something is held back by. */
  readonly phrase: string;

  private constructor(problem: string) {
    const phrase = `a session that is not as it must be: ${problem}`;
    super('database_unavailable', `A${phrase.slice(1)}`, { retryAfterSeconds: 1 });
    this.phrase = phrase;
  }

  static onConnecting(differences: readonly Difference[]): SessionRefused {
    return new SessionRefused(describe(differences));
  }

  static byPooler(): SessionRefused {
    return new SessionRefused(
      'a pooler in between does not let it start with settings of its own. Connect to Postgres itself.',
    );
  }

  static later(name: string): SessionRefused {
    return new SessionRefused(
      `${name} was changed after it began, by a trigger that sets it for longer than the transaction or by a pooler that ` +
        'hands one session to several clients. Have the trigger use set local, or connect to Postgres itself.',
    );
  }
}
