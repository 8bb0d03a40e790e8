/**
 * A known-answer test before the service takes work: both implementations must make the bytes that were written down,
 * and each must open what the other made. A broken crypto library must stop us at the door, not in a customer's table.
 */
import { StartupError } from '../errors.ts';
import { deriveSalt, open, pad, sealWithSalt } from './aead.ts';
import { encodeContext } from './context.ts';
import { DataKey } from './data-key.ts';
import { formatEnvelope, parseEnvelope } from './envelope.ts';
import * as second from './webcrypto.ts';

const plaintext = '536-22-1234';
const padTo = 16;
const family = 'ssn';
const version = 4;
const context = { tenant: 'acme', table: 'demo.employees', column: 'ssn', row: '17' };
const keyHex =
  'b011e809c98a0306ad7cb22025c33e2aa0f2ff14dadb45dec848252c4f2da3c6770b0d4b6ecec9dd9a75c210d34bc2a6810ec9201c66b5d936b167fa572c649e';
const randomHex = '4db135761efd6957ff03ccfd4af4ccdbe12e2758c444b8eff5ad9cf39f84dec5';
const expected =
  'fe1.ssn.4.g24m0U-sRoiCtKO37nPhc0BY-b69JPFSdISWn_PdyYX8UR4jIvWvTpmO4ehx0zaCcfb2yZXIx7j3g7Xh4j8YQcRj2uCs5kB7aOuTaKVkHK0';

/** The engine under test beside node:crypto; tests hand in broken ones. */
export type SecondEngine = Pick<typeof second, 'deriveSalt' | 'seal' | 'open'>;

function differs(what: string): StartupError {
  return new StartupError(`The cryptographic self-test failed: ${what}. The service does not start.`);
}

/** Errors: StartupError, saying which of the two makes other bytes than it must. */
export async function selfTest(engine: SecondEngine = second): Promise<void> {
  const raw = Buffer.from(keyHex, 'hex');
  const random = Buffer.from(randomHex, 'hex');
  const key = DataKey.from(Buffer.from(raw));
  const ctx = encodeContext(family, version, context);
  const padded = pad(plaintext, padTo);

  const salt = deriveSalt(key, random, padded, ctx);
  const first = formatEnvelope(sealWithSalt(key, family, version, ctx, padded, salt));
  if (first !== expected) throw differs('node:crypto does not make the expected envelope');

  const otherSalt = await engine.deriveSalt(raw, random, padded, ctx);
  const other = await engine.seal(raw, ctx, padded, otherSalt);
  if (formatEnvelope({ family, version, ...other }) !== expected) {
    throw differs('@peculiar/webcrypto does not make the expected envelope');
  }
  const envelope = parseEnvelope(expected);
  if (open(key, envelope, ctx) !== plaintext) throw differs('node:crypto does not open the expected envelope');
  const opened = await engine.open(raw, ctx, envelope);
  if (opened?.equals(padded) !== true) throw differs('@peculiar/webcrypto does not open the expected envelope');
}
