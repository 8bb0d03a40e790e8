/** What requests do not bring into the mirrors: keys from before, states, what is destroyed, and what was lost there. */
import assert from 'node:assert/strict';
import { transaction } from '../../src/db.ts';
import { MirrorKeeper } from '../../src/keys/mirror-keeper.ts';
import { catchUp, listMirrorWarnings, removeMirrored } from '../../src/keys/mirror.ts';
import { listMirrors } from '../../src/keys/mirror-store.ts';
import { raiseEpoch, setDestroyed } from '../../src/keys/store.ts';
import { advance } from '../../src/rotation/run.ts';
import { nextVersion } from '../../src/rotation/start.ts';
import { beginRotation, openBench, rotate, type Bench } from '../rotation/support.ts';
import { comeBack, goAway, listKept, openCustomer, policy, type Customer } from './mirrored.ts';

describe('the keeper of mirrors', function () {
  this.timeout(30_000);
  let hr: Customer;
  let crm: Customer;
  let bench: Bench;
  let told: string[];
  let keeper: MirrorKeeper;

  beforeEach(async () => {
    [hr, crm] = [await openCustomer(), await openCustomer()];
    bench = await openBench({ policy, targets: new Map(Object.entries({ hr: hr.url, crm: crm.url })) });
    told = [];
    keeper = new MirrorKeeper((error) => told.push((error as Error).message));
  });
  afterEach(async () => {
    for (const each of [hr, crm]) comeBack(each);
    await bench.close();
    await hr.close();
    await crm.close();
  });

  const status = async (target: string) => (await listMirrors(bench.owner, [target]))[0];
  const make = async (...tenants: string[]) => {
    for (const tenant of tenants) await bench.service.keyring.getOrMake(tenant, 'bank', 1);
  };
  const look = () => keeper.look(bench.service);
  /** As at a new start: both sides are compared. */
  const lookAnew = () => new MirrorKeeper((error) => told.push((error as Error).message)).look(bench.service);

  it('brings in what was made before there was a mirror, of the families that have columns there', async () => {
    await make('acme', 'globex');
    await bench.service.keyring.getOrMake('acme', 'ssn', 1);
    await look();
    for (const customer of [hr, crm]) {
      assert.deepEqual(await listKept(customer), ['acme/bank/1 active', 'globex/bank/1 active']);
    }
    const { rows } = await bench.owner.query(
      `select tenant, family, mirrored from fieldkeep.data_keys where cardinality(mirrored) > 0 order by tenant`,
    );
    assert.deepEqual(
      rows.map((row: { mirrored: string[] }) => ({ ...row, mirrored: [...row.mirrored].sort() })),
      ['acme', 'globex'].map((tenant) => ({ tenant, family: 'bank', mirrored: ['crm', 'hr'] })),
    );
  });

  it('goes through more keys than fit one statement', async () => {
    await make('acme');
    await bench.owner.query(
      `insert into fieldkeep.data_keys (tenant, family, version, wrapped, fingerprint)
       select 't' || n, 'bank', 1, 'wrapped' || n, decode(md5(n::text), 'hex') from generate_series(1, 1234) n`,
    );
    await look();
    assert.equal((await listKept(hr)).length, 1235);
    assert.deepEqual(await status('hr'), { target: 'hr', behind: 0, unknown: [], problem: null });
    await lookAnew();
    assert.deepEqual((await status('hr'))!.unknown, [], 'and knows them all again');
  });

  it('says of a target that is away how far its mirror is behind, and catches up', async () => {
    await look();
    goAway(hr);
    await make('acme', 'globex');
    await look();
    await look();
    assert.deepEqual(await status('hr'), {
      ...{ target: 'hr', behind: 2, unknown: [], problem: 'Target hr cannot be reached.' },
    });
    assert.deepEqual(await listMirrorWarnings(bench.service.pool, policy.columns), [
      ...['The mirror of hr is behind by 2 keys.', 'Target hr cannot be reached.'],
    ]);
    assert.deepEqual(told, ['Target hr cannot be reached.'], 'once, not with every try');
    assert.deepEqual(await status('crm'), { target: 'crm', behind: 0, unknown: [], problem: null });
    comeBack(hr);
    await look();
    assert.equal((await status('hr'))!.behind, 0);
    assert.equal((await listKept(hr)).length, 2);
  });

  it('carries states forward and never back', async () => {
    await make('acme');
    assert.equal((await rotate(bench, 'bank')).phase, 'done');
    await look();
    const kept = ['acme/bank/1 decrypt-only', '/bank/2 active', 'acme/bank/2 active'];
    assert.deepEqual(await listKept(hr), kept);
    await hr.owner.query(`update fieldkeep.wrapped_keys set state = 'compromised' where version = 1`);
    await lookAnew();
    assert.equal((await listKept(hr))[0], 'acme/bank/1 compromised');
    assert.deepEqual((await status('hr'))!.unknown, ['bank'], 'it knows more than we do');
  });

  it('holds a version back until its keys are mirrored, but for an emergency', async () => {
    await make('acme');
    goAway(hr);
    const id = await beginRotation(bench.service, 'bank');
    await assert.rejects(advance(bench.service, id), { code: 'keys_not_ready', message: /mirror of hr/ });
    assert.deepEqual(await listKept(crm), [], 'one after the other');
    comeBack(hr);
    await advance(bench.service, id);
    assert.deepEqual(await listKept(hr), ['/bank/2 pending', 'acme/bank/2 pending']);
    goAway(hr);
    await bench.owner.query('update fieldkeep.data_keys set mirrored = default');
    await bench.owner.query('update fieldkeep.rotations set compromised = true');
    await advance(bench.service, id);
  });

  it('deletes the keys of a destroyed version, and says where that could not be done', async () => {
    await make('acme');
    await rotate(bench, 'bank');
    await look();
    const { service } = bench;
    await transaction(service.pool, async (tx) => {
      await setDestroyed(tx, 'bank', 1);
      await raiseEpoch(tx);
    });
    goAway(hr);
    const find = (name: string) => service.targets.find(name);
    const { removed, left } = await removeMirrored(find, ['hr', 'crm', 'mail'], { family: 'bank', version: 1 });
    assert.deepEqual(removed, ['crm']);
    assert.deepEqual(
      [...left],
      [
        ['hr', 'Target hr cannot be reached.'],
        ['mail', 'Target mail is not connected to this process.'],
      ],
    );
    const rest = ['/bank/2 active', 'acme/bank/2 active'];
    assert.deepEqual(await listKept(crm), rest);
    assert.equal((await listKept(hr)).length, 3);
    comeBack(hr);
    await service.keyring.refresh();
    await look();
    assert.deepEqual(await listKept(hr), rest);
    assert.equal(await catchUp(service.pool, 'hr', find('hr')!, { families: ['bank'], all: true }), undefined);
    assert.deepEqual(await listKept(hr), rest, 'and they do not come back');
  });

  it('puts back what was lost in a mirror, and stops sealing where it was changed', async () => {
    await make('acme', 'globex');
    await look();
    await hr.owner.query('truncate fieldkeep.wrapped_keys');
    await crm.owner.query(`update fieldkeep.wrapped_keys set wrapped = 'SECRET' where tenant = 'acme'`);
    await lookAnew();
    assert.equal((await listKept(hr)).length, 2);
    const { problem, behind } = (await status('crm'))!;
    assert.match(problem!, /^The mirror of crm holds another key of family bank, version 1 for a tenant/);
    assert.equal(behind, 1);
    assert.ok(!problem!.includes('SECRET') && !told.join('').includes('SECRET'));
    bench.service.keyring.close(); // what is at hand goes within minutes
    const seal = async (tenant: string) => await bench.service.keyring.getOrMake(tenant, 'bank', 1, 'crm');
    await assert.rejects(seal('acme'), { code: 'internal' });
    await seal('globex');
  });

  it('makes no keys and no versions of a family of which a mirror knows more', async () => {
    await make('acme');
    await look();
    await hr.owner.query(
      `insert into fieldkeep.wrapped_keys (tenant, family, version, wrapped, fingerprint, state, transit_version, bind, created_at)
       select tenant, family, 2, wrapped, fingerprint, 'active', 2, bind, now() from fieldkeep.wrapped_keys`,
    );
    await lookAnew();
    assert.deepEqual((await status('hr'))!.unknown, ['bank']);
    const { keyring } = bench.service;
    const refused = {
      code: 'keys_not_ready',
      message: /it is an older one.* Run npm run keys -- import --mirrors first/,
    };
    const makeFor = async (family: string) => await keyring.getOrMake('globex', family, 1);
    await assert.rejects(makeFor('bank'), refused);
    await makeFor('ssn');
    await keyring.getOrMake('acme', 'bank', 1, 'hr'); // what is known goes on
    const id = await beginRotation(bench.service, 'bank');
    await assert.rejects(advance(bench.service, id), refused);
    assert.equal(nextVersion(bench.service, 'bank'), 2, 'nothing was made');
    await hr.owner.query('delete from fieldkeep.wrapped_keys where version = 2');
    await lookAnew();
    await makeFor('bank');
  });

  it('says what is to be done where there is no mirror', async () => {
    await hr.owner.query('drop schema fieldkeep cascade');
    await make('acme');
    await look();
    assert.match(
      (await status('hr'))!.problem!,
      /^Target hr has no mirror .* its owner runs npm run target:setup -- hr\.$/,
    );
    assert.equal((await status('hr'))!.behind, 1);
  });
});
