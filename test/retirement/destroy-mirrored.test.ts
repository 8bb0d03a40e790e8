/** A version that is destroyed is gone from mirrors, too: what was dumped from them before opens nothing, and the rest opens. */
import assert from 'node:assert/strict';
import { encodeWrapContext } from '../../src/crypto/context.ts';
import type { Pool } from '../../src/db.ts';
import { comeBack, decryptIn, encryptFor, goAway, openCustomer, policy, type Customer } from '../keys/mirrored.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { replace } from '../rotation/intercept.ts';
import { agree, atOnce, carryOn } from './retiring.ts';
import { rotate } from '../rotation/support.ts';

interface Kept {
  tenant: string;
  version: number;
  wrapped: string;
  fingerprint: Buffer;
}

const patient = {
  ...policy,
  classes: new Map([...policy.classes].map(([name, each]) => [name, { ...each, retire: atOnce }])),
};

describe('destroying a version that is mirrored', function () {
  this.timeout(60_000);
  let it_: TestService;
  let hr: Customer;
  let crm: Customer;
  before(async () => {
    [hr, crm] = [await openCustomer(), await openCustomer()];
    const targets = new Map(Object.entries({ hr: hr.url, crm: crm.url }));
    it_ = await openTestService({ policy: patient, targets, workers: false });
  });
  after(async () => {
    await it_.close();
    for (const each of [hr, crm]) await each.close();
  });

  const dump = async (db: Pool, table: string) =>
    (await db.query<Kept>(`select tenant, version, wrapped, fingerprint from fieldkeep.${table} where family = 'bank'`))
      .rows;
  const opens = ({ tenant, version, wrapped }: Kept) =>
    it_.service.rootKeys.unwrap('bank', wrapped, encodeWrapContext(tenant, 'bank', version)).then(
      () => true,
      () => false,
    );

  it('waits with the certificate for a mirror that is away, and leaves no copy that opens', async () => {
    const sealed = async (value: string) => {
      const reply = await encryptFor(it_, 'hr', 1, { tenant: 'acme', value });
      assert.equal(reply.status, 200, reply.text);
      return reply.body['envelope'] as string;
    };
    const old = await sealed('before');
    await hr.owner.query(`insert into app.people (id, tenant, bank) values (1, 'acme', $1)`, [old]);
    assert.equal((await rotate(it_, 'bank')).phase, 'done');
    const { rows } = await hr.owner.query<{ bank: string }>('select bank from app.people');
    const dumps = [...(await dump(it_.owner, 'data_keys')), ...(await dump(hr.owner, 'wrapped_keys'))];
    const before = dumps.filter(({ version }) => version === 1);
    assert.ok(before.length >= 2, 'in our database and in the mirror');
    for (const each of dumps) assert.equal(await opens(each), true);

    const id = await agree(it_.service, it_.owner, { family: 'bank' });
    const rootKeys = replace(it_.service.rootKeys, {
      async destroyBelow(family: string, floor: number, mayGoOn?: () => Promise<void>) {
        await it_.service.rootKeys.destroyBelow(family, floor, mayGoOn);
        goAway(crm);
      },
    });
    const held = await carryOn({ ...it_.service, rootKeys }, id);
    assert.ok(held.destroyedAt !== undefined && held.finishedAt === undefined, 'gone, and not yet from every mirror');
    assert.match(held.problem!, /crm/);
    comeBack(crm);
    await it_.owner.query('update fieldkeep.destructions set retry_at = now()');
    assert.ok((await carryOn(it_.service, id)).finishedAt !== undefined);

    for (const each of dumps) assert.equal(await opens(each), each.version === 2, `version ${each.version}`);
    for (const { owner } of [hr, crm]) {
      assert.ok((await dump(owner, 'wrapped_keys')).every(({ version }) => version === 2));
    }
    assert.equal((await decryptIn(it_, 'hr', 1, old, 'acme')).body['code'], 'version_destroyed');
    assert.equal((await decryptIn(it_, 'hr', 1, rows[0]!.bank, 'acme')).body['value'], 'before');
  });
});
