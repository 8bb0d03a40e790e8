/**
 * The state folder (FIELDKEEP_HOME): root keys, TLS, issuer key, Postgres. One service at a time uses it; a lock that a
 * killed process left behind does not count. Everything in it is for its owner only. As root the folder can be passed
 * through, not read, by others: Postgres refuses to run as root and must reach its data below.
 */
import {
  chmodSync,
  closeSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { StartupError } from '../errors.ts';

export interface Home {
  readonly path: string;
  /** Gives the folder up for the next service. */
  release(): void;
}

const isRoot = process.getuid?.() === 0;

/** Since when a process runs, in clock ticks of the kernel: a pid alone may be somebody else's by now. */
function startTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

/** Whether a process runs; a zombie does not. Where there is no /proc, a signal 0 decides. */
export function isRunning(pid: number): boolean {
  if (!(pid > 0)) return false; // 0 and below would be groups of processes
  try {
    process.kill(pid, 0);
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
  return process.platform !== 'linux' || startTime(pid) !== undefined;
}

/** The process that holds the lock, if it still runs. */
function findHolder(lock: string): number | undefined {
  const [pid = 0, started] = lock.split(' ');
  const known = startTime(Number(pid));
  if (Number(pid) === process.pid || !isRunning(Number(pid))) return undefined;
  return known === undefined || known === started ? Number(pid) : undefined;
}

/** Takes the lock unless somebody alive has it: then that process. Of two that start at once, one gets it. */
function takeLock(file: string, mine: string): number | undefined {
  const aside = `${file}.${process.pid}`;
  for (;;) {
    writePrivate(aside, mine);
    try {
      linkSync(aside, file); // comes into being with its content, or not at all
      return undefined;
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
    } finally {
      rmSync(aside);
    }
    const lock = readLock(file);
    const holder = findHolder(lock);
    if (holder !== undefined) return holder;
    if (readLock(file) === lock) rmSync(file, { force: true });
  }
}

function readLock(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return ''; // gone since
  }
}

/** Writes a file of the state folder as a whole, for its owner only. */
export function writePrivate(path: string, text: string): void {
  writeFileSync(`${path}.new`, text, { mode: 0o600 });
  chmodSync(`${path}.new`, 0o600);
  renameSync(`${path}.new`, path);
}

/** Makes the folder if needed and takes it. Errors: StartupError when it cannot be used or another service has it. */
export function openHome(path: string): Home {
  const lockFile = join(path, 'service.lock');
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    chmodSync(path, isRoot ? 0o711 : 0o700);
    closeSync(openSync(join(path, '.probe'), 'w', 0o600));
    rmSync(join(path, '.probe'));
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown';
    throw new StartupError(
      `The state folder ${path} cannot be used (${code}): it must be readable and writable for this user.`,
    );
  }
  const mine = `${process.pid} ${startTime(process.pid) ?? ''}`;
  const holder = takeLock(lockFile, mine);
  if (holder !== undefined) {
    throw new StartupError(
      `Another service (process ${holder}) uses the state folder ${path}. Stop it, or set FIELDKEEP_HOME.`,
    );
  }
  return {
    path,
    release() {
      if (readLock(lockFile) === mine) rmSync(lockFile);
    },
  };
}
