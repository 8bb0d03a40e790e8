/**
 * Takes runs further. `advance` may be called at any moment, by any process, as often as one likes: it looks at what is
 * stored, does what comes next, and returns. Nothing is remembered between calls.
 *
 *     pending        root key rotated, version v+1 and its data keys made, every living instance can use them
 *     active         v+1 active and v decrypt-only in one transaction; answers under the old epoch are refused from here
 *     re-encrypting  ranges planned, worked through by jobs (range.ts)
 *     verifying      writers waited out, then counted: nothing left is done, rows that do not open are blocked
 */
import { randomUUID } from 'node:crypto';
import { formatEntry } from '../audit/entry.ts';
import { waitOutIntake } from '../audit/store.ts';
import { sqlState, type Client } from '../db.ts';
import { versionSettings } from '../keys/families.ts';
import { canaryTenant, countUnready } from '../keys/instances.ts';
import type { RootKeys } from '../keys/root-keys.ts';
import {
  activateVersion,
  insertVersion,
  listTenantsLacking,
  raiseEpoch,
  setCompromised,
  setNextRotation,
} from '../keys/store.ts';
import { nextRotation } from '../policy/schedule.ts';
import { keyAfter, type Key } from './batch.ts';
import { countVersion, hasVersion, waitOutWriters } from './census.ts';
import { columnsOf, handOverMs, isSearchable, searchTokenTtlMs, staleVersions } from './plan.ts';
import { appendAlways, type Workshop } from './range.ts';
import {
  claimRun,
  findRun,
  insertPass,
  insertRun,
  listDue,
  releaseRun,
  setActivated,
  setBlocked,
  setDone,
  setPending,
  type RangeSpec,
  type Run,
} from './store.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import type { TableShape } from './catalog.ts';

export interface DriverShop extends Workshop {
  readonly rootKeys: RootKeys;
}

const claimMs = 60_000;
const rangeRows = 50_000;
const waitOutMaxMs = 5_000;
/** A blocked run is looked at again this often: somebody may have mended the rows. */
const lookAgainMs = 30_000;
const uniqueViolation = '23505';

/** An entry of what the service does by itself, with the run as its purpose. */
function phaseLine(
  run: Pick<Run, 'id' | 'kind' | 'family' | 'version'>,
  phase: string,
  count?: number,
): { line: string } {
  return {
    line: formatEntry({
      v: 1,
      time: new Date().toISOString(),
      requestId: randomUUID(),
      action: run.kind === 'adoption' ? 'adopt' : 'rotate',
      agent: 'fieldkeep-worker',
      purpose: `${phase} of ${run.kind} ${run.id}`,
      decision: 'allow',
      outcome: phase === 'blocked' ? 'failed' : 'ok',
      ...(run.family !== undefined && { class: run.family }),
      ...(run.version !== undefined && { keyVersion: run.version }),
      ...(count !== undefined && { count }),
    }),
  };
}

/** Rotates the root key and records v+1. A crash in between costs an unused root key version, nothing else. */
async function makeVersion(shop: DriverShop, run: Run, family: string, version: number): Promise<void> {
  const transitVersion = await shop.rootKeys.rotate(family);
  const made = { family, version, state: 'pending', transitVersion, ...versionSettings(shop.policy, family) } as const;
  try {
    await appendAlways(shop, [phaseLine(run, 'pending')], async (tx: Client) => {
      await insertVersion(tx, made);
      await raiseEpoch(tx);
    });
  } catch (error) {
    if (sqlState(error) !== uniqueViolation) throw error; // another process was first
  }
  await waitOutIntake(shop.pool);
}

/** True once v+1 is active. */
async function prepareVersion(shop: DriverShop, run: Run, family: string, version: number): Promise<boolean> {
  await shop.keyring.refresh();
  const known = shop.keyring.state.families.get(family)?.versions.get(version);
  if (known === undefined) await makeVersion(shop, run, family, version);
  if (run.pendingAt === undefined) await setPending(shop.pool, run.id);
  await shop.keyring.refresh();
  await shop.keyring.getOrMake(canaryTenant, family, version);
  const tenants = await listTenantsLacking(shop.pool, family, version - 1, version);
  for (const tenant of tenants) await shop.keyring.getOrMake(tenant, family, version);
  if ((await countUnready(shop.pool, family, version)) > 0) return false;
  await activate(shop, run, family, version);
  return true;
}

async function activate(shop: DriverShop, run: Run, family: string, version: number): Promise<void> {
  const rotateEvery = shop.policy.classes.get(family)?.rotateEvery;
  await appendAlways(shop, [phaseLine(run, 'activation')], async (tx) => {
    if (await activateVersion(tx, family, version)) await raiseEpoch(tx);
    if (run.compromised) await setCompromised(tx, family, version - 1);
    await setActivated(tx, run.id);
    if (rotateEvery !== undefined) await setNextRotation(tx, family, nextRotation(new Date(), rotateEvery));
  });
  await waitOutIntake(shop.pool);
  await shop.keyring.refresh();
}

function msSince(run: Run, at: Date | undefined): number {
  return at === undefined ? 0 : run.now.getTime() - at.getTime();
}

/** The tables of a run, each with the columns that are brought up to date. */
function listTables(shop: Workshop, run: Run): { table: TableShape; columns: RegisteredColumn[] }[] {
  const columns = columnsOf(shop.policy, run);
  return [...new Set(columns.map((column) => column.address))].flatMap((address) => {
    const table = shop.catalog.tables.get(address);
    return table === undefined ? [] : [{ table, columns: columns.filter((column) => column.address === address) }];
  });
}

/** The first registered table of the run that cannot be worked on, in a sentence. */
function findProblem(shop: Workshop, run: Run): string | undefined {
  const addresses = new Set(columnsOf(shop.policy, run).map((column) => column.address));
  return [...addresses].map((address) => shop.catalog.problems.get(address)).find((problem) => problem !== undefined);
}

async function planRanges(shop: Workshop, table: TableShape): Promise<RangeSpec[]> {
  const ranges: RangeSpec[] = [];
  for (let lower: Key | undefined; ;) {
    const upper = await keyAfter(shop.targetPool, table, lower, rangeRows);
    const bounds = { ...(lower !== undefined && { lower }), ...(upper !== undefined && { upper }) };
    ranges.push({ id: randomUUID(), table: table.address, ...bounds });
    if (upper === undefined) return ranges; // the last range is open: rows that come later are in it
    lower = upper;
  }
}

async function countStale(shop: Workshop, run: Run): Promise<{ table: string; column: string; total: number }[]> {
  const counts: { table: string; column: string; total: number }[] = [];
  for (const { table, columns } of listTables(shop, run)) {
    for (const column of columns) {
      let total = 0;
      for (const version of staleVersions(shop.keyring.state, column, run.kind)) {
        total += await countVersion(shop.targetPool, table, column.column, version);
      }
      counts.push({ table: table.address, column: column.column, total });
    }
  }
  return counts;
}

async function planPass(shop: Workshop, run: Run): Promise<void> {
  const totals = await countStale(shop, run);
  const work = new Set(totals.filter(({ total }) => total > 0).map(({ table }) => table));
  const ranges: RangeSpec[] = [];
  for (const { table } of listTables(shop, run)) {
    if (work.has(table.address)) ranges.push(...(await planRanges(shop, table)));
  }
  const count = totals.reduce((sum, { total }) => sum + total, 0);
  await appendAlways(shop, [phaseLine(run, `pass ${run.pass + 1}`, count)], (tx) =>
    insertPass(tx, run.id, run.pass + 1, ranges, totals),
  );
}

async function block(shop: Workshop, run: Run, sentence: string): Promise<void> {
  await appendAlways(shop, [phaseLine(run, 'blocked', run.failed)], (tx) => setBlocked(tx, run.id, sentence));
}

async function findMalformed(shop: Workshop, run: Run): Promise<string | undefined> {
  for (const { table, columns } of listTables(shop, run)) {
    for (const { column } of columns) {
      if (await hasVersion(shop.targetPool, table, column, -1)) return `${table.address}.${column}`;
    }
  }
  return undefined;
}

/** Counts after everybody who was writing has ended. Zero and no failures: done. */
async function verify(shop: Workshop, run: Run): Promise<void> {
  for (const { table } of listTables(shop, run)) {
    if (!(await waitOutWriters(shop.targetPool, table, waitOutMaxMs))) return; // somebody still writes: next time
  }
  const stale = (await countStale(shop, run)).reduce((sum, { total }) => sum + total, 0);
  if (stale > run.failed) return await planPass(shop, run);
  if (run.failed > 0) {
    const rows = run.failed === 1 ? 'One value does' : `${run.failed} values do`;
    return await block(
      shop,
      run,
      `${rows} not open: GET /v1/rotations/${run.id}/failures names them. Restore or clear them; it goes on by itself.`,
    );
  }
  const malformed = await findMalformed(shop, run);
  if (malformed !== undefined) {
    return await block(
      shop,
      run,
      `${malformed} holds text that begins like an envelope and is none. Restore or clear it; it goes on by itself.`,
    );
  }
  await appendAlways(shop, [phaseLine(run, 'end')], (tx) => setDone(tx, run.id));
}

async function step(shop: DriverShop, run: Run): Promise<void> {
  const { family, version } = run;
  switch (run.phase) {
    case 'pending':
      await prepareVersion(shop, run, family!, version!);
      return;
    case 'active': {
      const searchable = run.kind === 'rotation' && isSearchable(shop.keyring.state.families.get(family!));
      if (searchable && msSince(run, run.pendingAt) < searchTokenTtlMs) return;
      await shop.keyring.refresh();
      const problem = findProblem(shop, run);
      if (problem === undefined) return await planPass(shop, run);
      if (run.blocked !== problem) await block(shop, run, problem);
      return;
    }
    case 're-encrypting':
      return; // the jobs do that
    case 'verifying':
      if (run.kind === 'rotation' && msSince(run, run.activatedAt) < handOverMs) return;
      return await verify(shop, run);
    case 'blocked':
      if (msSince(run, run.blockedAt) >= lookAgainMs) await planPass(shop, run);
      return;
    case 'done':
      return;
  }
}

/** Takes a run one step further, unless another process does. Answers whether its phase has changed. */
export async function advance(shop: DriverShop, id: string): Promise<boolean> {
  if (!(await claimRun(shop.pool, id, shop.instanceId, claimMs))) return false;
  try {
    const run = await findRun(shop.pool, id);
    if (run === undefined) return false;
    await step(shop, run);
    const after = await findRun(shop.pool, id);
    return after?.phase !== run.phase || after.pass !== run.pass;
  } finally {
    await releaseRun(shop.pool, id, shop.instanceId);
  }
}

/** The version that a rotation of the family would make now. */
export function nextVersion(shop: Pick<Workshop, 'keyring'>, family: string): number {
  const versions = shop.keyring.state.families.get(family)?.versions;
  return Math.max(0, ...(versions?.keys() ?? [])) + 1;
}

/** Starts a rotation of every family whose time has come; once, however many processes look. */
export async function startDue(shop: Workshop): Promise<string[]> {
  const started: string[] = [];
  for (const family of await listDue(shop.pool)) {
    if (!shop.policy.classes.has(family)) continue;
    await shop.keyring.refresh();
    const run = { id: randomUUID(), kind: 'rotation', family, version: nextVersion(shop, family) } as const;
    let inserted = false;
    await appendAlways(shop, [phaseLine(run, 'scheduled start')], async (tx) => {
      inserted = await insertRun(tx, { ...run, requestedBy: 'schedule', reason: 'scheduled' });
      if (!inserted) throw new AlreadyRunning();
    }).catch(ignoreAlreadyRunning);
    if (inserted) started.push(run.id);
  }
  return started;
}

/** Rolls the entry back too: nothing was started. */
class AlreadyRunning extends Error {}

function ignoreAlreadyRunning(error: unknown): void {
  if (!(error instanceof AlreadyRunning)) throw error;
}

/** Starts an adoption when an `adopt` column holds plaintext. Looks only where a version index makes that cheap. */
export async function startAdoption(shop: Workshop, alsoUnindexed: boolean): Promise<string | undefined> {
  for (const table of shop.catalog.tables.values()) {
    for (const { column, adopt } of table.columns) {
      if (!adopt || !(alsoUnindexed || table.indexed.has(column))) continue;
      if (!(await hasVersion(shop.targetPool, table, column, 0))) continue;
      const run = { id: randomUUID(), kind: 'adoption' } as const;
      let inserted = false;
      await appendAlways(shop, [phaseLine(run, 'start')], async (tx) => {
        inserted = await insertRun(tx, { ...run, requestedBy: 'policy', reason: 'plaintext found' });
        if (!inserted) throw new AlreadyRunning();
      }).catch(ignoreAlreadyRunning);
      return inserted ? run.id : undefined;
    }
  }
  return undefined;
}
