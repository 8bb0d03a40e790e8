import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { watchDisk } from '../src/disk.ts';
import { examine, readBacklog, shareHealth } from '../src/health.ts';
import { openTestService, type TestService } from './support/service.ts';

const mib = 1_048_576;
const encrypt = { class: 'bank', value: 'x', context: { table: 'demo.employees', column: 'bank', row: '1' } };

describe('health', function () {
  this.timeout(60_000);
  let test: TestService;

  before(async () => {
    test = await openTestService({ workers: false });
  });
  after(() => test.close());

  async function countEntries(): Promise<number> {
    const { rows } = await test.owner.query<{ n: number }>(
      'select coalesce(sum(entries), 0)::int as n from fieldkeep.audit_intake',
    );
    return rows[0]!.n;
  }

  it('is well, over HTTPS too', async () => {
    assert.deepEqual(await examine(test.service), { reasons: [], warnings: [] });
    assert.equal((await test.call('', 'GET', '/readyz', undefined, { token: 'x' })).status, 200);
  });

  it('writes one entry for a thousand requests without a good credential, and agents go on', async () => {
    const before = await countEntries();
    const statuses = new Map<number, number>();
    const ask = async () => {
      const { status } = await test.call('x', 'POST', '/v1/encrypt', encrypt, { token: 'not.a.token' });
      statuses.set(status, (statuses.get(status) ?? 0) + 1);
    };
    for (let n = 0; n < 20; n += 1) await Promise.all(Array.from({ length: 50 }, ask));
    assert.deepEqual([...statuses.keys()].sort(), [401, 429]);
    assert.equal(statuses.get(401), 600);
    const good = await test.call('payroll-agent', 'POST', '/v1/encrypt', encrypt);
    assert.equal(good.status, 200);
    assert.equal((await countEntries()) - before, 2);
  });

  it('is not ready while the audit log cannot write because the disk is full, and is again afterwards', async () => {
    await test.owner.query(`
      create function public.full() returns trigger language plpgsql as $$
      begin raise exception 'no space' using errcode = 'disk_full'; end $$;
      create trigger full_disk before insert on fieldkeep.audit_intake for each row execute function public.full()`);
    const answer = await test.call('payroll-agent', 'POST', '/v1/encrypt', encrypt);
    assert.equal(answer.status, 503);
    assert.match((await examine(test.service)).reasons.join(), /the disk of the database is full/);
    await sleep(5_500); // nobody asks any more: a trial has to tell
    assert.match((await examine(test.service)).reasons.join(), /the disk of the database is full/);
    await test.owner.query('drop trigger full_disk on fieldkeep.audit_intake');
    assert.deepEqual((await examine(test.service)).reasons, []);
    assert.equal((await test.call('payroll-agent', 'POST', '/v1/encrypt', encrypt)).status, 200);
    assert.deepEqual((await examine(test.service)).reasons, []);
  });

  it('warns of entries that are not put in order, with their age', async () => {
    await test.owner.query(`
      with s as (insert into fieldkeep.audit_streams (instance) values (gen_random_uuid()) returning stream)
      insert into fieldkeep.audit_intake (stream, seq, lines, entries, prev_hash, hash, committed_at)
      select stream, 2, '{}', 1, decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex'), now() - interval '1 minute'
      from s`);
    const { reasons, warnings } = await examine(test.service);
    assert.deepEqual(reasons, []);
    assert.match(warnings.join(), /wait to be put in order \([1-9] groups?, the oldest for 6\d s\)/);
    const [groups, seconds] = await readBacklog(test.service.pool);
    assert.ok(groups!.value >= 1);
    assert.ok(seconds!.value >= 60);
  });

  it('looks once for many probes, and tells at once that the process drains', async () => {
    const health = shareHealth(test.service);
    const [one, other] = await Promise.all([health(), health()]);
    assert.equal(one, other);
    test.service.draining = true;
    assert.deepEqual((await health()).reasons, ['draining']);
    test.service.draining = false;
  });

  it('knows when the disk runs full, on a small real one', async function () {
    const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-disk-'));
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=190m', 'tmpfs', folder], { stdio: 'ignore' });
    } catch {
      rmSync(folder, { recursive: true, force: true });
      process.stderr.write('    SKIPPED: a small file system cannot be mounted here (needs root)\n');
      return this.skip();
    }
    const watch = await watchDisk(folder);
    try {
      assert.equal(watch.disk()!.state, 'ok');
      writeFileSync(join(folder, 'low'), Buffer.alloc(165 * mib, 1));
      await sleep(1_500);
      assert.equal(watch.disk()!.state, 'low');
      const low = await examine(test.service, watch);
      assert.deepEqual(low.reasons, []);
      assert.match(low.warnings.join(), /2\d MiB are left on the disk of the state folder/);
      writeFileSync(join(folder, 'full'), Buffer.alloc(20 * mib, 1));
      await sleep(1_500);
      assert.match((await examine(test.service, watch)).reasons.join(), /[0-7] MiB are left/);
      rmSync(join(folder, 'low'));
      await sleep(1_500);
      assert.equal(watch.disk()!.state, 'ok');
    } finally {
      watch.stop();
      execFileSync('umount', [folder]);
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
