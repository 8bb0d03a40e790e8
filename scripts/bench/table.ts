/** Figures of a benchmark: rows of a name and its measures, the first row being the limit that others are held against. */

export interface BenchOptions {
  readonly rounds: number;
  readonly seconds: number;
  readonly rows: number;
  /** Ranges, or stretches of keys, that are worked on at once. */
  readonly concurrency: number;
  /** Processes that rotate, where that is not the one that answers. */
  readonly workers: number;
  /** Rows per second of each family, where rotations are held back. */
  readonly rate: number;
}

export interface Section {
  readonly title: string;
  readonly rows: readonly { readonly name: string; readonly figures: Readonly<Record<string, number>> }[];
  readonly note?: string;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}

function format(n: number): string {
  if (n >= 1000 || Number.isInteger(n)) return Math.round(n).toLocaleString('en-US');
  return n >= 100 ? n.toFixed(0) : n.toFixed(2);
}

export function formatTable({ title, rows, note }: Section): string {
  const names = Object.keys(rows[0]?.figures ?? {});
  const cells = [
    [title, ...names],
    ...rows.map(({ name, figures }) => [name, ...names.map((key) => format(figures[key] ?? NaN))]),
  ];
  const widths = cells[0]!.map((_, i) => Math.max(...cells.map((row) => row[i]!.length)));
  const lines = cells.map((row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]! + 2))).join(''),
  );
  return [...lines, ...(note === undefined ? [] : [note])].join('\n');
}
