/**
 * What Fieldkeep needs of the keeper of root keys, Vault or the embedded file. A root key never leaves its keeper; it
 * wraps data keys, and each wrapping names the version of the root key and a context that unwrapping must repeat.
 */
import { FieldkeepError } from '../errors.ts';

export interface RootKeys {
  readonly kind: 'vault' | 'embedded';
  /** Makes the family's root key if there is none. Answers its newest version (≥ 1). */
  ensureFamily(family: string): Promise<number>;
  /** Adds a version to the family's root key and answers that version, from the keeper's own answer. */
  rotate(family: string): Promise<number>;
  /** Makes a data key (64 random bytes) under the named root key version and answers its wrapped form only. */
  makeDataKey(family: string, transitVersion: number, context: Buffer): Promise<string>;
  /** Opens a wrapped data key. The caller owns the bytes and wipes them. */
  unwrap(family: string, wrapped: string, context: Buffer): Promise<Buffer>;
  /** The oldest version of the family's root key that was not given up; 0 where the keeper has given up none yet. */
  findOldest(family: string): Promise<number>;
  /**
   * Gives up every version below `minVersion` for ever. Returns once the keeper has confirmed that they are gone; refused
   * where the root key could have been copied out. `mayGoOn` is asked between the step that can be taken back and the one
   * that cannot: what it throws ends it there. Whoever calls `keepFrom` after it was asked has the last step fail.
   */
  destroyBelow(family: string, minVersion: number, mayGoOn?: () => Promise<void>): Promise<void>;
  /** Has the version and later ones unwrap again, where giving them up was begun and not done; what was begun fails. */
  keepFrom(family: string, version: number): Promise<void>;
  /** The public half of the Ed25519 key that signs checkpoints, 32 bytes; made if there is none. */
  getSigningKey(): Promise<SigningKey>;
  /** Signs with that key (RFC 8032, 64 bytes). */
  sign(message: Buffer): Promise<Buffer>;
  /** Why nothing can be asked of the keeper now, in a sentence; undefined when all is well. Does not throw. */
  findProblem(): Promise<string | undefined>;
  /** For metrics, as of now; which there are depends on the keeper. What ends in `_total` only grows. */
  figures(): Readonly<Record<string, number>>;
  close(): void;
}

interface SigningKey {
  readonly version: number;
  readonly publicKey: Buffer;
}

/**
 * The keeper did not do it. `refused` tells a clear no (the key is gone, access was taken away: cached copies must go at
 * once) from an outage (cached copies stay good until their time is over).
 */
export class RootKeyError extends FieldkeepError {
  readonly refused: boolean;

  constructor(detail: string, { refused }: { refused: boolean }) {
    super('vault_unavailable', detail, { retryAfterSeconds: 2 });
    this.name = 'RootKeyError';
    this.refused = refused;
  }
}
