/** How much memory a process keeps resident, looked at every second. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { clock, type Span } from './latency.ts';

const everyMs = 1_000;

function readRssMb(pid: number): number | undefined {
  try {
    if (process.platform === 'linux') {
      return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1000;
    }
    return Number(execFileSync('ps', ['-o', 'rss=', '-p', String(pid)]).toString()) / 1000;
  } catch {
    return undefined; // it has ended
  }
}

/** Figures of one span, MB. Growth is the maximum less what it was after the first fifth: flat is about 0. */
type Memory = Readonly<Record<'start MB' | 'at 20 % MB' | 'max MB' | 'end MB' | 'growth MB', number>>;

interface MemoryWatch {
  summarise(span: Span): Memory;
  stop(): void;
}

export function watchMemory(pid: number): MemoryWatch {
  const seen: { at: number; mb: number }[] = [];
  const look = () => {
    const mb = readRssMb(pid);
    if (mb !== undefined) seen.push({ at: clock(), mb });
  };
  look();
  const timer = setInterval(look, everyMs);
  return {
    summarise([from, to]) {
      const lastAt = (moment: number) => seen.findLast(({ at }) => at <= moment)?.mb ?? NaN;
      const fifth = from + (to - from) / 5;
      const within = seen.filter(({ at }) => at >= fifth && at <= to).map(({ mb }) => mb);
      const settled = lastAt(fifth);
      const max = Math.max(settled, ...within);
      return {
        'start MB': lastAt(from),
        'at 20 % MB': settled,
        'max MB': max,
        'end MB': lastAt(to),
        'growth MB': max - settled,
      };
    },
    stop: () => clearInterval(timer),
  };
}
