/**
 * A process that takes versions of ssn from their rotation to their end, and kills itself (SIGKILL: nothing is cleaned up) at
 * the write that it was told, before it is made or right after:
 *
 *     DATABASE_URL=… DATABASE_ROWS_URL=… DATABASE_OWNER_URL=… node test/retirement/child.ts HOME AT before|after
 *
 * Exit code 0: a version came to its end without meeting that write.
 */
import { join } from 'node:path';
import { pino } from 'pino';
import { openPool } from '../../src/db.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { openService } from '../../src/service.ts';
import { Faults, openFaultyShop } from '../rotation/faulty.ts';
import { agree, policyOf } from './retiring.ts';
import { driveRuns, isGuarded, standingOf, tick } from './end.ts';
import { beginRotation } from '../rotation/support.ts';

const {
  DATABASE_URL: databaseUrl = '',
  DATABASE_ROWS_URL: rowsUrl = '',
  DATABASE_OWNER_URL: ownerUrl = '',
} = process.env;
const [home = '', at = '', when = ''] = process.argv.slice(2);
const owner = openPool(ownerUrl, { max: 2, name: 'owner' });
const rootKeys = await openEmbeddedRootKeys(join(home, 'root-keys.json'));
const rows = new Map([[undefined, rowsUrl]]);
const service = await openService({ databaseUrl, rows, rootKeys, policy: policyOf(), log: pino({ level: 'silent' }) });
const faults = new Faults();
faults.strike = () => process.kill(process.pid, 'SIGKILL');
const { shop, close } = await openFaultyShop(service, faults);

const known = () => service.keyring.state.families.get('ssn')!;
const oldest = () => [...known().versions.values()].find(({ state }) => state !== 'destroyed')!.version;
/** What came to its end and was not certified yet is still the one. */
const { rows: open } = await owner.query<{ version: number }>(
  'select version from fieldkeep.destructions where finished_at is null',
);
await driveRuns(service, owner);
if (open.length === 0 && oldest() === known().active) {
  const id = await beginRotation(service);
  const isDone = async () =>
    (await owner.query('select from fieldkeep.rotations where id = $1 and done_at is not null', [id])).rowCount === 1;
  while (!(await isDone())) await driveRuns(service, owner);
  await service.keyring.refresh();
}
const version = open[0]?.version ?? oldest();

faults.arm({ at: Number(at), mode: when === 'before' ? 'lost' : 'unheard' });
while (!(await isGuarded(owner, version + 1))) {
  await owner.query(`update fieldkeep.watches set looked_at = 'epoch'`);
  await tick(shop);
  await driveRuns(service, owner);
}
const begun = await owner.query('select from fieldkeep.destructions where version = $1', [version]);
if (begun.rowCount === 0) await agree(service, owner, { version });
while (!(await standingOf(service, owner, version)).signed) await tick(shop);
close();
await service.close();
await owner.end();
