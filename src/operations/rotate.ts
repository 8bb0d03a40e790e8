/**
 * POST /v1/keys/{family}/rotate: starts a rotation and answers it at once; it goes on by itself. With `dryRun` it only says
 * what a rotation would do. With `compromised` the active version is closed before the answer: no envelope of it is stored
 * from then on. With an Idempotency-Key, a call whose answer was lost is answered again and not done twice.
 */
import { randomUUID } from 'node:crypto';
import { waitOutIntake } from '../audit/store.ts';
import { canonicalDigest } from '../crypto/canonical.ts';
import { toUnavailable } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import { inProgress, planEmergency, recordEmergency } from '../rotation/emergency.ts';
import { viewRun } from '../rotation/progress.ts';
import { rehearse } from '../rotation/rehearsal.ts';
import { nextVersion } from '../rotation/start.ts';
import { findRun, findUnfinished, insertRun } from '../rotation/store.ts';
import type { Service } from '../service.ts';
import { performCall, type Computed } from './call.ts';
import { getClass } from './field.ts';
import { findAnswer, insertAnswer, type KeptAnswer } from './idempotency-store.ts';
import { requesterOf, toFieldkeepError, type Call, type Operation } from './perform.ts';

interface RotateBody {
  readonly reason?: string;
  readonly compromised?: boolean;
  readonly dryRun?: boolean;
}

async function describeRehearsal(service: Service, family: string): Promise<Computed> {
  const { columns, ...told } = await rehearse(service, family);
  const body = {
    family,
    version: nextVersion(service, family),
    phase: 'dry-run',
    dryRun: true,
    columns: columns.map((column) => ({ ...column, done: 0, left: column.total, failed: 0 })),
    ...told,
    nextRotationAt: service.keyring.state.families.get(family)?.nextRotationAt,
  };
  return { status: 200, body };
}

interface Asked {
  readonly family: string;
  readonly reason?: string;
  readonly requestedBy: string;
}

function describeAsked(call: Call, family: string, { reason }: RotateBody): Asked {
  return { family, requestedBy: requesterOf(call), ...(reason !== undefined && { reason }) };
}

/** The answer to a call that begins a run, kept in the transaction that records the run. */
function answerBegun(
  call: Call,
  asked: Asked,
  { id, version }: { readonly id: string; readonly version: number },
  record: NonNullable<Computed['writes']>,
): Computed {
  const body = { id, kind: 'rotation', version, phase: 'pending', columns: [], ...asked };
  return {
    status: 202,
    body,
    location: `/v1/rotations/${id}`,
    facts: { keyVersion: version },
    async writes(tx) {
      await record(tx);
      await insertAnswer(tx, call, { status: 202, body });
    },
  };
}

/** The answer to the same call before, with the run as it is now. */
async function repeatAnswer({ pool }: Service, { status, body }: KeptAnswer): Promise<Computed> {
  const { id } = body as { id: string };
  const run = await findRun(pool, id);
  return { status, body: run === undefined ? body : await viewRun(pool, run), location: `/v1/rotations/${id}` };
}

async function begin(service: Service, call: Call, family: string, body: RotateBody): Promise<Computed> {
  const standing = await findUnfinished(service.pool, family);
  if (standing !== undefined) throw inProgress(standing, family);
  const asked = describeAsked(call, family, body);
  const run = { id: randomUUID(), version: nextVersion(service, family) };
  return answerBegun(call, asked, run, async (tx) => {
    if (await insertRun(tx, { ...run, kind: 'rotation', ...asked })) return;
    const other = await findUnfinished(tx, family);
    throw other === undefined ? new FieldkeepError('conflict', 'Try again.') : inProgress(other, family);
  });
}

function activeOf({ keyring }: Service, family: string): number | undefined {
  return keyring.state.families.get(family)?.active;
}

/** `meant` was active when the call came. It is closed also when another has become active since. */
async function beginEmergency(
  service: Service,
  call: Call,
  family: string,
  body: RotateBody,
  meant: number | undefined,
): Promise<Computed> {
  const known = service.keyring.state.families.get(family);
  if (known === undefined) throw new FieldkeepError('keys_not_ready', `Family ${family} has no key version yet.`);
  const standing = await findUnfinished(service.pool, family);
  const planned = planEmergency(known, standing, randomUUID());
  const closes = [...new Set([meant, known.active])].filter((version) => version !== undefined);
  const asked = describeAsked(call, family, body);
  const begun = answerBegun(call, asked, planned, (tx) => recordEmergency(tx, planned, { ...asked, closes }));
  const said = closes.map((version) => `version ${version} is compromised`);
  if (planned.supersedes !== undefined) said.push(`rotation ${planned.supersedes} is superseded`);
  return { ...begun, facts: { ...begun.facts, ...(said.length > 0 && { purpose: said.join(', ') }) } };
}

/** Waits until nothing that was computed while the closed version stood can be stored any more. */
async function settle(service: Service): Promise<void> {
  try {
    await waitOutIntake(service.pool);
  } catch (error) {
    throw toFieldkeepError(service, toUnavailable(error));
  }
}

export const rotate: Operation = async (service, call) => {
  const family = call.params['family']!;
  const body = call.body as RotateBody;
  const meant = activeOf(service, family);
  const keyed = { ...call, idempotencyDigest: canonicalDigest(['rotate', family, body]) };
  const result = await performCall(
    service,
    call,
    { action: 'rotate', class: family, questions: [{ action: 'rotate', class: family }] },
    async () => {
      getClass(service.policy, family);
      if (body.dryRun === true) return await describeRehearsal(service, family);
      const known = await findAnswer(service.pool, keyed);
      if (known !== undefined) return await repeatAnswer(service, known);
      if (body.compromised === true) return await beginEmergency(service, keyed, family, body, meant);
      return await begin(service, keyed, family, body);
    },
  );
  service.wake();
  if (body.compromised === true && body.dryRun !== true) await settle(service);
  return result;
};
