/**
 * The limit for re-encryption: the engine's own statements, on the same table with the same indexes, without crypto, audit
 * and checkpoints. A pass gives every envelope and token of a version the number of another and changes nothing else, so
 * values keep their length, index entries move as in a rotation, and the pass back restores the table.
 */
import type { Pool } from '../../src/db.ts';
import { sweep, type Row, type TableShape } from './engine.ts';
import { pace, type Pace } from './pace.ts';

interface RawPass {
  readonly table: TableShape;
  /** The column of envelopes, then its index columns. */
  readonly columns: readonly string[];
  readonly from: number;
  readonly to: number;
  readonly rowsMax: number;
  /** Rows have the ids 1 … this. */
  readonly ids: number;
  readonly lanes: number;
}

/** The envelope or token as one of another version. */
function relabel(text: string | null, version: number): string | null {
  return text && text.replace(/^(fe1\.[^.]+\.|b)\d+/, (_all, head: string) => `${head}${version}`);
}

export async function rawPass(db: Pool, { from, to, ids, lanes, ...rest }: RawPass): Promise<Pace> {
  const renew = (rows: readonly Row[]) => rows.map(({ values }) => values.map((text) => relabel(text, to)));
  return await pace(() =>
    sweep(db, { ...rest, stale: [{ column: rest.columns[0]!, value: [from] }], renew }, ids, lanes),
  );
}
