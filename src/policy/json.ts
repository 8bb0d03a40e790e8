/**
 * What JSON.parse keeps to itself about a file that people write: where it stops being JSON (its messages give a place
 * for some mistakes only), and names that stand twice in one object, of which it would keep the last without a word: a
 * deny could vanish that way. Pure.
 */

export interface Flaw {
  readonly offset: number;
  readonly message: string;
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
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  scan(): void {
    this.#value(0);
    this.#take(space);
    if (this.#at < this.#text.length) this.#stop();
  }

  #stop(message = 'this is not JSON from here on', offset = this.#at): never {
    throw new Stop(offset, message);
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

  #value(depth: number): void {
    if (depth > depthMax) this.#stop('this is nested too deeply');
    const next = this.#next();
    if (next === '{') this.#list('}', this.#member(depth));
    else if (next === '[') this.#list(']', () => this.#value(depth + 1));
    else if (this.#take(next === '"' ? string : scalar) === undefined) this.#stop();
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

  /** Reads the members of one object, one a call. */
  #member(depth: number): () => void {
    const names = new Set<string>();
    return () => {
      this.#take(space);
      const offset = this.#at;
      const quoted = this.#take(string);
      if (quoted === undefined) this.#stop();
      const name = JSON.parse(quoted) as string;
      if (names.has(name)) this.#stop('this name stands in the object twice', offset);
      names.add(name);
      if (this.#next() !== ':') this.#stop();
      this.#at += 1;
      this.#value(depth + 1);
    };
  }
}

/** The first flaw of a text, in reading order; undefined when it is JSON without any. */
export function findFlaw(text: string): Flaw | undefined {
  try {
    new Scanner(text).scan();
    return undefined;
  } catch (error) {
    if (error instanceof Stop) return error.flaw;
    throw error;
  }
}
