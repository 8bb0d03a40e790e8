/**
 * GET /v1/audit/entries: entries with their index, newest first. Whatever was acknowledged before the question is in
 * the answer. A principal of a tenant sees the entries of that tenant; a filtered answer proves no completeness.
 */
import { findEntries, unfoldAcknowledged, waitUnfolded, type EntryFilter } from '../audit/store.ts';
import { FieldkeepError } from '../errors.ts';
import { present } from '../present.ts';
import { performCall } from './call.ts';
import { limitOf } from './page.ts';
import type { Operation } from './perform.ts';

export const listEntries: Operation = (service, call) =>
  performCall(service, call, { action: 'audit', questions: [{ action: 'audit' }], ofTenant: true }, async () => {
    const { limit: _limit, cursor, ...filter } = call.query;
    const { tenant, system } = call.principal;
    if (tenant === undefined && !system) {
      throw new FieldkeepError('forbidden', 'The token names no tenant whose entries the principal could read.');
    }
    if (tenant !== undefined && filter.tenant !== undefined && filter.tenant !== tenant) {
      throw new FieldkeepError('forbidden', 'A principal of a tenant reads the entries of its own tenant.');
    }
    const own: EntryFilter = present(tenant === undefined ? filter : { ...filter, tenant });
    const inOrder = service.role === 'api' ? waitUnfolded : unfoldAcknowledged;
    const page = await findEntries(service.pool, own, limitOf(call), cursor, inOrder);
    const items = page.items.map(({ index, line }) => ({ index, entry: JSON.parse(line) as unknown }));
    return { body: { items, ...(page.nextCursor !== undefined && { nextCursor: page.nextCursor }) } };
  });
