/**
 * Root keys in a file, for a laptop and for tests: the same interface as Vault, none of its protection.
 *
 *     root-keys.json (0600): { "<family>": { "oldest": 1, "versions": { "1": "<base64 of 32 bytes>", … } }, … }
 *     wrapped data key:      embedded:v<version>:<base64 of iv[12] | ciphertext[64] | tag[16]>
 *
 * Like a derived key in transit, every context has a wrapping key of its own: HMAC-SHA-512(root, context)[0..32],
 * used with AES-256-GCM and the context as additional data. The file is replaced as a whole (write, fsync, rename), so
 * a crash leaves the old one or the new one.
 */
import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createPrivateKey,
  createPublicKey,
  randomBytes,
  sign,
  type KeyObject,
} from 'node:crypto';
import { open, readFile, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { StartupError } from '../errors.ts';
import { RootKeyError, type RootKeys } from './root-keys.ts';

interface Family {
  oldest: number;
  versions: Record<string, string>;
}

/** No class has a hyphen in its name. */
const signer = 'audit-checkpoint';
const pkcs8Head = Buffer.from('302e020100300506032b657004220420', 'hex');
const wrappedPattern = /^embedded:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]+={0,2})$/;

async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.new`;
  const file = await open(temporary, 'w', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
  const folder = await open(dirname(path));
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}

async function load(path: string): Promise<Map<string, Family>> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return new Map();
    throw new StartupError(`The root keys in ${path} cannot be read.`);
  }
  try {
    return new Map(Object.entries(JSON.parse(text) as Record<string, Family>));
  } catch {
    throw new StartupError(`The root keys in ${path} are damaged: the file is not JSON. Restore it from a copy.`);
  }
}

function wrappingKey(root: string, context: Buffer): Buffer {
  return createHmac('sha512', Buffer.from(root, 'base64')).update(context).digest().subarray(0, 32);
}

/** Root keys kept in the file `path`; errors: StartupError when it is there and cannot be used. */
export async function openEmbeddedRootKeys(path: string): Promise<RootKeys> {
  const families = await load(path);
  let writing: Promise<void> = Promise.resolve();

  // One write after another: two at once would lose the first one's change.
  function save(): Promise<void> {
    const write = async () => {
      try {
        await replaceFile(path, JSON.stringify(Object.fromEntries(families)));
      } catch {
        throw new RootKeyError('The file of the embedded root keys cannot be written.', { refused: false });
      }
    };
    writing = writing.then(write, write);
    return writing;
  }

  function newest(family: Family): number {
    return Math.max(0, ...Object.keys(family.versions).map(Number));
  }

  function getRoot(name: string, version: number): string {
    const root = families.get(name)?.versions[String(version)];
    if (root === undefined) {
      throw new RootKeyError(`Version ${version} of the root key of family ${name} is gone.`, { refused: true });
    }
    return root;
  }

  function getFamily(name: string): Family {
    const family = families.get(name);
    if (family === undefined) throw new RootKeyError(`Family ${name} has no root key.`, { refused: true });
    return family;
  }

  async function addVersion(name: string): Promise<number> {
    const family = families.get(name) ?? { oldest: 1, versions: {} };
    const version = newest(family) + 1;
    family.versions[version] = randomBytes(32).toString('base64');
    families.set(name, family);
    await save();
    return version;
  }

  /** The file holds the seed of RFC 8032; PKCS #8 is that with a fixed head (RFC 8410). */
  async function getSigner(): Promise<KeyObject> {
    if (!families.has(signer)) await addVersion(signer);
    const key = Buffer.concat([pkcs8Head, Buffer.from(getRoot(signer, 1), 'base64')]);
    return createPrivateKey({ key, format: 'der', type: 'pkcs8' });
  }

  return {
    kind: 'embedded',
    async ensureFamily(name) {
      const family = families.get(name);
      return family === undefined ? await addVersion(name) : newest(family);
    },
    async rotate(name) {
      getFamily(name);
      return await addVersion(name);
    },
    // eslint-disable-next-line @typescript-eslint/require-await -- a throw must reach the caller as a rejection
    async makeDataKey(name, transitVersion, context) {
      const key = wrappingKey(getRoot(name, transitVersion), context);
      const iv = randomBytes(12);
      const dataKey = randomBytes(64);
      const cipher = createCipheriv('aes-256-gcm', key, iv).setAAD(context);
      const body = Buffer.concat([iv, cipher.update(dataKey), cipher.final(), cipher.getAuthTag()]);
      dataKey.fill(0);
      key.fill(0);
      return `embedded:v${transitVersion}:${body.toString('base64')}`;
    },
    // eslint-disable-next-line @typescript-eslint/require-await -- a throw must reach the caller as a rejection
    async unwrap(name, wrapped, context) {
      const [, version = '', base64 = ''] = wrappedPattern.exec(wrapped) ?? [];
      const body = Buffer.from(base64, 'base64');
      if (body.length !== 12 + 64 + 16) {
        throw new RootKeyError(`A wrapped data key of family ${name} is malformed.`, { refused: true });
      }
      const key = wrappingKey(getRoot(name, Number(version)), context);
      const decipher = createDecipheriv('aes-256-gcm', key, body.subarray(0, 12), { authTagLength: 16 });
      decipher.setAAD(context).setAuthTag(body.subarray(76));
      try {
        return Buffer.concat([decipher.update(body.subarray(12, 76)), decipher.final()]);
      } catch {
        throw new RootKeyError(`A wrapped data key of family ${name} does not open.`, { refused: true });
      } finally {
        key.fill(0);
      }
    },
    // eslint-disable-next-line @typescript-eslint/require-await -- a throw must reach the caller as a rejection
    async findOldest(name) {
      return getFamily(name).oldest;
    },
    async destroyBelow(name, minVersion, mayGoOn) {
      await mayGoOn?.();
      const family = getFamily(name);
      const left = Object.entries(family.versions).filter(([version]) => Number(version) >= minVersion);
      families.set(name, { oldest: Math.max(family.oldest, minVersion), versions: Object.fromEntries(left) });
      try {
        await save();
      } catch (error) {
        families.set(name, family); // the file still has them: nothing is given up
        throw error;
      }
    },
    keepFrom: () => Promise.resolve(), // versions go in one step here
    async getSigningKey() {
      const spki = createPublicKey(await getSigner()).export({ format: 'der', type: 'spki' });
      return { version: 1, publicKey: spki.subarray(-32) };
    },
    async sign(message) {
      return sign(null, message, await getSigner());
    },
    findProblem: () => Promise.resolve(undefined),
    figures: () => ({}),
    close: () => undefined,
  };
}
