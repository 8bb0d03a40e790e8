/** What an inspection says of a column, in sentences fit for a terminal. Names and numbers, never a value. Pure. */

export interface Finding {
  /** stop: it cannot be adopted like this · change: somebody has to change something on the way · note: good to know. */
  readonly level: 'stop' | 'change' | 'note';
  readonly what: string;
  readonly why: string;
  /** What to do, often a statement. */
  readonly how?: string;
}

const make =
  (level: Finding['level']) =>
  (what: string, why: string, how?: string): Finding => ({ level, what, why, ...(how !== undefined && { how }) });

export const stop = make('stop');
export const change = make('change');
export const note = make('note');

/** The finding, where it holds. */
export const when = (holds: boolean | undefined, finding: () => Finding): Finding[] =>
  holds === true ? [finding()] : [];

const count = (n: number) => n.toLocaleString('en-US');
export const countOf = (n: number, one: string, many = `${one}s`): string => `${count(n)} ${n === 1 ? one : many}`;
