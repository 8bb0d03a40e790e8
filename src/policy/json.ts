/**
 * What JSON.parse keeps to itself about a file that people write: where it stops being JSON (its messages give a place
 * for some mistakes only), names that stand twice in one object, of which it would keep the last without a word (a deny
 * could vanish that way), and where in the text each value stands. Pure.
 */

interface Flaw {
  readonly offset: number;
  readonly message: string;
}

export interface Scan {
  /** In reading order. What is not JSON ends the scan; other flaws do not. */
  readonly flaws: readonly Flaw[];
  /** Where members and elements begin, by their path: agents.hr-agent.grants[2] */
  readonly places: ReadonlyMap<string, number>;
}

/** The path of what has this name, or this number, inside `path`. A name that would blur the path is quoted. */
export function pathOf(path: string, step: PropertyKey): string {
  if (typeof step === 'number') return `${path}[${step}]`;
  const name = String(step);
  if (!/^[A-Za-z_$][\w$-]*$/.test(name)) return `${path}[${JSON.stringify(name)}]`;
  return path === '' ? name : `${path}.${name}`;
}

/** What holds it; '' for what stands at the top. */
export function parentOf(path: string): string {
  return path.replace(/(?:\.?[\w$-]+|\[\d+\]|\["(?:[^"\\]|\\.)*"\])$/, '');
}

class Stop extends Error {
  readonly flaw: Flaw;

  constructor(offset: number, message: string) {
    super(message);
    this.flaw = { offset, message };
  }
}

const depthMax = 64;
const space = /[ \t\n\r]*/y;
// Every repetition begins with a character that ends the one before, so that an open string costs one look at it.
const string = /"[^"\\\u0000-\u001f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\u0000-\u001f]*)*"/y;
const scalar = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;

class Scanner {
  readonly flaws: Flaw[] = [];
  readonly places = new Map<string, number>();
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  scan(): void {
    this.#value('', 0);
    this.#take(space);
    if (this.#at < this.#text.length) this.#stop();
  }

  #stop(message = 'this is not JSON from here on'): never {
    throw new Stop(this.#at, message);
  }

  /** The text that `pattern` matches here; nothing is skipped. */
  #take(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (match === null) return undefined;
    this.#at += match[0].length;
    return match[0];
  }

  #next(): string | undefined {
    this.#take(space);
    return this.#text[this.#at];
  }

  /** The string that stands here, decoded. */
  #string(): string | undefined {
    const offset = this.#at;
    const quoted = this.#take(string);
    if (quoted === undefined) return undefined;
    const text = JSON.parse(quoted) as string;
    // Neither Postgres nor a context can hold these: no caller could ever name it.
    if (text.includes('\0') || !text.isWellFormed())
      this.flaws.push({ offset, message: 'this text holds NUL or half a character (a lone surrogate)' });
    return text;
  }

  #value(path: string, depth: number): void {
    if (depth > depthMax) this.#stop('this is nested too deeply');
    const next = this.#next();
    if (next === '{') this.#list('}', this.#member(path, depth));
    else if (next === '[') this.#list(']', this.#element(path, depth));
    else if ((next === '"' ? this.#string() : this.#take(scalar)) === undefined) this.#stop();
  }

  /** From the opening bracket to the closing one. */
  #list(close: string, entry: () => void): void {
    this.#at += 1;
    if (this.#next() === close) {
      this.#at += 1;
      return;
    }
    for (;;) {
      entry();
      const next = this.#next();
      if (next !== ',' && next !== close) this.#stop();
      this.#at += 1;
      if (next === close) return;
    }
  }

  /** Reads the elements of one array, one a call. */
  #element(path: string, depth: number): () => void {
    let i = 0;
    return () => {
      const at = pathOf(path, i);
      i += 1;
      this.#take(space);
      this.places.set(at, this.#at);
      this.#value(at, depth + 1);
    };
  }

  /** Reads the members of one object, one a call. */
  #member(path: string, depth: number): () => void {
    const names = new Set<string>();
    return () => {
      this.#take(space);
      const offset = this.#at;
      const name = this.#string();
      if (name === undefined) this.#stop();
      if (names.has(name)) this.flaws.push({ offset, message: 'this name stands in the object twice' });
      // Libraries pass over it in silence, and what it holds would not count.
      if (name === '__proto__') this.flaws.push({ offset, message: 'this name cannot be used' });
      names.add(name);
      const at = pathOf(path, name);
      this.places.set(at, offset);
      if (this.#next() !== ':') this.#stop();
      this.#at += 1;
      this.#value(at, depth + 1);
    };
  }
}

/** What is wrong with a text as JSON, and where its values stand. Without flaws, JSON.parse takes it. */
export function scanJson(text: string): Scan {
  const scanner = new Scanner(text);
  const { flaws, places } = scanner;
  try {
    scanner.scan();
  } catch (error) {
    if (!(error instanceof Stop)) throw error;
    flaws.push(error.flaw);
  }
  return { flaws, places };
}
