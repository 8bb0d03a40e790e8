/** Destroying a version over HTTP: who has to agree to what, when it may be, and what is left of it afterwards. */
import assert from 'node:assert/strict';
import { transaction } from '../../src/db.ts';
import { raiseEpoch } from '../../src/keys/store.ts';
import { RootKeyError } from '../../src/keys/root-keys.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { carryOutOpen } from '../../src/retirement/destroy.ts';
import { watchDone } from '../../src/retirement/watch.ts';
import { entriesOf, openTestService, type Reply, type TestService } from '../support/service.ts';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import { replace } from '../rotation/intercept.ts';
import { rotate } from '../rotation/support.ts';
import { shippedFile } from './approving.ts';

const context = { table: 'demo.employees', column: 'bank', row: '1' };
const said = ({ status, body }: Reply) => [status, body['code'] ?? body['status']];

/** The shipped policy, with its weeks; `boss` may ask and is among those who agree. */
function makePolicy() {
  const file = shippedFile();
  file.people['boss'] = { system: true, grants: ['destroy:bank', 'approve'] };
  file.approvals!['destroy']!.group.push('boss');
  return parsePolicy(JSON.stringify(file));
}

describe('destroying a version over HTTP', function () {
  this.timeout(60_000);
  let it_: TestService;
  let envelope: string;
  beforeEach(async () => {
    it_ = await openTestService({ policy: makePolicy(), workers: false });
    const sealed = await it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value: 'x', context });
    envelope = sealed.body['envelope'] as string;
    await it_.owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'n', $1)`, [
      envelope,
    ]);
    assert.equal((await rotate({ ...it_, database: it_.database }, 'bank')).phase, 'done');
  });
  afterEach(() => it_.close());

  async function call(name: string, method: string, path: string, body?: object, headers: Record<string, string> = {}) {
    const own = name === 'boss';
    const token = own
      ? await it_.issuer.issueToken({ audience: 'fieldkeep', subject: name, ttlSeconds: 60 })
      : undefined;
    return await it_.call(name, method, path, body, { headers, ...(token !== undefined && { token }) });
  }
  interface Options {
    readonly as?: string;
    readonly approval?: string;
    readonly key?: string;
    readonly reason?: string;
    readonly waive?: boolean;
  }
  const destroy = (
    { as = 'operator', approval, key, reason = 'quarterly', waive = true }: Options = {},
    version = '1',
  ) =>
    call(
      as,
      'POST',
      `/v1/keys/bank/versions/${version}/destroy`,
      { reason, ...(waive && { withoutGuards: true }) },
      {
        ...(approval !== undefined && { 'approval-id': approval }),
        ...(key !== undefined && { 'idempotency-key': key }),
      },
    );
  const decide = (id: string, as: string, decision = 'approve') =>
    call(as, 'POST', `/v1/approvals/${id}/decisions`, { decision, reason: 'looked at it' });
  const move = (sql: string) => it_.owner.query(sql);
  /** As if that long had passed for everything that happened so far. */
  const pass = async (interval: string) => {
    await move(`update fieldkeep.key_versions set activated_at = activated_at - interval '${interval}'`);
    await move(`update fieldkeep.rotations set done_at = done_at - interval '${interval}'`);
    await move(`update fieldkeep.guards set validated_at = validated_at - interval '${interval}'`);
    await move(`update fieldkeep.key_uses set last_used_at = last_used_at - interval '${interval}'`);
    await it_.service.keyring.refresh();
  };
  const look = () => watchDone(it_.service, { now: true });

  /** Guarded, and every horizon passed. */
  async function bringToItsTime(): Promise<void> {
    await unfoldAcknowledged(it_.service.pool); // what was used so far is known then
    await pass('8 days');
    await look();
    await pass('36 days');
  }
  async function askAndApprove(options: Options = {}): Promise<string> {
    const asked = await destroy(options);
    assert.deepEqual(said(asked), [202, 'pending'], asked.text);
    const id = asked.body['approvalId'] as string;
    for (const name of ['security-auditor', 'security-lead']) assert.equal((await decide(id, name)).status, 200);
    return id;
  }
  const stateOf = async () => {
    const { body } = await it_.call('operator', 'GET', '/v1/keys/bank');
    return (
      body['versions'] as {
        state: string;
        destruction?: Record<string, unknown>;
        retirement?: { missing: { what: string; until: string }[]; destroyable: boolean; approvals: number };
      }[]
    )[0]!;
  };
  const open = async (text: string) => {
    const reply = await it_.call('payroll-agent', 'POST', '/v1/decrypt', { envelope: text, context, view: 'full' });
    return reply.body['value'] ?? reply.body['code'];
  };

  it('says what is missing and when it will be there, and each horizon holds', async () => {
    const missing = async () => {
      const reply = await destroy();
      assert.equal(reply.status, 409, reply.text);
      return reply.body['detail'] as string;
    };
    const first = await stateOf();
    assert.deepEqual(
      first.retirement!.missing.map(({ what }) => what.replace(/ \(.*/, '')),
      ['a guard on demo.employees.bank', 'the end of backups that hold its rows', 'nobody to use it for P7D'],
    );
    assert.ok(first.retirement!.missing.every(({ until }) => Date.parse(until) > Date.now()));
    assert.deepEqual([first.retirement!.destroyable, first.retirement!.approvals], [false, 2]);
    const [run] = (await it_.call('operator', 'GET', '/v1/rotations?family=bank')).body.items!;
    assert.deepEqual((run!['retirement'] as { version: number }[])[0]!.version, 1, 'a done rotation shows it, too');
    assert.match(
      await missing(),
      /^Version 1 of family bank cannot be destroyed yet\. It lacks the end of backups .* by 20/,
    );
    await pass('6 days 23 hours');
    await look();
    assert.deepEqual((await move('select * from fieldkeep.guards')).rows, [], 'applications may still hold one');
    await pass('1 hour');
    await look();
    const { rows } = await move('select version from fieldkeep.guards where validated_at is not null');
    assert.deepEqual(rows, [{ version: 2 }]);
    assert.match(await missing(), /lacks the end of backups that hold its rows \(backupHorizon P35D\) by/);
    await pass('34 days 23 hours');
    assert.match(await missing(), /the end of backups/);
    await pass('2 hours');
    await open(envelope);
    await move(
      `insert into fieldkeep.key_uses values ('bank', 1, now()) on conflict (family, version) do update set last_used_at = now()`,
    );
    assert.match(await missing(), /lacks nobody to use it for P7D \(unreadFor\) by/);
    await move(`update fieldkeep.key_uses set last_used_at = now() - interval '8 days'`);
    assert.equal((await stateOf()).retirement!.destroyable, true);
    assert.match((await destroy({ waive: false })).body['detail'] as string, /a search of what is not registered/);
    await move('alter table demo.employees drop constraint fe_guard_bank_2');
    assert.match(
      (await destroy({ waive: false })).body['detail'] as string,
      /lacks a guard on demo\.employees\.bank; the end of/,
    );
    assert.deepEqual(said(await destroy()), [202, 'pending'], 'with a waiver, by the last rotation');
  });

  it('takes two people who did not ask, for this request as it was shown', async () => {
    await bringToItsTime();
    const asked = await destroy({ as: 'boss' });
    const id = asked.body['approvalId'] as string;
    assert.deepEqual(said(await decide(id, 'boss')), [403, 'forbidden'], 'whoever asked decides nothing');
    const { body } = await it_.call('security-lead', 'GET', `/v1/approvals/${id}`);
    const details = body['details'] as { guards: object[]; census: object[]; waived: string[]; horizons: object };
    assert.deepEqual(details.census, [{ table: 'demo.employees', column: 'bank', values: 0 }]);
    assert.deepEqual(Object.keys(details.guards[0]!).sort(), [
      'column',
      'definition',
      'table',
      'validatedAt',
      'version',
    ]);
    assert.match(details.waived.join(), /^a search of what is not registered \([^)]*\)$/);
    assert.deepEqual(said(await destroy({ as: 'boss', approval: id })), [202, 'pending']);
    await decide(id, 'security-lead');
    assert.deepEqual(said(await decide(id, 'security-lead')), [409, 'conflict']);
    assert.deepEqual(said(await destroy({ as: 'boss', approval: id })), [202, 'pending'], 'one is not two');
    await decide(id, 'security-auditor');
    const mismatch = [422, 'approval_mismatch'];
    assert.deepEqual(said(await destroy({ approval: id })), mismatch, 'another principal');
    assert.deepEqual(said(await destroy({ as: 'boss', approval: id, reason: 'other' })), mismatch);
    await move(`update fieldkeep.guards set validated_at = validated_at - interval '1 s'`);
    assert.deepEqual(said(await destroy({ as: 'boss', approval: id })), mismatch, 'the guards are others');
    await move(`update fieldkeep.guards set validated_at = validated_at + interval '1 s'`);
    await move(
      `insert into fieldkeep.key_uses values ('bank', 1, now() - interval '9 d') on conflict (family, version) do update set last_used_at = excluded.last_used_at`,
    );
    assert.deepEqual(said(await destroy({ as: 'boss', approval: id })), mismatch, 'somebody has used it');
    await move('delete from fieldkeep.key_uses');
    assert.equal((await stateOf()).state, 'decrypt-only');
    const denied = (await destroy({ reason: 'again' })).body['approvalId'] as string;
    await decide(denied, 'security-lead', 'deny');
    assert.deepEqual(said(await destroy({ reason: 'again', approval: denied })), [403, 'approval_denied']);
    const { rows } = await move('select * from fieldkeep.destructions');
    assert.deepEqual(rows, []);
  });

  it('is begun once, carried out by whoever can, and leaves nothing that opens', async () => {
    await bringToItsTime();
    const dump = await move(`select * from fieldkeep.data_keys where family = 'bank' and version = 1`);
    const id = await askAndApprove();
    const begun = await destroy({ approval: id, key: 'once' });
    assert.deepEqual(said(begun), [202, 'destroying'], begun.text);
    await unfoldAcknowledged(it_.service.pool);
    const [entry] = await entriesOf(it_.owner, begun.headers['x-request-id'] as string);
    assert.deepEqual([entry!['action'], entry!['person'], entry!['keyVersion']], ['destroy', 'operator', 1]);
    assert.match(entry!['purpose'] as string, new RegExp(`^destruction \\S+ under approval ${id}: quarterly$`));
    assert.deepEqual(
      said(await destroy({ approval: id, key: 'once' })),
      [202, 'destroying'],
      'a lost answer is repeated',
    );
    assert.deepEqual(said(await destroy({ approval: id })), [409, 'approval_used']);
    assert.deepEqual(said(await destroy()), [202, 'destroying'], 'nobody is asked twice');
    assert.deepEqual((await move('select count(*)::int as n from fieldkeep.destructions')).rows, [{ n: 1 }]);
    const uses = (await move('select * from fieldkeep.key_uses')).rows as { last_used_at: Date }[];
    assert.equal(await open(envelope), 'x', 'until it is done');
    await unfoldAcknowledged(it_.service.pool); // a use: without it nobody would have agreed to other things than there are
    await move(`update fieldkeep.key_uses set last_used_at = '${uses[0]!.last_used_at.toISOString()}'`);
    assert.deepEqual(said(await call('operator', 'GET', '/v1/keys/bank/versions/1/certificate')), [404, 'not_found']);
    await carryOutOpen(it_.service);
    assert.deepEqual(said(await destroy({ approval: id, key: 'once' })), [202, 'destroyed']);
    assert.equal(await open(envelope), 'version_destroyed');
    const { state, destruction } = await stateOf();
    assert.deepEqual(
      [state, destruction!['status'], destruction!['certificate']],
      ['destroyed', 'destroyed', 'signed'],
    );
    const certificate = await call('security-auditor', 'GET', '/v1/keys/bank/versions/1/certificate');
    const body = JSON.parse(certificate.body['certificate'] as string) as Record<string, unknown>;
    assert.deepEqual(
      (body['approval'] as { decisions: { person: string }[] }).decisions.map(({ person }) => person),
      ['security-auditor', 'security-lead'],
    );
    const audit = body['audit'] as { entry: { index: number; leafHash: string } };
    const found = await it_.call('security-auditor', 'GET', '/v1/audit/entries?action=destroy');
    const result = found.body.items!.find((each) => /"result of destruction/.test(JSON.stringify(each)));
    assert.equal(audit.entry.index, result!['index']);
    assert.equal((await call('payroll-agent', 'GET', '/v1/keys/bank/versions/1/certificate')).status, 403);
    // The keys as a dump from before has them, in a database that knows nothing of the end.
    await move('alter table fieldkeep.key_versions disable trigger key_version_step');
    await move(`update fieldkeep.key_versions set state = 'decrypt-only' where family = 'bank' and version = 1`);
    for (const row of dump.rows as Record<string, unknown>[]) {
      await it_.owner.query(
        'insert into fieldkeep.data_keys select * from json_populate_record(null::fieldkeep.data_keys, $1)',
        [JSON.stringify({ ...row, fingerprint: `\\x${(row['fingerprint'] as Buffer).toString('hex')}` })],
      );
    }
    await transaction(it_.owner, raiseEpoch);
    await it_.service.keyring.refresh();
    assert.ok(dump.rows.length >= 1);
    assert.equal(await open(envelope), 'vault_unavailable');
  });

  it('is refused at its end when the policy has other horizons than were agreed to', async () => {
    await bringToItsTime();
    assert.equal((await destroy({ approval: await askAndApprove() })).status, 202);
    const { policy } = it_.service;
    const bank = policy.classes.get('bank')!;
    const retire = { ...bank.retire, vaultBackupHorizon: 'P0D' };
    it_.service.policy = { ...policy, classes: new Map([...policy.classes, ['bank', { ...bank, retire }]]) };
    await carryOutOpen(it_.service);
    const { state, destruction } = await stateOf();
    assert.deepEqual([state, destruction!['status']], ['decrypt-only', 'refused']);
    assert.equal(destruction!['refused'], 'The policy has changed since it was agreed to: horizons.');
    assert.equal(await open(envelope), 'x');
  });

  it('waits for a signature that this process may not make, and says so', async () => {
    await bringToItsTime();
    const begun = await destroy({ approval: await askAndApprove() });
    assert.deepEqual(said(begun), [202, 'destroying']);
    const refuse = () => Promise.reject(new RootKeyError('Vault answers 403 to sign.', { refused: true }));
    await carryOutOpen({ ...it_.service, rootKeys: replace(it_.service.rootKeys, { sign: refuse }) });
    const { destruction } = await stateOf();
    assert.deepEqual([destruction!['status'], destruction!['certificate']], ['destroyed', 'unsigned']);
    assert.match(
      destruction!['problem'] as string,
      /^nobody has signed its certificate .* npm run keys -- destroy bank 1$/,
    );
    const path = '/v1/keys/bank/versions/1/certificate';
    const unsigned = await call('operator', 'GET', path);
    assert.deepEqual(Object.keys(unsigned.body).sort(), ['certificate', 'problem']);
    await carryOutOpen(it_.service);
    assert.equal((await stateOf()).destruction!['certificate'], 'unsigned', 'it is not tried with every tick');
    await move('update fieldkeep.destructions set retry_at = now()');
    const other = replace(it_.service.rootKeys, { sign: () => Promise.resolve(Buffer.alloc(64)) });
    await assert.rejects(carryOutOpen({ ...it_.service, rootKeys: other }), {
      code: 'internal',
      message: /does not fit/,
    });
    await carryOutOpen(it_.service);
    const signed = await call('operator', 'GET', path);
    assert.equal(signed.body['certificate'], unsigned.body['certificate'], 'its text never changes');
    assert.equal(Buffer.from(signed.body['signature'] as string, 'base64').length, 64);
  });

  it('is refused to whoever may not, out of turn, and for what is no version', async () => {
    assert.deepEqual(said(await destroy({ as: 'security-lead' })), [403, 'forbidden']);
    assert.deepEqual(said(await destroy({ as: 'payroll-agent' })), [403, 'forbidden']);
    for (const version of ['0', '01', 'x', '99']) {
      assert.deepEqual(said(await destroy({}, version)), [404, 'version_unknown'], version);
    }
    const active = await destroy({}, '2');
    assert.match(active.body['detail'] as string, /is active: rotate first/);
    const unknown = await call('operator', 'POST', '/v1/keys/none/versions/1/destroy', { reason: 'x' });
    assert.deepEqual(said(unknown), [404, 'class_unknown']);
    const empty = await call('operator', 'POST', '/v1/keys/bank/versions/1/destroy', {});
    assert.deepEqual(said(empty), [400, 'request_invalid']);
    await bringToItsTime();
    await rotate({ ...it_, database: it_.database }, 'bank');
    assert.match((await destroy({}, '2')).body['detail'] as string, /oldest first: version 1/);
    await it_.owner
      .query(`insert into demo.employees (id, tenant, name, bank) values (7, 'acme', 'n', 'fe1.bank.x')`)
      .then(
        () => assert.fail(),
        (error: { code: string }) => assert.equal(error.code, '23514'),
      );
  });

  it('of a late envelope, the API makes one that the guard lets in', async () => {
    await bringToItsTime();
    const save = (text: string) => it_.owner.query('update demo.employees set bank = $1 where id = 1', [text]);
    await assert.rejects(save(envelope), { code: '23514', constraint: 'fe_guard_bank_2' });
    const renewed = await it_.call('payroll-agent', 'POST', '/v1/reencrypt', { envelope, context });
    assert.equal(renewed.status, 200, renewed.text);
    await save(renewed.body['envelope'] as string);
    assert.equal(await open(renewed.body['envelope'] as string), 'x');
  });
});
