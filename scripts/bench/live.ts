/**
 * The service beside a living system, as real processes: agents ask, an application writes, and under the same load first
 * nothing else happens, then the raw UPDATEs run that are the limit, then the keys of all three families rotate. In the end
 * every value is opened and compared with what was written.
 */
import type { Pool } from '../../src/db.ts';
import { verify } from '../demo/verify.ts';
import { countVersion, describePeople, findHighestVersion } from './engine.ts';
import { Shadow, startApplication } from './live/application.ts';
import type { Span } from './live/latency.ts';
import { watchMemory } from './live/memory.ts';
import { goThrough, type Measured } from './live/phases.ts';
import { tellLatency, tellProof, tellRates, tellScans, type Scan } from './live/report.ts';
import { openStage, type Stage } from './live/stage.ts';
import { startTraffic, type Traffic } from './live/traffic.ts';
import { columns } from './people.ts';
import type { BenchOptions, Section } from './table.ts';
import { say } from './waiting.ts';

const requestsPerSecond = 200;
const writesPerSecond = 500;
/** A phase is as many times as long as one measurement elsewhere. */
const secondsFactor = 10;

/** Counts the values whose version is behind, as a rotation does when it plans and when it verifies. */
async function scan(owner: Pool): Promise<Scan[]> {
  const table = await describePeople(owner);
  const scans: Scan[] = [];
  for (const column of columns) {
    const active = await findHighestVersion(owner, table, column);
    let stale = 0;
    const started = performance.now();
    for (let version = 1; version < active; version += 1) stale += await countVersion(owner, table, column, version);
    scans.push({ column, stale, ms: performance.now() - started });
  }
  return scans;
}

interface Run {
  readonly measured: Measured;
  readonly latency: Section['rows'];
  /** What requests failed with, and how often. */
  readonly faults: Traffic['faults'];
}

/** All phases under load; the load has ended when this answers. */
async function runLoad(stage: Stage, shadow: Shadow, { rows, seconds, rate }: BenchOptions): Promise<Run> {
  const { service, api, database } = stage;
  const { owner } = database;
  const traffic = await startTraffic({ service, owner, rows, perSecond: requestsPerSecond });
  const application = startApplication({ api, owner, shadow, perSecond: writesPerSecond });
  let measured: Measured;
  try {
    measured = await goThrough(stage, traffic, { rows, seconds: seconds * secondsFactor, rate });
  } finally {
    await traffic.stop();
    await application.stop();
  }
  return { measured, latency: tellLatency(measured, traffic, application), faults: traffic.faults };
}

function describeLoad({ hasVault, workers }: Stage, faults: Traffic['faults']): string {
  const processes = hasVault
    ? `API and ${workers.length === 1 ? 'worker are processes' : `${workers.length} workers are processes`} of their own, root keys in a Vault.`
    : 'ONE process answers and rotates: no VAULT_ADDR with VAULT_TOKEN, no bao or vault on PATH.';
  const load = `${requestsPerSecond} requests/s in an open loop, latency from when each was due; an application writes ${writesPerSecond} rows/s.`;
  const failed = [...faults].map(([what, n]) => `${what}: ${n}`).join(', ');
  return `${processes} ${load}${failed && ` Failed: ${failed}.`}`;
}

export async function benchLive(options: BenchOptions): Promise<Section[]> {
  const { rows } = options;
  const title = (what: string) => `${what}, ${rows.toLocaleString('en-US')} rows`;
  say(`${rows.toLocaleString('en-US')} rows are filled and adopted`);
  const stage = await openStage(options);
  const watches = stage.workers.map(({ pid }) => watchMemory(pid));
  try {
    const { owner, asWorker } = stage.database;
    const shadow = new Shadow(rows);
    const { measured, latency, faults } = await runLoad(stage, shadow, options);
    const first = await scan(asWorker);
    await owner.query('vacuum analyze demo.employees');
    const second = await scan(asWorker);
    say('every value is opened and compared');
    const verdict = await verify(stage.api, owner, shadow, () => undefined);
    const [busy, last] = [measured.busy[0]!, measured.busy.at(-1)!];
    const whole: Span = [busy[0], last[1]];
    const memory = watches.map((watch, i) => ({ name: `worker ${i + 1}`, figures: watch.summarise(whole) }));
    return [
      { title: title('agents'), rows: latency, note: describeLoad(stage, faults) },
      { title: title('re-encryption'), rows: tellRates(measured) },
      { title: title('proof'), rows: tellProof(verdict, first) },
      { title: stage.hasVault ? 'memory of workers' : 'memory of the service', rows: memory },
      { title: title('finding 0 stale values'), rows: tellScans(first, second) },
    ];
  } finally {
    for (const watch of watches) watch.stop();
    await stage.close();
  }
}
