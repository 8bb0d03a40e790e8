/**
 * How much room is left on the disk of the state folder, which embedded Postgres writes to. The last part of it is a reserve:
 * when only that is left, nothing is written any more that somebody without a good credential caused; when a quarter of it
 * is left, the service is not ready, while there is still room for the answers under way.
 */
import { statfs } from 'node:fs/promises';
import { within } from './within.ts';

export interface Disk {
  /** `ok`; `low`: only the reserve is left; `full`: and of that a quarter at most. */
  readonly state: 'ok' | 'low' | 'full';
  readonly freeBytes: number;
}

export interface DiskWatch {
  /** As the last look found it; undefined where the file system does not say. */
  disk(): Disk | undefined;
  stop(): void;
}

const lookEveryMs = 1_000;
const lookMaxMs = 5_000;
const mib = 1_048_576;

/** A twentieth of the disk, within bounds. */
function reserveOf(totalBytes: number): number {
  return Math.max(32 * mib, Math.min(512 * mib, totalBytes / 20));
}

async function look(folder: string): Promise<Disk | undefined> {
  const { bavail, blocks, bsize } = await statfs(folder);
  if (blocks === 0) return undefined; // a network file system that does not know
  const freeBytes = bavail * bsize;
  const reserve = reserveOf(blocks * bsize);
  return { freeBytes, state: freeBytes > reserve ? 'ok' : freeBytes > reserve / 4 ? 'low' : 'full' };
}

/** Looks once before it answers. */
export async function watchDisk(folder: string): Promise<DiskWatch> {
  let disk = await look(folder).catch(() => undefined);
  let looking: Promise<void> | undefined;
  const again = async () => {
    disk = await within(lookMaxMs, look(folder)).catch(() => disk);
    looking = undefined;
  };
  const timer = setInterval(() => void (looking ??= again()), lookEveryMs);
  return { disk: () => disk, stop: () => clearInterval(timer) };
}
