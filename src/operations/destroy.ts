/**
 * POST /v1/keys/{family}/versions/{version}/destroy: gives a key version up for good, once other people have agreed to that
 * and to what is known about it: guards, counts, horizons, and what is waived. The approved call records it, and whoever
 * can carries it out (retirement/destroy.ts); `GET …/certificate` answers what came of it.
 */
import { randomUUID } from 'node:crypto';
import { canonicalDigest } from '../crypto/canonical.ts';
import { FieldkeepError } from '../errors.ts';
import { findDestruction, insertDestruction, setCalledOff, type Destruction } from '../retirement/destroy-store.ts';
import { checkTurn, examineVersion, toDetails, type Question } from '../retirement/evidence.ts';
import type { Service } from '../service.ts';
import { findApproval } from './approval-store.ts';
import { performCall, type Computed } from './call.ts';
import { findAnswer, insertAnswer, type KeyedCall } from './idempotency-store.ts';
import { questionsAbout } from './questions.ts';
import { needsApproval } from './needs-approval.ts';
import { Overtaken, requesterOf, type Call, type Operation } from './perform.ts';
import { viewDestruction } from './retirement.ts';

/** Of writers, for a call that has ten seconds. */
const waitOutMaxMs = 2_000;

interface DestroyBody {
  readonly reason: string;
  readonly withoutGuards?: boolean;
}

/** Errors: `version_unknown` for what is no version's number. */
function getVersion({ params }: Call): number {
  const text = params['version']!;
  if (/^[1-9][0-9]{0,8}$/.test(text)) return Number(text);
  throw new FieldkeepError('version_unknown', `Family ${params['family']!} has no version of this number.`);
}

export function pathOf({ family, version }: Pick<Destruction, 'family' | 'version'>): string {
  return `/v1/keys/${family}/versions/${version}`;
}

function answer(destruction: Destruction): Computed {
  return { status: 202, body: viewDestruction(destruction), location: `${pathOf(destruction)}/certificate` };
}

/** Errors: `conflict` where it is begun or done already, and those of `examineVersion`. */
async function describe(service: Service, asked: Question, standing: Destruction | undefined): Promise<object> {
  if (standing === undefined) return toDetails(await examineVersion(service, asked, waitOutMaxMs), asked);
  const { family, version, destroyedAt } = standing;
  const how = destroyedAt === undefined ? 'is being destroyed' : 'was destroyed';
  throw new FieldkeepError('conflict', `Version ${version} of family ${family} ${how} under another approval.`);
}

/** Under an approval: records what was agreed to, in the transaction that uses it up. */
async function begin(
  service: Service,
  call: KeyedCall,
  asked: Question,
  reason: string,
  standing: Destruction | undefined,
): Promise<Computed> {
  const outcome = await needsApproval(service, call, {
    ...{ action: 'destroy', about: pathOf(asked), reason },
    details: () => describe(service, asked, standing),
  });
  if ('pending' in outcome) return outcome.pending;
  const { id: approval, details } = outcome;
  const made = { id: randomUUID(), ...asked, approval, details, reason, requestedBy: requesterOf(call) };
  return {
    status: 202,
    location: `${pathOf(asked)}/certificate`,
    facts: { purpose: `destruction ${made.id} under approval ${approval}: ${reason}` },
    async writes(tx) {
      await outcome.use(tx);
      const { decisions } = (await findApproval(tx, approval))!;
      const told = decisions.map((each) => ({ ...each, decidedAt: each.decidedAt.toISOString() }));
      if (!(await insertDestruction(tx, { ...made, decisions: told }))) throw new Overtaken();
      const body = viewDestruction((await findDestruction(tx, asked.family, asked.version))!);
      await insertAnswer(tx, call, { status: 202, body });
      return body;
    },
  };
}

export const destroyVersion: Operation = async (service, call) => {
  const family = call.params['family']!;
  const { reason, withoutGuards = false } = call.body as DestroyBody;
  const request = ['destroy', family, call.params['version'], reason, withoutGuards, call.approvalId ?? null];
  const keyed = { ...call, idempotencyDigest: canonicalDigest(request) };
  const result = await performCall(
    service,
    call,
    { action: 'destroy', class: family, questions: [{ action: 'destroy', class: family }] },
    async () => {
      const version = getVersion(call);
      await service.keyring.refresh();
      const { state } = checkTurn(service.keyring.state.families.get(family), family, version);
      const standing = await findStanding(service, family, version);
      if (state === 'destroyed' && standing === undefined) {
        throw new FieldkeepError('version_destroyed', `Version ${version} of family ${family} was destroyed.`);
      }
      const { facts, ...computed } =
        standing !== undefined && (await isAnswered(service, keyed))
          ? answer(standing)
          : await begin(service, keyed, { family, version, withoutGuards }, reason, standing);
      return { ...computed, facts: { keyVersion: version, ...facts } };
    },
  );
  service.wake();
  return result;
};

/**
 * POST …/destroy/call-off: takes back what was agreed to, while the keeper of root keys has not done it. One who asks for a
 * destruction may call it off, too; nobody has to agree. Whoever goes on with it next refuses it.
 */
export const callOffDestruction: Operation = async (service, call) => {
  const family = call.params['family']!;
  const what = { action: 'destroy', class: family, questions: [{ action: 'destroy', class: family }] } as const;
  const result = await performCall(service, call, what, async () => {
    const version = getVersion(call);
    const standing = await findStanding(service, family, version);
    if (standing === undefined || standing.destroyedAt !== undefined) {
      const is = standing === undefined ? 'is not being destroyed' : 'was destroyed';
      throw new FieldkeepError(
        'conflict',
        `Version ${version} of family ${family} ${is}: there is nothing to call off.`,
      );
    }
    const { reason } = call.body as { reason: string };
    const why = `It was called off by ${requesterOf(call)}: ${reason}`;
    return {
      status: 202,
      facts: { keyVersion: version, purpose: `calling off of destruction ${standing.id}: ${reason}` },
      async writes(tx) {
        if (!(await setCalledOff(tx, standing.id, why))) throw new Overtaken();
        return viewDestruction((await findDestruction(tx, family, version))!);
      },
    };
  });
  service.wake();
  return result;
};

/** What was agreed to for the version, and not refused in the end. */
async function findStanding({ pool }: Service, family: string, version: number): Promise<Destruction | undefined> {
  const found = await findDestruction(pool, family, version);
  return found?.refusedAt === undefined ? found : undefined;
}

/** Whether what is asked was agreed to and recorded: by this very call, or it needs no approval any more. */
async function isAnswered(service: Service, call: KeyedCall): Promise<boolean> {
  return (await findAnswer(service.pool, call)) !== undefined || call.approvalId === undefined;
}

export const getCertificate: Operation = (service, call) => {
  const family = call.params['family']!;
  const what = { action: 'keys', class: family, questions: questionsAbout(family, service) };
  return performCall(service, call, what, async () => {
    const version = getVersion(call);
    const found = await findDestruction(service.pool, family, version);
    if (found?.certificate === undefined) {
      throw new FieldkeepError('not_found', `Version ${version} of family ${family} has no certificate.`);
    }
    const { certificate, signature, publicKey, signingKeyVersion, problem } = found;
    const signed = signature !== undefined && { signature, publicKey, keyVersion: signingKeyVersion };
    return { body: { certificate, ...signed, ...(signature === undefined && problem !== undefined && { problem }) } };
  });
};
