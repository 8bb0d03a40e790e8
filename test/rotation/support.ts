/** A service on a database of its own, with the demo's table filled, and runs driven to their end by hand. */
import { randomUUID } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { open, seal } from '../../src/crypto/aead.ts';
import { encodeContext } from '../../src/crypto/context.ts';
import type { DataKey } from '../../src/crypto/data-key.ts';
import { formatEnvelope, parseEnvelope } from '../../src/crypto/envelope.ts';
import { openPool, type Pool } from '../../src/db.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { parsePolicy, type Policy } from '../../src/policy/policy.ts';
import { workRange } from '../../src/rotation/range.ts';
import { advance } from '../../src/rotation/run.ts';
import { nextVersion, startAdoption } from '../../src/rotation/start.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { findRun, insertRun, type Run } from '../../src/rotation/store.ts';
import { openService, type Service } from '../../src/service.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';

export const policyText = readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8');
export const shippedPolicy: Policy = parsePolicy(policyText);

export interface Bench {
  readonly database: TestDatabase;
  readonly service: Service;
  readonly owner: Pool;
  close(): Promise<void>;
}

export interface BenchOptions {
  readonly policy?: Policy;
  readonly targets?: ReadonlyMap<string, string>;
  /** Somebody else's, who drops it. */
  readonly database?: TestDatabase;
  /** The folder of the root keys, somebody else's. */
  readonly home?: string;
}

export async function openBench({ policy = shippedPolicy, targets, ...given }: BenchOptions = {}): Promise<Bench> {
  const database = given.database ?? (await createDatabase());
  const folder = given.home ?? mkdtempSync(join(tmpdir(), 'fieldkeep-rotation-'));
  const rootKeys = await openEmbeddedRootKeys(join(folder, 'root-keys.json'));
  const log = pino({ level: 'silent' });
  const service = await openService({
    ...{ databaseUrl: database.workerUrl, rootKeys, policy, log },
    rows: new Map([[undefined, database.rowsUrl]]),
    ...(targets !== undefined && { targets }),
  });
  const owner = openPool(database.ownerUrl, { max: 4, name: 'owner', statementTimeoutMs: 60_000 });
  return {
    database,
    service,
    owner,
    async close() {
      await service.close();
      await owner.end();
      await database.drop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

export function sealFor(
  key: DataKey,
  version: number,
  column: string,
  row: string,
  value: string,
  family = column,
  table = 'demo.employees',
): string {
  const ctx = encodeContext(family, version, { tenant: 'acme', table, column, row });
  return formatEnvelope(seal(key, family, version, ctx, value, 16));
}

/** Opens an envelope of tenant acme, of the demo's table unless `table` says another. */
export async function openFor(
  service: Pick<Service, 'keyring'>,
  column: string,
  row: string,
  text: string,
  table = 'demo.employees',
): Promise<string> {
  const envelope = parseEnvelope(text);
  const key = await service.keyring.get('acme', envelope.family, envelope.version);
  if (key === undefined) throw new Error(`no key for version ${envelope.version}`);
  const place = { tenant: 'acme', table, column, row };
  return open(key, envelope, encodeContext(envelope.family, envelope.version, place));
}

/** Rows 1 … n of tenant acme with the value `make(id)` in `ssn`, as plaintext. */
export async function fill(owner: Pool, n: number, make: (id: number) => string | null): Promise<void> {
  const ids = Array.from({ length: n }, (_, i) => i + 1);
  await owner.query(
    `insert into demo.employees (id, tenant, name, ssn) select u.id, 'acme', 'n', u.ssn from unnest($1::bigint[], $2::text[]) u(id, ssn)`,
    [ids, ids.map(make)],
  );
}

type Json = Record<string, unknown>;

/** The shipped policy with other columns, or classes that say more. */
export function changePolicy(change: {
  readonly columns?: readonly object[];
  readonly classes?: Readonly<Record<string, object>>;
  /** More grants, by agent. */
  readonly grants?: Readonly<Record<string, readonly string[]>>;
}): Policy {
  const file = JSON.parse(readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8')) as Json & {
    classes: Record<string, object>;
    agents: Record<string, { grants: unknown[] }>;
  };
  for (const [name, more] of Object.entries(change.grants ?? {})) file.agents[name]!.grants.push(...more);
  for (const [name, more] of Object.entries(change.classes ?? {}))
    file.classes[name] = { ...file.classes[name], ...more };
  return parsePolicy(JSON.stringify({ ...file, ...(change.columns !== undefined && { columns: change.columns }) }));
}

/** As if nobody had search tokens any more that lack the new version. */
export async function skipTokens(db: Pool, id: string): Promise<void> {
  await db.query(`update fieldkeep.rotations set pending_at = pending_at - interval '1 min' where id = $1`, [id]);
}

/** Takes a run further until `until` holds, with the jobs' work done here, and without waiting for search tokens to expire. */
export async function drive(service: Service, id: string, until: (run: Run) => boolean, maxMs = 30_000): Promise<Run> {
  const deadline = performance.now() + maxMs;
  for (;;) {
    await advance(service, id);
    if ((await findRun(service.pool, id))?.phase === 'pending') await skipTokens(service.pool, id);
    for (const range of await listFreeRanges(service.pool)) await workRange(service, range, () => false);
    const run = await findRun(service.pool, id);
    if (run !== undefined && until(run)) return run;
    if (performance.now() > deadline) throw new Error(`the run is still ${run?.phase}: ${JSON.stringify(run)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export const isSettled = (run: Run): boolean => run.phase === 'done' || run.phase === 'blocked';

export async function adopt(service: Service): Promise<Run> {
  const id = await startAdoption(service, true);
  if (id === undefined) throw new Error('there is nothing to adopt');
  return await drive(service, id, isSettled);
}

/** Inserts a rotation of ssn and lets `before` change its clock, so that tests need not wait for tokens to expire. */
export async function beginRotation(service: Service, family = 'ssn'): Promise<string> {
  const id = randomUUID();
  await service.keyring.refresh();
  const run = { id, kind: 'rotation', family, version: nextVersion(service, family), requestedBy: 'test' } as const;
  if (!(await insertRun(service.pool, run))) throw new Error('a rotation is under way');
  return id;
}

/** As if the waits for search tokens and for answers on their way were over. */
export async function skipWaits(owner: Pool, id: string): Promise<void> {
  await owner.query(
    `update fieldkeep.rotations set pending_at = pending_at - interval '1 min', activated_at = activated_at - interval '1 min'
     where id = $1`,
    [id],
  );
}

/** As if every instance had unwrapped the canary of what is pending with its next heartbeat. */
export async function beReady(owner: Pool): Promise<void> {
  await owner.query(
    `insert into fieldkeep.instance_ready (instance, family, version)
     select i.id, v.family, v.version from fieldkeep.instances i, fieldkeep.key_versions v where v.state = 'pending'
     on conflict do nothing`,
  );
}

/** Begins a rotation whose version is active and which waits for nothing any more. */
export async function activate({ service, owner }: Bench): Promise<string> {
  const id = await beginRotation(service);
  for (let run: Run | undefined; run?.activatedAt === undefined; run = await findRun(owner, id)) {
    await advance(service, id);
    await beReady(owner);
    await skipTokens(owner, id);
  }
  await skipWaits(owner, id);
  return id;
}

export async function rotate(bench: Bench, family = 'ssn'): Promise<Run> {
  const id = await beginRotation(bench.service, family);
  await drive(bench.service, id, (run) => run.activatedAt !== undefined);
  await skipWaits(bench.owner, id);
  return await drive(bench.service, id, isSettled);
}
