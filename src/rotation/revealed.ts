/**
 * Which values a batch reveals that decrypts a column for good: one item each, as for any other batch that opens values,
 * so that the log can tell later whose plaintext was put back, and when.
 */
import { formatItem } from '../audit/entry.ts';
import { rowDigest, type DataKey } from '../crypto/data-key.ts';
import { envelopeDigest, parseEnvelope } from '../crypto/envelope.ts';
import type { Keyring } from '../keys/keyring.ts';
import { auditFamily, getActive } from '../keys/version.ts';
import type { Change } from './batch.ts';
import { formatRow } from '../targets/catalog.ts';
import type { Slot } from './renew.ts';

/** The items' lines, in the order of the changes. Errors: outages of keys. */
export async function listRevealed(
  keyring: Keyring,
  table: string,
  slots: readonly Slot[],
  changes: readonly Change[],
): Promise<string[]> {
  const { version } = getActive(keyring.state, auditFamily);
  const lines: string[] = [];
  for (const { key, tenant, values } of changes) {
    const found = keyring.getOrMake(tenant!, auditFamily, version);
    const digestKey: DataKey = found instanceof Promise ? await found : found;
    for (const { column, at } of slots) {
      const envelope = parseEnvelope(values[at]!);
      lines.push(
        formatItem({
          ...{ class: column.class, view: 'full', table, column: column.column, outcome: 'ok' },
          rowDigest: rowDigest(digestKey, version, table, column.column, formatRow(key)),
          input: envelopeDigest(envelope),
          keyVersion: envelope.version,
        }),
      );
    }
  }
  return lines;
}
