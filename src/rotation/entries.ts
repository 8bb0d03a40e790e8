/** What the engine writes into the audit log by itself: phases of a run, and for every batch an intent and a result. */
import { randomUUID } from 'node:crypto';
import { formatEntry, itemsRoot } from '../audit/entry.ts';
import { StaleEpoch, type AuditLog, type AuditRecord, type Receipt } from '../audit/log.ts';
import type { Client } from '../db.ts';
import type { Keyring } from '../keys/keyring.ts';
import type { Policy } from '../policy/policy.ts';
import { present } from '../present.ts';
import { mustBeInForce } from './in-force.ts';
import type { Run } from './store.ts';
import type { RunKind } from './work.ts';

type Named = Pick<Run, 'id' | 'kind' | 'family' | 'version' | 'table' | 'column'>;

const worker = 'fieldkeep-worker';

/** What the log calls the phases of a run, and its batches. */
const actions: Readonly<Record<RunKind, readonly [run: string, batch: string]>> = {
  rotation: ['rotate', 'reencrypt'],
  adoption: ['adopt', 'adopt'],
  verification: ['adopt', 'match'],
  finish: ['adopt', 'adopt'],
  undo: ['decrypt', 'decrypt'],
  leave: ['decrypt', 'decrypt'],
};

function line(run: Named, action: string, purpose: string, more: object): { line: string } {
  return {
    line: formatEntry({
      v: 1,
      time: new Date().toISOString(),
      requestId: randomUUID(),
      action,
      agent: worker,
      purpose: `${purpose} of ${run.kind} ${run.id}`,
      decision: 'allow',
      outcome: 'ok',
      ...present({ class: run.family, keyVersion: run.version, table: run.table, column: run.column }),
      ...more,
    }),
  };
}

/** A run has come to a phase; `count` says of how many values it is told. */
export function phaseLine(run: Named, phase: string, count?: number): { line: string } {
  return line(run, actions[run.kind][0], phase, {
    ...(phase === 'blocked' && { outcome: 'failed' }),
    ...(count !== undefined && { count }),
  });
}

/**
 * A batch is about to be written, or what came of it. Where no value leaves the worker, its rows are told by their count;
 * `items` are the lines of the values that are about to be plaintext again.
 */
export function batchLine(
  run: Named,
  table: string,
  step: 'intent' | 'ok' | 'failed',
  count: number,
  items?: readonly string[],
): AuditRecord {
  const outcome = step === 'failed' ? 'failed' : 'ok';
  const told = { table, outcome, count, ...(items !== undefined && { view: 'full', itemsRoot: itemsRoot(items) }) };
  const record = line(run, actions[run.kind][1], step === 'intent' ? 'intent' : 'result', told);
  return items === undefined ? record : { ...record, items: items.join('\n') };
}

/** A step of the guard of a column against envelopes older than `version`. */
export function guardLine(
  { family, table, column, version }: { family: string; table: string; column: string; version: number },
  step: string,
  outcome: 'ok' | 'failed',
): { line: string } {
  return {
    line: formatEntry({
      ...{ v: 1, time: new Date().toISOString(), requestId: randomUUID(), action: 'guard', agent: worker },
      ...{ class: family, table, column, decision: 'allow', outcome },
      ...(version > 0 && { keyVersion: version }),
      purpose: `${step} of a guard against older versions`,
    }),
  };
}

/** The worker may always write; an epoch that moved only means that its entry is sent again under the new one. */
export async function appendAlways(
  shop: { readonly audit: AuditLog; readonly keyring: Keyring },
  records: readonly AuditRecord[],
  writes?: (tx: Client) => Promise<void>,
): Promise<Receipt> {
  for (;;) {
    try {
      return await shop.audit.append(records, shop.keyring.state.epoch, writes);
    } catch (error) {
      if (!(error instanceof StaleEpoch)) throw error;
      await shop.keyring.refresh();
    }
  }
}

/**
 * The same for what goes by the policy: a plan, an end, a guard. Nothing is written where another policy is in force by then.
 * Errors: NotInForce.
 */
export async function appendInForce(
  shop: Parameters<typeof appendAlways>[0] & { readonly policy: Pick<Policy, 'version'> },
  records: readonly AuditRecord[],
  writes?: (tx: Client) => Promise<void>,
): Promise<Receipt> {
  const { version } = shop.policy;
  return await appendAlways(shop, records, async (tx) => {
    await mustBeInForce(tx, version);
    await writes?.(tx);
  });
}
