/** A kind of sensitive value, as the policy describes it, and the views of it: how much of a value is revealed. */
import type { PadTo } from '../crypto/aead.ts';
import type { Normalise } from '../crypto/blind-index.ts';
import type { RetireRule, RotationLimits } from './limits.ts';
import type { views } from './schema.ts';

export type View = (typeof views)[number];

export interface FieldClass {
  readonly name: string;
  readonly bind: 'row' | 'column';
  readonly padTo: PadTo;
  /** ISO 8601 duration. */
  readonly rotateEvery: string;
  /** With what "nonAscii" says. */
  readonly normalise?: Normalise;
  /** Most first. */
  readonly views: readonly View[];
  readonly defaultView: View;
  readonly mask: string;
  readonly edges?: readonly string[];
  readonly rotation: RotationLimits;
  readonly retire: RetireRule;
  /** Who opens values of a compromised version: grants that say so, or nobody. */
  readonly compromised: 'grants' | 'deny';
}
