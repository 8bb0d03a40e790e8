/**
 * The certificate of a version's end: canonical JSON (RFC 8785), signed with the Ed25519 key of the audit log's checkpoints.
 * Its text is made once, from what is stored, and never changes; the signature is over its UTF-8 bytes.
 *
 *     { format, family, version, destroyedAt, carriedOutBy,
 *       approval, guards, census, undeclared, rootKey, horizons, audit, waived,      the sections
 *       digests: { <section>: base64url of SHA-256 over the section's canonical JSON,
 *                  head: the same over { format, family, version, destroyedAt, carriedOutBy } } }
 *
 * The digests tell a reader of a certificate whose signature does not fit which section was changed.
 */
import { createPublicKey, verify } from 'node:crypto';
import { unfoldAcknowledged, findEntries } from '../audit/store.ts';
import { leafHash } from '../audit/merkle.ts';
import { canonicalDigest, canonicalJson } from '../crypto/canonical.ts';
import type { Pool } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { RootKeys } from '../keys/root-keys.ts';
import { addDuration } from '../policy/schedule.ts';
import { setCertificate, setSigned, type Destruction } from './destroy-store.ts';

const format = 'fieldkeep-certificate/1';
const spkiHead = Buffer.from('302a300506032b6570032100', 'hex');

/** Where the entry that tells of the end stands in the log, and the newest one that stood there when this was written. */
async function placeInLog(pool: Pool, requestId: string): Promise<object> {
  await unfoldAcknowledged(pool);
  const { items } = await findEntries(pool, { requestId }, 1);
  const [newest] = (await findEntries(pool, {}, 1)).items;
  const [entry] = items;
  if (entry === undefined || newest === undefined) {
    throw new FieldkeepError('internal', 'The audit log does not hold the entry of a destroyed version.');
  }
  const place = ({ index, line }: typeof entry) => ({ index, leafHash: leafHash(line).toString('base64') });
  return { entry: place(entry), newest: place(newest) };
}

/** Of a version that is destroyed. `audit` is its place in the log. */
export function formatCertificate(destruction: Destruction, audit: object): string {
  const { evidence, keeperAnswer, destroyedAt, details: _, ...rest } = destruction;
  const { census, countedAt, guards, horizons, lastUsedAt, undeclared, unregistered, waived } = evidence!;
  const after = (duration: string) => addDuration(destroyedAt!, duration).toISOString();
  const sections = {
    approval: {
      ...{ id: rest.approval, requestedBy: rest.requestedBy, reason: rest.reason },
      ...{ askedAt: rest.askedAt.toISOString(), decisions: rest.decisions },
    },
    guards,
    census: { countedAt, columns: census, unregistered, ...(lastUsedAt !== undefined && { lastUsedAt }) },
    undeclared,
    rootKey: keeperAnswer!,
    horizons: {
      ...horizons,
      wrappedKeysInBackupsUntil: after(horizons.backupHorizon),
      rootKeyInSnapshotsUntil: after(horizons.vaultBackupHorizon),
    },
    audit,
    waived,
  };
  const { family, version } = rest;
  const head = { format, family, version, destroyedAt: destroyedAt!.toISOString(), carriedOutBy: rest.carriedOutBy! };
  const digests = Object.fromEntries(
    Object.entries({ head, ...sections }).map(([name, section]) => [name, canonicalDigest(section)]),
  );
  return canonicalJson({ ...head, ...sections, digests });
}

/** The certificate's text, the same whoever asks first. */
export async function makeCertificate(pool: Pool, destruction: Destruction): Promise<string> {
  const { id, certificate, entry } = destruction;
  if (certificate !== undefined) return certificate;
  return await setCertificate(pool, id, formatCertificate(destruction, await placeInLog(pool, entry!)));
}

/** Errors: those of the keeper; `internal` when what it answers is not a signature by the key that it shows. */
export async function signCertificate(pool: Pool, rootKeys: RootKeys, id: string, text: string): Promise<void> {
  const { publicKey, version } = await rootKeys.getSigningKey();
  const signature = await rootKeys.sign(Buffer.from(text));
  const key = createPublicKey({ key: Buffer.concat([spkiHead, publicKey]), format: 'der', type: 'spki' });
  if (!verify(null, Buffer.from(text), key, signature)) {
    throw new FieldkeepError('internal', 'The signature of a certificate does not fit the key that signs checkpoints.');
  }
  const encode = (bytes: Buffer) => bytes.toString('base64');
  await setSigned(pool, id, { signature: encode(signature), publicKey: encode(publicKey), version });
}
