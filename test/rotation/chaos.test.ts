/**
 * Processes of the service and Postgres are killed at random while everything rotates and an application writes: every
 * run ends, and every acknowledged value is there. KILLS and ROWS say how much of it.
 */
import assert from 'node:assert/strict';
import { randomInt, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Application, columns } from '../support/application.ts';
import { Site, type Process } from '../support/processes.ts';
import { describeVault } from '../support/vault.ts';

const killsMax = Number(process.env.KILLS ?? 4);
const rows = Number(process.env.ROWS ?? 5_000);
const roundMaxMs = 240_000;

const names = ['api', 'worker 1', 'worker 2', 'postgres'] as const;
type Name = (typeof names)[number];

interface Run {
  readonly family: string;
  readonly version: number;
  readonly done: boolean;
  readonly blocked: string | null;
}

describeVault(
  'a rotation in the middle of which everything is killed',
  function () {
    this.timeout(60_000 + rows * 20 + killsMax * 60_000);
    const kills = new Map<Name, number>(names.map((name) => [name, 0]));
    let site: Site;
    let api: Process;
    let application: Application;
    let over = false;

    before(async () => {
      site = await Site.open();
      application = new Application(site.owner, site.keyring, (tenant, body) =>
        api.call('payroll-agent', 'POST', '/v1/encrypt', body, { tenant }),
      );
    });
    after(async () => {
      over = true;
      await application.abandon();
      await site.close();
    });

    const countKills = () => [...kills.values()].reduce((sum, n) => sum + n, 0);
    const roleOf = (name: Name) => (name === 'api' ? 'api' : 'worker');
    const find = (name: Name) => site.processes.find((each) => each.name === name)!;

    /** Asks until the database answers: it may be one of the victims. */
    async function ask<T extends object>(text: string, values: readonly unknown[] = []): Promise<T[]> {
      while (!over) {
        try {
          return (await site.owner.query<T>(text, [...values])).rows;
        } catch {
          await sleep(50);
        }
      }
      throw new Error('The test is over.');
    }

    async function kill(victims: readonly Name[]): Promise<void> {
      for (const name of victims) kills.set(name, kills.get(name)! + 1);
      await Promise.all(victims.map((name) => (name === 'postgres' ? site.killPostgres() : site.kill(find(name)))));
      if (victims.includes('postgres')) await site.startPostgres();
      for (const name of victims.filter((each) => each !== 'postgres')) {
        await site.forget(find(name));
        await site.start(name, roleOf(name));
      }
      const dead = site.processes.find((each) => !each.isRunning);
      assert.equal(dead, undefined, `${dead?.name} ended by itself: ${dead?.output}`);
    }

    /** One victim, sometimes two at once. */
    function choose(): Name[] {
      const first = names[randomInt(names.length)]!;
      const second = names[randomInt(names.length)]!;
      return randomInt(4) === 0 && first !== second && countKills() + 2 <= killsMax ? [first, second] : [first];
    }

    const listRuns = (since: string) =>
      ask<Run>(
        `select family, version, done_at is not null as done, blocked from fieldkeep.rotations
         where kind = 'rotation' and created_at > $1 order by family`,
        [since],
      );

    /** One family by a call that is repeated until it was answered, the others by their schedule. */
    async function startAll(): Promise<void> {
      await ask(`update fieldkeep.key_families set next_rotation_at = now() where family in ('bank', 'salary')`);
      const headers = { 'idempotency-key': randomUUID() };
      for (let status = 0; status !== 202 && !over; await sleep(50)) {
        const call = api.call('operator', 'POST', '/v1/keys/ssn/rotate', { reason: 'chaos' }, { headers });
        ({ status } = await call.catch(() => ({ status: 0 })));
        assert.ok([0, 202, 503, 504].includes(status), `the call is answered ${status}`);
      }
    }

    /** Everything rotates once, and victims fall until it is done. */
    async function round(): Promise<void> {
      const [now] = await ask<{ now: string }>('select clock_timestamp()::text as now');
      const since = now!.now;
      const deadline = performance.now() + roundMaxMs;
      const starting = startAll();
      starting.catch(() => undefined); // looked at below
      let runs: Run[] = [];
      do {
        await sleep(randomInt(200, 2_000));
        if (countKills() < killsMax) await kill(choose());
        runs = await listRuns(since);
        assert.ok(performance.now() < deadline, `it ends: ${JSON.stringify(runs)}`);
      } while (runs.length < columns.length || runs.some((run) => !run.done));
      await starting;
      runs = await listRuns(since);
      assert.deepEqual(
        runs.map(({ family, blocked }) => [family, blocked]),
        [...columns].sort().map((family) => [family, null]),
        'each family rotated once',
      );
    }

    async function checkKeys(rotations: number): Promise<void> {
      for (const family of columns) {
        const versions = await ask<{ version: number; state: string }>(
          'select version, state from fieldkeep.key_versions where family = $1 order by version',
          [family],
        );
        const wanted = Array.from({ length: rotations + 1 }, (_, i) => ({
          version: i + 1,
          state: i === rotations ? 'active' : 'decrypt-only',
        }));
        assert.deepEqual(versions, wanted, family);
      }
      assert.deepEqual(await ask('select * from fieldkeep.rotation_failures'), []);
      assert.deepEqual(await ask('select id from fieldkeep.rotation_ranges where finished_at is null'), []);
    }

    it('ends, and loses, mixes and forgets nothing', async () => {
      const began = performance.now();
      for (const name of names.slice(0, 3)) await site.start(name, roleOf(name));
      api = find('api');
      await application.fill(rows);
      const plaintext = columns.map((column) => `fieldkeep.fe_version(${column}) = 0`).join(' or ');
      while ((await ask(`select from demo.employees where ${plaintext} limit 1`)).length > 0) await sleep(100);
      let rounds = 0;
      let verified = 0;
      for (; rounds === 0 || countKills() < killsMax; rounds += 1) {
        application.start();
        await round();
        await application.stop();
        const verdict = await application.verify();
        verified += verdict.verified;
        for (const what of ['lost', 'mixed', 'stale'] as const) {
          assert.deepEqual(verdict[what].slice(0, 5), [], `${what}: ${verdict[what].length}`);
        }
        await checkKeys(rounds + 1);
      }
      const seconds = Math.round((performance.now() - began) / 1000);
      const { acknowledged, unheard, refused } = application;
      console.log(
        `      ${countKills()} kills (${[...kills].map(([name, n]) => `${name} ${n}`).join(', ')}) in ${seconds} s, ` +
          `${rounds * columns.length} rotations finished\n` +
          `      ${acknowledged} writes acknowledged, ${unheard} unheard, ${refused} encryptions refused; ` +
          `${verified} values verified: lost 0, mixed 0, stale 0`,
      );
      assert.ok(acknowledged > 100);
    });
  },
  true,
);
