/** Entries of attempts that never became an operation: not authenticated, or not a request that we understand. */
import { StaleEpoch } from '../audit/log.ts';
import { formatEntry, type Entry } from '../audit/entry.ts';
import { FieldkeepError } from '../errors.ts';
import type { Principal } from '../policy/access.ts';
import type { Service } from '../service.ts';
import { beginEntry } from './perform.ts';

/** The entry of one refused attempt; nobody is named in it where nobody was authenticated. */
export function refusalEntry(attempt: {
  readonly requestId: string;
  readonly action: string;
  readonly principal?: Principal;
  readonly code: string;
}): Entry {
  const { requestId, action, principal, code } = attempt;
  const entry = beginEntry({ requestId, principal: principal ?? { system: false } }, action);
  entry.decision = code === 'unauthenticated' || code === 'forbidden' ? 'deny' : 'allow';
  entry.outcome = entry.decision === 'deny' ? 'denied' : 'failed';
  entry.code = code;
  return entry;
}

const attemptsMax = 10;

/** Makes entries durable that rest on no key and no policy, all in one commit. Errors: `audit_unavailable`. */
export async function storeEntries(
  { audit, keyring }: Pick<Service, 'audit' | 'keyring'>,
  entries: readonly Entry[],
): Promise<void> {
  const records = entries.map((entry) => ({ line: formatEntry(entry) }));
  for (let n = 0; n < attemptsMax; n += 1) {
    try {
      await audit.append(records, keyring.state.epoch);
      return;
    } catch (failure) {
      if (!(failure instanceof StaleEpoch)) throw failure;
      await keyring.refresh();
    }
  }
  throw new FieldkeepError('audit_unavailable', 'The audit entry could not be made durable.');
}
