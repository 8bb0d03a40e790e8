/** From a version that is active to its end: what a tick does, by hand, and what must be so whatever failed on the way. */
import assert from 'node:assert/strict';
import { verify, createPublicKey } from 'node:crypto';
import { unfoldAcknowledged } from '../../src/audit/store.ts';
import type { Pool } from '../../src/db.ts';
import { carryOutOpen } from '../../src/retirement/destroy.ts';
import { listUnfinished } from '../../src/rotation/store.ts';
import { advance } from '../../src/rotation/run.ts';
import { workRange } from '../../src/rotation/range.ts';
import { listFreeRanges } from '../../src/rotation/range-store.ts';
import { watchDone } from '../../src/retirement/watch.ts';
import type { Service } from '../../src/service.ts';
import { guardsOf } from './retiring.ts';
import { beReady, openFor, skipWaits } from '../rotation/support.ts';

export const rows = 5;
export const valueOf = (row: number | string) => `536-22-${row}`;

/** What time brings: leases end, what waits is tried again. */
export async function passTime(owner: Pool): Promise<void> {
  await owner.query('update fieldkeep.destructions set driver_until = null, retry_at = null where finished_at is null');
  await owner.query(`update fieldkeep.watches set looked_at = 'epoch'`);
}

/** Runs that are under way are taken further, and what they wait for is there. */
export async function driveRuns(shop: Service, owner: Pool): Promise<void> {
  for (const run of await listUnfinished(owner)) {
    while (await advance(shop, run.id));
    await skipWaits(owner, run.id);
  }
  await beReady(owner);
  for (const range of await listFreeRanges(owner)) await workRange(shop, range, () => false);
}

/** What a tick of the workers does for versions that were followed. */
export async function tick(shop: Service): Promise<void> {
  await watchDone(shop);
  await carryOutOpen(shop);
}

export async function isGuarded(owner: Pool, active: number): Promise<boolean> {
  const known = await owner.query('select from fieldkeep.guards where version = $1 and validated_at is not null', [
    active,
  ]);
  const stands = (await guardsOf(owner)).some(([name, valid]) => name === `fe_guard_ssn_${active}` && valid);
  return known.rowCount === 1 && stands;
}

interface Standing {
  readonly state: string;
  readonly keys: number;
  readonly checked: boolean;
  readonly destroyed: boolean;
  readonly refused: boolean;
  readonly signed: boolean;
  readonly results: number;
}

export async function standingOf(service: Pick<Service, 'pool'>, owner: Pool, version: number): Promise<Standing> {
  await unfoldAcknowledged(service.pool);
  const { rows: found } = await owner.query<Standing>(
    `select v.state, (select count(*)::int from fieldkeep.data_keys k where (k.family, k.version) = ('ssn', $1)) as keys,
       d.evidence is not null as checked, d.destroyed_at is not null as destroyed, d.refused_at is not null as refused,
       d.signature is not null as signed,
       (select count(*)::int from fieldkeep.audit_entries e
        where e.line like '%"purpose":"result of destruction ' || d.id || ' %') as results
     from fieldkeep.key_versions v left join fieldkeep.destructions d using (family, version)
     where v.family = 'ssn' and v.version = $1`,
    [version],
  );
  assert.equal(found.length, 1, 'one destruction');
  return found[0]!;
}

/** At any moment: what the keeper has, what the tables say and what the log tells are one truth, or will be by the next tick. */
export async function checkTruth(
  service: Pick<Service, 'pool'>,
  owner: Pool,
  version: number,
  isRootKeyThere: boolean,
): Promise<void> {
  const now = await standingOf(service, owner, version);
  assert.equal(now.state === 'destroyed', now.destroyed, 'the version and its destruction agree');
  assert.equal(now.results, now.destroyed ? 1 : 0, 'the log tells of it once, when it is so');
  assert.equal(now.keys === 0, now.destroyed, 'data keys go with it');
  assert.ok(!now.refused, 'nothing was in the way');
  if (now.destroyed) assert.ok(!isRootKeyThere, 'nothing is recorded that the keeper has not done');
  if (!isRootKeyThere) assert.ok(now.checked, 'nothing is given up that was not checked');
  if (now.signed) assert.ok(now.destroyed);
  // Also where nobody lived to write down that a stricter one has taken its place.
  const known = await owner.query<{ version: number }>(
    'select version from fieldkeep.guards where validated_at is not null and lost_at is null',
  );
  const standing = (await guardsOf(owner)).flatMap(([name, valid]) => (valid ? [Number(name.split('_').at(-1))] : []));
  const told = Math.max(0, ...known.rows.map((each) => each.version));
  assert.ok(told === 0 || Math.max(0, ...standing) >= told, `${told} is told of, ${standing.join()} stands`);
}

/** Over: destroyed, certified, guarded, and every value opens. */
export async function checkEnd(service: Service, owner: Pool, version: number): Promise<void> {
  const { state, keys, signed, results } = await standingOf(service, owner, version);
  assert.deepEqual([state, keys, signed, results], ['destroyed', 0, true, 1]);
  assert.ok(await isGuarded(owner, version + 1));
  assert.equal((await guardsOf(owner)).length, 1, 'lower guards went');
  const { rows: found } = await owner.query<{ certificate: string; signature: string; key: string }>(
    `select certificate, signature, public_key as key from fieldkeep.destructions where version = $1`,
    [version],
  );
  const { certificate, signature, key } = found[0]!;
  const der = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), Buffer.from(key, 'base64')]);
  const publicKey = createPublicKey({ key: der, format: 'der', type: 'spki' });
  assert.ok(verify(null, Buffer.from(certificate), publicKey, Buffer.from(signature, 'base64')));
  await service.keyring.refresh();
  const { rows: table } = await owner.query<{ id: string; ssn: string }>(
    'select id, ssn from demo.employees order by id',
  );
  assert.equal(table.length, rows);
  for (const { id, ssn } of table) assert.equal(await openFor(service, 'ssn', id, ssn), valueOf(id));
}
