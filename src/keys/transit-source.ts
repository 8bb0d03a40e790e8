/**
 * Opens values that applications have sealed with a transit key of their own, `vault:v<version>:<base64>`, so that they can
 * be adopted. Not for root keys: those only unwrap data keys, in transit.ts. Keys that need a context do not open anything
 * without one, and nobody here knows it.
 */
import { decryptionFailed, FieldkeepError } from '../errors.ts';
import { VaultError, type VaultAnswer } from './vault.ts';
import { callWithSession, type VaultCaller } from './vault-session.ts';

const sealedPattern = /^vault:v[1-9][0-9]{0,8}:[A-Za-z0-9+/]+={0,2}$/;
/** OpenBao takes 1,000 JSON strings a request; root keys, with a context each, stay at 249, and so does this. */
const batchItemsMax = 249;
/** What goes out comes back a little shorter, and an answer may be 4 MiB long. */
const batchCharsMax = 1024 * 1024;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export interface TransitSource {
  /** Where that transit engine is mounted, without slashes at its ends. */
  readonly mount: string;
  readonly key: string;
}

type Opened = string | FieldkeepError;

function readResult(result: unknown): Opened {
  const { plaintext, error } = (result ?? {}) as { plaintext?: unknown; error?: unknown };
  if (typeof error === 'string' && error !== '') return decryptionFailed();
  if (typeof plaintext !== 'string') throw new VaultError('Vault answers a decryption without a plaintext.');
  const bytes = Buffer.from(plaintext, 'base64');
  try {
    return utf8.decode(bytes);
  } catch {
    return decryptionFailed();
  } finally {
    bytes.fill(0);
  }
}

async function sendBatch(caller: VaultCaller, { mount, key }: TransitSource, texts: readonly string[]) {
  const body = { batch_input: texts.map((ciphertext) => ({ ciphertext })) };
  let results: unknown;
  try {
    const { data = {} }: VaultAnswer = await callWithSession(caller, 'POST', `${mount}/decrypt/${key}`, body);
    results = data.batch_results;
  } catch (error) {
    // One item that does not open makes the whole answer a 400, with the results in it.
    if (!(error instanceof VaultError) || error.status !== 400 || error.results === undefined) throw error;
    results = error.results;
  }
  if (!Array.isArray(results) || results.length !== texts.length) {
    throw new VaultError('Vault answers a batch with another number of results.');
  }
  return results.map(readResult);
}

/** Places of the texts that can be sent, in batches that Vault takes and whose answers we take. */
function* batchPlaces(texts: readonly string[], places: readonly number[]): Generator<number[]> {
  let batch: number[] = [];
  let chars = 0;
  for (const place of places) {
    const { length } = texts[place]!;
    if (batch.length > 0 && (batch.length === batchItemsMax || chars + length > batchCharsMax)) {
      yield batch;
      [batch, chars] = [[], 0];
    }
    batch.push(place);
    chars += length;
  }
  if (batch.length > 0) yield batch;
}

/**
 * What each text says, in order; an error in its place where one does not open: `envelope_malformed` for what transit has
 * not made, else `decryption_failed`. Errors: VaultError, when nothing can be said of any.
 */
export async function openTransitTexts(
  caller: VaultCaller,
  source: TransitSource,
  texts: readonly string[],
): Promise<Opened[]> {
  const malformed = new FieldkeepError('envelope_malformed', 'The value is not of the form vault:v<version>:<base64>.');
  const opened = texts.map((): Opened => malformed);
  const places = texts.flatMap((text, place) => (sealedPattern.test(text) ? [place] : []));
  for (const batch of batchPlaces(texts, places)) {
    const results = await sendBatch(
      caller,
      source,
      batch.map((place) => texts[place]!),
    );
    for (const [i, place] of batch.entries()) opened[place] = results[i]!;
  }
  return opened;
}
