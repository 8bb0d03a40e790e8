/** How fast rows went, and what else than us can bring them under a new key. */

export interface Pace {
  readonly rows: number;
  readonly seconds: number;
}

export const rate = ({ rows, seconds }: Pace) => rows / seconds;

/** Times `work`, which answers how many rows it did. */
export async function pace(work: () => Promise<number>): Promise<Pace> {
  const started = performance.now();
  const rows = await work();
  return { rows, seconds: (performance.now() - started) / 1000 };
}

/** Another way to re-encrypt rows, on a table of its own. */
export interface Peer {
  readonly name: string;
  /** Brings every row of its table under a new key. */
  rotate(): Promise<Pace>;
}
