/** State folders for the tests of what is embedded, and processes to play the dead, the living and the undead. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

export const isRoot = process.getuid?.() === 0;

/** A folder that everybody may pass through, for as root Postgres runs as another user below it. */
export function makeFolder(): { path: string; remove(): void } {
  const path = realpathSync(mkdtempSync(join(tmpdir(), 'fieldkeep embedded ')));
  chmodSync(path, 0o711);
  const remove = () => rmSync(path, { recursive: true, force: true });
  process.once('exit', remove); // hooks of a suite do not run when --grep leaves none of its tests
  return { path, remove };
}

/** A state folder below `folder`, as openHome would leave it. */
export function makeHome(folder: string, name = 'state folder'): string {
  const home = join(folder, name);
  mkdirSync(home, { recursive: true, mode: 0o711 });
  return home;
}

/** What a child prints as its first line. */
export async function firstLine(child: ChildProcess): Promise<string> {
  const lines = createInterface({ input: child.stdout! });
  const [line] = (await once(lines, 'line', { signal: AbortSignal.timeout(25_000) })) as [string];
  lines.close();
  return line;
}

/** Runs `code` as a module in a process of its own; `url` names a module of src/. */
export function runModule(code: (url: (path: string) => string) => string): ChildProcess {
  const url = (path: string) => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href);
  return spawn(process.execPath, ['--input-type=module', '-e', code(url)], { stdio: ['ignore', 'pipe', 'inherit'] });
}

/** Ends a child of ours for good and waits until it is gone. */
export async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill('SIGKILL');
  await gone;
}

/** The number of a process that has ended and is nobody's any more. */
export async function makeDead(): Promise<number> {
  const child = spawn('true', { stdio: 'ignore' });
  await once(child, 'exit');
  return child.pid!;
}

/** A process that has ended and whose parent does not ask: `sleep` inherits a child that it never waits for. */
export async function makeZombie(): Promise<{ pid: number; end(): Promise<void> }> {
  const parent = spawn('sh', ['-c', 'sleep 0.1 & echo $!; exec sleep 60'], { stdio: ['ignore', 'pipe', 'ignore'] });
  const pid = Number(await firstLine(parent));
  while (!readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ')) await sleep(10);
  return { pid, end: () => kill(parent) };
}

/** A living process that has nothing to do with us. */
export function makeStranger(): { pid: number; end(): Promise<void> } {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  return { pid: child.pid!, end: () => kill(child) };
}
