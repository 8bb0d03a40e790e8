/** The tables of docs/roles.md: which login may do what with which object. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

const page = readFileSync(new URL('../../docs/roles.md', import.meta.url), 'utf8');

/** By right; undefined: on all columns, or on what has none. */
export type Cell = ReadonlyMap<string, readonly string[] | undefined>;

/** By object as the page calls it, and by login. */
export type Table = ReadonlyMap<string, ReadonlyMap<string, Cell>>;

const rights = ['select', 'insert', 'update', 'delete', 'truncate', 'usage', 'execute'];

/** The SQL that the page has people paste, statement by statement. */
export function readStatements(): string[] {
  const [, sql] = /```sql\n([^]*?)```/.exec(page)!;
  return sql!.split(';').flatMap((each) => (each.trim() === '' ? [] : [each.trim()]));
}

/** The command of the page that gives rights in a database, as its arguments. */
export function readSetup(database: string): string[] {
  const [, args] = new RegExp(`^npm run target:setup -- (${database} .*)$`, 'm').exec(page)!;
  return args!.split(/ +/);
}

function parseCell(text: string): Cell {
  if (text === '–') return new Map();
  assert.match(text, /^`(\w+( \([\w, ]+\))?(, (?!`)|(?=`$)))+`$/);
  const words = text.matchAll(/(\w+)(?: \(([^)]*)\))?/g);
  const cell = new Map(Array.from(words, ([, right, columns]) => [right!, columns?.split(', ')]));
  const unknown = [...cell.keys()].filter((right) => !rights.includes(right));
  assert.deepEqual(unknown, [], `of the cell ${text}`);
  return cell;
}

const cellsOf = (line: string) =>
  line
    .slice(1, -1)
    .split('|')
    .map((each) => each.trim());

/** The cells of the table under a heading, line by line, its head first. */
export function readCells(heading: string): string[][] {
  const section = new RegExp(`\n##+ ${heading}\n([^]*?)(\n#|$)`).exec(page)![1]!;
  const [head, , ...lines] = section.split('\n').filter((line) => line.startsWith('|'));
  return [head!, ...lines].map(cellsOf);
}

/** The rights in the table under a heading. */
export function readTable(heading: string): Table {
  const [[, ...logins] = [], ...lines] = readCells(heading);
  const rows = lines.map(([object, ...cells]) => {
    assert.equal(cells.length, logins.length, `of ${object}`);
    const byLogin = new Map(cells.map((cell, i) => [logins[i]!, parseCell(cell)]));
    return [object!.replaceAll('`', ''), byLogin] as const;
  });
  assert.equal(new Set(rows.map(([object]) => object)).size, rows.length, 'no object stands there twice');
  return new Map(rows);
}
