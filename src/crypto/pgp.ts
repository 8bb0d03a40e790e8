/**
 * Opens what pgcrypto's pgp_sym_encrypt has sealed (OpenPGP, RFC 4880), and the only importer of `openpgp`. Nothing is
 * sealed that way here. A text is the value of a bytea column as Postgres prints it, or of a text column with armor():
 *
 *     \xc30d04070302…        bytea_output = hex
 *     -----BEGIN PGP MESSAGE-----…
 *
 * A message without a modification detection code (`disable-mdc=1`) is refused: nobody could say that it is what was stored.
 * So is all that pgp_sym_encrypt does not make and that would cost more to try: a passphrase is stretched once for a value.
 */
import { decrypt, enums, readMessage } from 'openpgp';
import { FieldkeepError } from '../errors.ts';
import { plaintextBytesMax } from './aead.ts';

const hexPattern = /^\\x(?:[0-9a-f]{2})+$/;
const armorPattern = /^\s*-----BEGIN PGP MESSAGE-----\r?\n/;

/** What a message may unfold to: a value, and the headers of its packets. Nothing is stretched by Argon2, which takes any memory. */
const config = { maxDecompressedMessageSize: plaintextBytesMax + 1024, maxArgon2MemoryExponent: 0 };
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

async function parse(text: string) {
  try {
    if (hexPattern.test(text)) return await readMessage({ binaryMessage: Buffer.from(text.slice(2), 'hex'), config });
    if (armorPattern.test(text)) return await readMessage({ armoredMessage: text, config });
  } catch {
    // Told below, without the words of the library.
  }
  return undefined;
}

async function readPgp(text: string) {
  const message = await parse(text);
  const { publicKeyEncryptedSessionKey: forKey, symEncryptedSessionKey: forPassphrase } = enums.packet;
  const count = (tag: enums.packet) => message?.packets.filterByTag(tag).length;
  if (message !== undefined && count(forPassphrase) === 1 && count(forKey) === 0) return message;
  throw new FieldkeepError(
    'envelope_malformed',
    'The value is not a PGP message for one passphrase, as bytea or in ASCII armor.',
  );
}

/**
 * What the message says; line ends are left as they are.
 *
 * Errors: `envelope_malformed` for what is no PGP message, or one for a public key; `decryption_failed` for another passphrase, damage, a message
 * that cannot be checked, and for what is not strict UTF-8 or longer than a value may be.
 */
export async function openPgp(text: string, passphrase: string): Promise<string> {
  const message = await readPgp(text);
  try {
    // Its type is one of a stream library that is not there; with this format it is bytes.
    const opened: unknown = await decrypt({ message, passwords: passphrase, format: 'binary', config });
    const { data } = opened as { readonly data: Uint8Array };
    if (data.length <= plaintextBytesMax) return utf8.decode(data);
  } catch {
    // One failure, whatever the library says.
  }
  throw new FieldkeepError('decryption_failed', 'The PGP message does not open.');
}
