/** A service without workers, blocked runs in it, and the people who ask for, agree to and use approvals. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import type { PolicyFile } from '../../src/policy/schema.ts';
import { entriesOf, openTestService, type Reply, type TestService } from '../support/service.ts';
import { insertBlocked } from './runs.ts';

export const reason = 'lost in the migration of 2019';
/** The id of nothing. */
export const nowhere = '00000000-0000-4000-8000-000000000000';

export const shippedFile = () =>
  JSON.parse(readFileSync(new URL('../../keys-policy.json', import.meta.url), 'utf8')) as PolicyFile;

/** `boss` may ask for bank and is among the approvers; `intern` is among them without the right. */
function makePolicy() {
  const file = shippedFile();
  file.people['boss'] = { system: true, grants: ['rotate:bank', 'approve'] };
  file.people['intern'] = { system: true, grants: ['audit'] };
  file.approvals!['destroy']!.group.push('boss', 'intern');
  return parsePolicy(JSON.stringify(file));
}

export const said = ({ status, body }: Reply) => [status, body['code']];
export const idOf = ({ body }: Reply) => body['approvalId'] as string;

export interface WaiveOptions {
  readonly as?: string;
  readonly reason?: string;
  /** The Idempotency-Key. */
  readonly key?: string;
}

export interface Approving {
  readonly it_: TestService;
  /** How often the workers were woken. */
  woken(): number;
  call(name: string, method: string, path: string, body?: object, headers?: Record<string, string>): Promise<Reply>;
  waive(run: string, approval?: string, options?: WaiveOptions): Promise<Reply>;
  decide(id: string, as: string, decision?: string): Promise<Reply>;
  get(id: string, as?: string): Promise<Reply>;
  /** A blocked rotation of bank, and an approval that was asked for to waive its failures. */
  ask(rows?: readonly string[]): Promise<{ run: string; id: string }>;
  askAndApprove(rows?: readonly string[]): Promise<{ run: string; id: string }>;
  /** [row, by which approval] of what is waived. */
  waivedRows(run: string): Promise<unknown[]>;
  /** The one entry that a call has left. */
  entryOf(reply: Reply): Promise<Record<string, unknown>>;
  close(): Promise<void>;
}

export async function openApproving(): Promise<Approving> {
  const it_ = await openTestService({ policy: makePolicy(), workers: false });
  let woken = 0;
  it_.service.wake = () => void (woken += 1);
  const bench: Approving = {
    it_,
    woken: () => woken,
    async call(name, method, path, body, headers) {
      const own = ['boss', 'intern'].includes(name); // system principals that the test service does not know
      const token = own ? await it_.issuer.issueToken({ audience: 'fieldkeep', subject: name, ttlSeconds: 60 }) : '';
      return await it_.call(name, method, path, body, {
        ...(own && { token }),
        ...(headers !== undefined && { headers }),
      });
    },
    waive: (run, approval, options = {}) =>
      bench.call(
        options.as ?? 'operator',
        'POST',
        `/v1/rotations/${run}/failures/waive`,
        { reason: options.reason ?? reason },
        {
          ...(approval !== undefined && { 'approval-id': approval }),
          ...(options.key !== undefined && { 'idempotency-key': options.key }),
        },
      ),
    decide: (id, as, decision = 'approve') =>
      bench.call(as, 'POST', `/v1/approvals/${id}/decisions`, { decision, reason: 'looked at it' }),
    get: (id, as = 'operator') => bench.call(as, 'GET', `/v1/approvals/${id}`),
    async ask(rows = ['7', '8']) {
      const run = await insertBlocked(it_.owner, { family: 'bank', failures: { bank: rows } });
      const asked = await bench.waive(run);
      assert.equal(asked.status, 202, asked.text);
      return { run, id: idOf(asked) };
    },
    async askAndApprove(rows) {
      const asked = await bench.ask(rows);
      for (const name of ['security-auditor', 'security-lead']) {
        assert.equal((await bench.decide(asked.id, name)).status, 200);
      }
      return asked;
    },
    async waivedRows(run) {
      const { rows } = await it_.owner.query<{ row: string; waived_by: string }>(
        `select row, waived_by from fieldkeep.rotation_failures
         where rotation = $1 and waived_at is not null order by 1`,
        [run],
      );
      return rows.map((each) => [each.row, each.waived_by]);
    },
    async entryOf(reply) {
      await unfoldAcknowledged(it_.service.pool);
      const entries = await entriesOf(it_.owner, reply.headers['x-request-id'] as string);
      assert.equal(entries.length, 1);
      return entries[0]!;
    },
    close: () => it_.close(),
  };
  return bench;
}
