/** What tests of retiring versions share: policies without waits, late envelopes, guards as the database has them. */
import { randomUUID } from 'node:crypto';
import { transaction, type Pool } from '../../src/db.ts';
import { carryOut, type By, type DestroyShop } from '../../src/retirement/destroy.ts';
import { insertDestruction, type Destruction } from '../../src/retirement/destroy-store.ts';
import { examineVersion, toDetails, type Question } from '../../src/retirement/evidence.ts';
import { sealFor, changePolicy, drive, isSettled, skipWaits, type Bench } from '../rotation/support.ts';
import type { Policy } from '../../src/policy/policy.ts';
import type { Run } from '../../src/rotation/store.ts';
import { watchDone } from '../../src/retirement/watch.ts';
import type { Service } from '../../src/service.ts';

/** Nothing is waited for. */
export const atOnce = { handoffMax: 'P0D', unreadFor: 'P0D', backupHorizon: 'P0D', vaultBackupHorizon: 'P1D' };

export function policyOf(retire: object = atOnce, columns?: readonly object[]): Policy {
  return changePolicy({
    classes: { ssn: { retire }, bank: { retire }, salary: { retire } },
    ...(columns !== undefined && { columns }),
  });
}

/** An envelope of a version, as an application may have held it. */
export async function hold(service: Service, version: number, row: string, value: string, column = 'ssn') {
  return sealFor(await service.keyring.getOrMake('acme', column, version), version, column, row, value);
}

/** Guards of a table, and whether each was validated. */
export async function guardsOf(owner: Pool, table = 'demo.employees'): Promise<[string, boolean][]> {
  const { rows } = await owner.query<[string, boolean]>({
    text: `select conname::text, convalidated from pg_constraint
           where conrelid = $1::regclass and conname like 'fe\\_guard\\_%' order by 1`,
    values: [table],
    rowMode: 'array',
  });
  return rows;
}

/** Looks until a look starts a run, and takes that to its end. */
export async function watchUntilDone(bench: Pick<Bench, 'service' | 'owner'>): Promise<Run | undefined> {
  const [id] = await watchDone(bench.service, { now: true });
  if (id === undefined) return undefined;
  await drive(bench.service, id, (run) => run.activatedAt !== undefined);
  await skipWaits(bench.owner, id);
  return await drive(bench.service, id, isSettled);
}

export const decisions = ['security-auditor', 'security-lead'].map((person) => ({
  ...{ person, decision: 'approve', reason: 'looked at it', decidedAt: '2026-01-02T03:04:05.678Z' },
}));

/** As if two people had agreed to destroying the version, and the call had come. Errors: those of `examineVersion`. */
export async function agree(service: Service, owner: Pool, asked: Partial<Question> = {}): Promise<string> {
  const question = { family: 'ssn', version: 1, withoutGuards: true, ...asked };
  const details = toDetails(await examineVersion(service, question, 2_000), question);
  const [id, approval] = [randomUUID(), randomUUID()];
  await owner.query(
    `insert into fieldkeep.approvals (id, action, about, details, reason, person, required, request_digest, decide_by, used_at)
     values ($1, 'destroy', $2, $3, 'quarterly', 'operator', 2, 'x', now() + interval '1 day', now())`,
    [approval, `/v1/keys/${question.family}/versions/${question.version}`, JSON.stringify(details)],
  );
  const made = { id, ...question, approval, decisions, details, reason: 'quarterly', requestedBy: 'operator' };
  await transaction(owner, async (tx) => {
    if (!(await insertDestruction(tx, made))) throw new Error('another destruction is open');
  });
  return id;
}

/** Goes on until it is at its end, refused, or held; also where workers of the same service go on with it meanwhile. */
export async function carryOn(shop: DestroyShop, id: string, by?: By): Promise<Destruction> {
  for (;;) {
    const { finishedAt, refusedAt, problem, ...rest } = await carryOut(shop, id, by);
    if (finishedAt !== undefined || refusedAt !== undefined || problem !== undefined) {
      return {
        ...rest,
        ...(finishedAt && { finishedAt }),
        ...(refusedAt && { refusedAt }),
        ...(problem && { problem }),
      };
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
