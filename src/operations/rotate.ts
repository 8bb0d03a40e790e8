/**
 * POST /v1/keys/{family}/rotate: starts a rotation and answers it at once; it goes on by itself. With `dryRun` it only says
 * what a rotation would do. With an Idempotency-Key, a call whose answer was lost is answered again and not done twice.
 */
import { createHash, randomUUID } from 'node:crypto';
import { canonicalJson } from '../crypto/canonical.ts';
import { FieldkeepError } from '../errors.ts';
import { viewRun } from '../rotation/progress.ts';
import { rehearse } from '../rotation/rehearsal.ts';
import { nextVersion } from '../rotation/run.ts';
import { findRun, findUnfinished, insertRun, type Run } from '../rotation/store.ts';
import type { Service } from '../service.ts';
import { performCall, type Computed } from './call.ts';
import { findAnswer, insertAnswer } from './idempotency.ts';
import type { Call, Operation } from './perform.ts';

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

function inProgress(run: Pick<Run, 'id'>, family: string): FieldkeepError {
  return new FieldkeepError('rotation_in_progress', `Family ${family} is rotating already.`, { rotationId: run.id });
}

async function begin(service: Service, call: Call, family: string, body: RotateBody): Promise<Computed> {
  const standing = await findUnfinished(service.pool, family);
  if (standing !== undefined) throw inProgress(standing, family);
  const { agent, person } = call.principal;
  const id = randomUUID();
  const version = nextVersion(service, family);
  const requestedBy = person ?? agent ?? 'unknown';
  const run = {
    id,
    kind: 'rotation',
    family,
    version,
    requestedBy,
    ...(body.reason !== undefined && { reason: body.reason }),
    ...(body.compromised !== undefined && { compromised: body.compromised }),
  } as const;
  const answer = { id, kind: 'rotation', family, version, phase: 'pending', columns: [], requestedBy };
  return {
    status: 202,
    body: answer,
    location: `/v1/rotations/${id}`,
    facts: { keyVersion: version },
    async writes(tx) {
      if (!(await insertRun(tx, run))) {
        const other = await findUnfinished(tx, family);
        throw other === undefined ? new FieldkeepError('conflict', 'Try again.') : inProgress(other, family);
      }
      await insertAnswer(tx, call, { status: 202, body: answer });
    },
  };
}

export const rotate: Operation = async (service, call) => {
  const family = call.params['family']!;
  const body = call.body as RotateBody;
  const digest = createHash('sha256')
    .update(canonicalJson(['rotate', family, body]))
    .digest('base64url');
  const keyed = { ...call, idempotencyDigest: digest };
  const result = await performCall(
    service,
    call,
    { action: 'rotate', class: family, questions: [{ action: 'rotate', class: family }] },
    async () => {
      if (!service.policy.classes.has(family))
        throw new FieldkeepError('class_unknown', 'There is no class of this name.');
      if (body.dryRun === true) return await describeRehearsal(service, family);
      const known = await findAnswer(service.pool, keyed);
      if (known === undefined) return await begin(service, keyed, family, body);
      const run = await findRun(service.pool, (known.body as { id: string }).id);
      const now = run === undefined ? known.body : await viewRun(service.pool, run);
      return { status: known.status, body: now, location: `/v1/rotations/${(known.body as { id: string }).id}` };
    },
  );
  service.wake();
  return result;
};
