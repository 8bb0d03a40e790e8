/**
 * POST /v1/rotations/{id}/failures/waive: gives up the rows that do not open, so that they do not keep a run from being
 * done. The values are lost then, so other people have to agree; what they agree to are these rows with these codes, and
 * nothing that fails later.
 */
import { canonicalDigest, canonicalJson } from '../crypto/canonical.ts';
import { FieldkeepError } from '../errors.ts';
import { lookAtOnce } from '../rotation/control-store.ts';
import { digestFailures, waiveFailures as writeWaiver, type FailedColumn } from '../rotation/failure-store.ts';
import type { Run } from '../rotation/store.ts';
import type { Service } from '../service.ts';
import { performOnRun } from './control.ts';
import { findAnswer, insertAnswer } from './idempotency-store.ts';
import { needsApproval } from './needs-approval.ts';
import { Overtaken, type Operation } from './perform.ts';

/** They are given up in one transaction, in which the audit waits. So many are no broken rows, but a broken setup. */
const rowsMax = 100_000;

interface Waiver {
  readonly failures: readonly FailedColumn[];
}

const countRows = ({ failures }: Waiver) => failures.reduce((sum, { rows }) => sum + rows, 0);

async function getWaiver(service: Service, run: Run): Promise<Waiver> {
  const waiver = { failures: run.phase === 'blocked' ? await digestFailures(service.pool, run.id) : [] };
  const rows = countRows(waiver);
  if (rows === 0) throw new FieldkeepError('conflict', `The ${run.kind} is not blocked by rows that do not open.`);
  if (rows > rowsMax) throw new FieldkeepError('conflict', `More than ${rowsMax} rows do not open: find out why.`);
  return waiver;
}

export const waiveFailures: Operation = async (service, call) => {
  const { reason } = call.body as { reason: string };
  const request = ['waive', call.params['id'], reason, call.approvalId ?? null];
  const keyed = { ...call, idempotencyDigest: canonicalDigest(request) };
  const result = await performOnRun(service, call, 'waive', async (run) => {
    const known = await findAnswer(service.pool, keyed);
    if (known !== undefined) return known;
    const outcome = await needsApproval(service, call, {
      action: 'waive',
      about: `/v1/rotations/${run.id}`,
      reason,
      details: () => getWaiver(service, run),
    });
    if ('pending' in outcome) return outcome.pending;
    const { id, details } = outcome;
    const waived = countRows(details);
    const body = { rotationId: run.id, approvalId: id, waived, failures: details.failures };
    return {
      body,
      facts: { count: waived, purpose: `waiver of ${run.kind} ${run.id} under approval ${id}: ${reason}` },
      async writes(tx) {
        await outcome.use(tx);
        const written = await writeWaiver(tx, run.id, id);
        // Rows that failed in between are in `written` too: computed again, it is another request.
        if (canonicalJson(written) !== canonicalJson(details.failures)) throw new Overtaken();
        if (!(await lookAtOnce(tx, run.id))) throw new Overtaken();
        await insertAnswer(tx, keyed, { status: 200, body });
      },
    };
  });
  service.wake();
  return result;
};
