/** Envelopes that come late, in every way in which applications bring them, are caught before their version is destroyed. */
import assert from 'node:assert/strict';
import { examineVersion } from '../../src/retirement/evidence.ts';
import { listProblems } from '../../src/retirement/retire-store.ts';
import { findRun, insertRun, listRuns } from '../../src/rotation/store.ts';
import { watchDone } from '../../src/retirement/watch.ts';
import { adopt, drive, fill, openBench, openFor, rotate, type Bench } from '../rotation/support.ts';
import { agree, carryOn, guardsOf, hold, policyOf, watchUntilDone } from './retiring.ts';

const value = (id: number | string) => `536-22-${id}`;
const looks = (bench: Bench) => watchDone(bench.service, { now: true });

describe('envelopes that come late', () => {
  let bench: Bench;
  let late: (row: string) => Promise<string>;
  beforeEach(async () => {
    // No guard for a week: only the watch catches what comes.
    bench = await openBench({ policy: policyOf({ handoffMax: 'P7D', unreadFor: 'P0D', backupHorizon: 'P0D' }) });
    await fill(bench.owner, 20, value);
    await adopt(bench.service);
    late = (row) => hold(bench.service, 1, row, value(row));
  });
  afterEach(() => bench.close());

  const store = async (row: string, envelope: string) =>
    await bench.owner.query('update demo.employees set ssn = $2 where id = $1', [row, envelope]);
  async function check(row: string): Promise<void> {
    const { rows } = await bench.owner.query<{ ssn: string }>('select ssn from demo.employees where id = $1', [row]);
    assert.match(rows[0]!.ssn, /^fe1\.ssn\.2\./);
    assert.equal(await openFor(bench.service, 'ssn', row, rows[0]!.ssn), value(row));
  }

  it('from a queue start a run that makes no version and moves no date, and one at a time', async () => {
    await rotate(bench);
    assert.deepEqual(await looks(bench), []);
    const family = async () => {
      const { rows } = await bench.owner.query<object>(
        `select f.next_rotation_at, (select json_agg(v order by version) from fieldkeep.key_versions v
           where v.family = f.family)::text as versions from fieldkeep.key_families f where family = 'ssn'`,
      );
      return rows;
    };
    const before = await family();
    await store('3', await late('3'));
    const started = await Promise.all([1, 2, 3].map(() => watchDone(bench.service, { now: true })));
    assert.equal(started.flat().length, 1);
    assert.deepEqual(await looks(bench), [], 'one is under way');
    const run = await findRun(bench.owner, started.flat()[0]!);
    assert.deepEqual([run?.requestedBy, run?.reason, run?.version], ['watch', 'older envelopes found', 2]);
    await bench.owner.query('update fieldkeep.rotations set done_at = now() where id = $1', [run!.id]); // and once more
    assert.equal((await watchUntilDone(bench))?.phase, 'done');
    await check('3');
    assert.deepEqual(await family(), before);
    assert.deepEqual(await looks(bench), []);
    assert.deepEqual(await guardsOf(bench.owner), [], 'applications still hold envelopes');
  });

  it('are looked for every ten seconds at most, over all processes', async () => {
    await rotate(bench);
    await looks(bench);
    await store('3', await late('3'));
    assert.deepEqual(await watchDone(bench.service), []);
    await bench.owner.query(`update fieldkeep.watches set looked_at = looked_at - interval '11 s'`);
    assert.equal((await watchDone(bench.service)).length, 1);
  });

  it('without a version index are looked for once a day', async () => {
    await bench.owner.query('drop index demo.employees_ssn_version');
    await rotate(bench);
    bench.service.catalog = { ...bench.service.catalog, tables: new Map() };
    await bench.owner.query(`insert into fieldkeep.watches values ('ssn', now() - interval '23 h')`);
    await store('3', await late('3'));
    assert.deepEqual(await watchDone(bench.service), []);
    await bench.owner.query(`update fieldkeep.watches set looked_at = now() - interval '25 h'`);
    assert.equal((await watchDone(bench.service)).length, 1);
  });

  it('in a transaction that was open across the census keep their version from being destroyed', async () => {
    const writer = await bench.owner.connect();
    try {
      await rotate(bench);
      const envelope = await late('4');
      await writer.query('begin isolation level repeatable read');
      await writer.query('select count(*) from demo.employees');
      await writer.query('update demo.employees set ssn = $1 where id = 4', [envelope]);
      assert.deepEqual(await looks(bench), []);
      const asked = { family: 'ssn', version: 1, withoutGuards: true };
      await assert.rejects(examineVersion(bench.service, asked, 100), {
        code: 'conflict',
        message: /is open: it may hold/,
      });
      await writer.query('commit');
      await assert.rejects(examineVersion(bench.service, asked, 100), {
        message: /ssn of demo\.employees holds values/,
      });
    } finally {
      writer.release();
    }
    assert.equal((await watchUntilDone(bench))?.phase, 'done');
    await check('4');
  });

  it('are not called counted where somebody put another function in the place of the one that counts', async () => {
    await rotate(bench);
    const asked = { family: 'ssn', version: 1, withoutGuards: true };
    await examineVersion(bench.service, asked, 100);
    await bench.owner.query(
      `create or replace function fieldkeep.fe_version(v text) returns int language sql immutable parallel safe return 9`,
    );
    await assert.rejects(examineVersion(bench.service, asked, 100), {
      code: 'conflict',
      message: /^fieldkeep\.fe_version is another function in the database of demo\.employees: its owner/,
    });
  });

  it('of a repeatable read that began before the guard are refused by it when they come to be written', async () => {
    await rotate(bench);
    const writer = await bench.owner.connect();
    try {
      const envelope = await late('5');
      await writer.query('begin isolation level repeatable read');
      await writer.query('select 1'); // its snapshot; no lock on the table
      await bench.owner.query(`update fieldkeep.key_versions set activated_at = activated_at - interval '8 d'`);
      await looks(bench);
      assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_2', true]]);
      await assert.rejects(writer.query('update demo.employees set ssn = $1 where id = 5', [envelope]), {
        code: '23514',
      });
      await writer.query('rollback');
    } finally {
      writer.release();
    }
    await check('5');
  });

  it('written back with a whole row are caught by a watch, or refused and renewed by the API', async () => {
    const { rows } = await bench.owner.query<{ name: string; ssn: string; bank: string | null }>(
      'select name, ssn, bank from demo.employees where id = 6',
    );
    const save = () =>
      bench.owner.query('update demo.employees set name = $1, ssn = $2, bank = $3 where id = 6', [
        'renamed',
        rows[0]!.ssn,
        rows[0]!.bank,
      ]);
    await rotate(bench);
    await save();
    await assert.rejects(agree(bench.service, bench.owner), { code: 'conflict' });
    assert.equal((await watchUntilDone(bench))?.phase, 'done');
    await check('6');
    await bench.owner.query(`update fieldkeep.key_versions set activated_at = activated_at - interval '8 d'`);
    await looks(bench);
    await assert.rejects(save(), { code: '23514' });
    await check('6');
    await agree(bench.service, bench.owner, { withoutGuards: true });
  });

  it('right before the end stop it: their version goes on opening, and the refusal stands', async () => {
    await rotate(bench);
    const id = await agree(bench.service, bench.owner);
    await store('7', await late('7'));
    const refused = await carryOn(bench.service, id);
    assert.match(refused.refused!, /Column ssn of demo\.employees holds 1 values of version 1/);
    const { rows } = await bench.owner.query<{ ssn: string }>('select ssn from demo.employees where id = 7');
    assert.equal(await openFor(bench.service, 'ssn', '7', rows[0]!.ssn), value(7));
    await watchUntilDone(bench);
    await check('7');
    assert.match((await carryOn(bench.service, id)).refused!, /holds 1 values/, 'it has to be asked for anew');
    const again = await carryOn(bench.service, await agree(bench.service, bench.owner));
    assert.ok(again.finishedAt !== undefined && again.signature !== undefined);
    await check('7');
  });

  it('that were given up start no run, keep their waiver in the next one, and keep guards away until they are cleared', async () => {
    await store('8', 'fe1.ssn.1.AAAA');
    const run = await rotate(bench);
    assert.equal(run.phase, 'blocked');
    await bench.owner.query(`update fieldkeep.rotation_failures set waived_at = now(), waived_by = 'x'`);
    await bench.owner.query(`update fieldkeep.rotations set blocked_at = 'epoch'`);
    assert.equal((await drive(bench.service, run.id, (each) => each.phase === 'done')).waived, 1);
    assert.deepEqual(await looks(bench), []);
    await store('9', await late('9'));
    const next = await watchUntilDone(bench);
    assert.deepEqual([next?.phase, next?.waived], ['done', 1]);
    await check('9');
    assert.deepEqual(await looks(bench), []);
    await assert.rejects(agree(bench.service, bench.owner), {
      message: /ssn of demo\.employees holds values of version 1/,
    });
    await bench.owner.query(`update fieldkeep.key_versions set activated_at = activated_at - interval '8 d'`);
    await looks(bench);
    assert.deepEqual(await guardsOf(bench.owner), []);
    assert.match((await listProblems(bench.owner, 'ssn'))[0]!.problem, /values that were given up: set those to null/);
    await bench.owner.query(`update demo.employees set name = 'm' where id = 8`); // whose row can still be worked with
    await bench.owner.query('update demo.employees set ssn = null where id = 8');
    await looks(bench);
    assert.deepEqual(await guardsOf(bench.owner), [['fe_guard_ssn_2', true]]);
    await carryOn(bench.service, await agree(bench.service, bench.owner));
  });

  it('are no reason to start anything while a person’s rotation is under way', async () => {
    await rotate(bench);
    await store('3', await late('3'));
    const id = '00000000-0000-4000-8000-00000000000a';
    await insertRun(bench.owner, { id, kind: 'rotation', family: 'ssn', version: 3, requestedBy: 'test' });
    assert.deepEqual(await looks(bench), []);
    assert.equal((await listRuns(bench.owner, { family: 'ssn', limit: 9 })).length, 2);
  });
});
