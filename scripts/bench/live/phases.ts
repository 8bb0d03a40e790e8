/**
 * What goes on under the same load, one after another: nothing else, the raw UPDATEs that are the limit, the rotations of
 * all families. Answers when each was, and how fast.
 */
import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { mustBeOk, operator, type Api } from '../../support.ts';
import { atExit } from '../ending.ts';
import { listBusySpans } from '../engine.ts';
import type { Pace } from '../pace.ts';
import { columns } from '../people.ts';
import { say, untilDone } from '../waiting.ts';
import { clock, secondsOf, type Span } from './latency.ts';
import type { Stage } from './stage.ts';
import type { Traffic } from './traffic.ts';

const warmUpMs = 5_000;
/** Rows of a raw pass at most: six passes are made. */
const rawRowsMax = 250_000;

async function during<T>(work: () => Promise<T>): Promise<{ span: Span; result: T }> {
  const from = clock();
  const result = await work();
  return { span: [from, clock()], result };
}

async function runRawLoop(ownerUrl: string, rows: number, seconds: number): Promise<Pace> {
  const script = fileURLToPath(new URL('./raw-loop.ts', import.meta.url));
  const child = spawn(process.execPath, [script, String(Math.min(rows, rawRowsMax)), String(seconds)], {
    env: { ...process.env, DATABASE_OWNER_URL: ownerUrl },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const forget = atExit(() => child.kill('SIGKILL'));
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const code = await new Promise((resolve) => child.once('close', resolve));
  forget();
  if (code !== 0) throw new Error('The raw loop failed.');
  return JSON.parse(output) as Pace;
}

interface Rotations {
  readonly ids: readonly string[];
  readonly values: number;
}

/** Rotates all families at once, through the API, and follows them to their end. */
async function rotateAll(api: Api, rows: number, leastSeconds = 0): Promise<Rotations> {
  const ids: string[] = [];
  for (const family of columns) {
    const started = mustBeOk(await api.call(operator, 'POST', `/v1/keys/${family}/rotate`, { reason: 'bench' }));
    ids.push(started.id as string);
  }
  let values = 0;
  for (const id of ids) {
    const run = await untilDone(api, id, 120_000 + rows * 6 + 2_000 * leastSeconds);
    values += run.columns.reduce((sum, { done }) => sum + done, 0);
  }
  return { ids, values };
}

export interface Measured {
  readonly quiet: Span;
  readonly besideRaw: Span;
  /** When rows were rotated; what rotations wait for is left out. */
  readonly busy: readonly Span[];
  readonly raw: Pace;
  readonly engine: Pace;
  /** From the calls until all are done, waits included. */
  readonly rotationSeconds: number;
  /** The same once more, held back by the policy. */
  readonly gentle: readonly Span[];
  readonly gentleEngine: Pace;
}

/** What a policy says that puts agents first. */
const gentleBatchMs = 5;

/** `seconds`: how long it is quiet, and the raw UPDATEs go on at least. */
export async function goThrough(
  stage: Stage,
  traffic: Traffic,
  { rows, seconds, rate }: { rows: number; seconds: number; rate: number },
): Promise<Measured> {
  const { database, api } = stage;
  await sleep(warmUpMs);
  say(`quiet, ${seconds} s`);
  const quiet = await during(() => sleep(seconds * 1000));
  say('raw UPDATEs');
  traffic.keepSample(true); // no agent could open what they leave for a while
  const raw = await during(() => runRawLoop(database.ownerUrl, rows, seconds));
  traffic.keepSample(false);
  await database.owner.query('vacuum analyze demo.employees');
  say('rotations of all families');
  const rotations = await during(() => rotateAll(api, rows));
  const busy = await listBusySpans(database.owner, rotations.result.ids);
  await stage.limit({ rowsPerSecondMax: rate, batchMsMax: gentleBatchMs });
  await database.owner.query('vacuum analyze demo.employees');
  say(`rotations of all families, ${rate} rows/s each`);
  const held = await rotateAll(api, rows, rows / rate);
  const gentle = await listBusySpans(database.owner, held.ids);
  return {
    quiet: quiet.span,
    besideRaw: raw.span,
    busy,
    raw: raw.result,
    engine: { rows: rotations.result.values, seconds: secondsOf(busy) },
    rotationSeconds: secondsOf([rotations.span]),
    gentle,
    gentleEngine: { rows: held.values, seconds: secondsOf(gentle) },
  };
}
