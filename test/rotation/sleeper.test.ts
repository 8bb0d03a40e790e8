/**
 * An api process that is stopped while requests are on their way through it, and continued when a rotation is done, lets no
 * envelope of the old version out: not of requests that it had computed, nor of those that waited in its sockets.
 * SLEEPS says how often.
 */
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Site, type Process } from '../support/processes.ts';
import { describeVault } from '../support/vault.ts';

const sleeps = Number(process.env.SLEEPS ?? 1);
const askers = 32;
const burst = 64;
/** Longer than any sleep: whatever the sleeper still answers is to be seen. */
const answerMaxMs = 120_000;
const rotationMaxMs = 60_000;

interface Answer {
  /** 0 where the connection broke instead. */
  readonly status: number;
  readonly body: Readonly<Record<string, unknown>>;
}

describeVault(
  'an api process that sleeps through a rotation',
  function () {
    this.timeout(60_000 + sleeps * 90_000);
    let site: Site;
    let sleeper: Process;
    let awake: Process;
    const underWay = new Set<Promise<Answer>>();
    let newest: Answer | undefined;
    let over = false;
    const asking: Promise<void>[] = [];

    before(async () => {
      site = await Site.open();
      await site.start('worker', 'worker');
      awake = await site.start('awake', 'api');
      sleeper = await site.start('sleeper', 'api');
      sleeper.reach(sleeper.url, askers + burst);
    });
    after(async () => {
      over = true;
      sleeper.child?.kill('SIGCONT');
      sleeper.reach(undefined);
      await Promise.all(asking);
      await site.close();
    });

    async function send(): Promise<Answer> {
      const context = { table: 'demo.employees', column: 'bank', row: String(randomInt(1_000_000)) };
      const body = { class: 'bank', value: 'GB29 NWBK 6016', context };
      const options = { maxMs: answerMaxMs };
      const failed = { status: 0, body: {} };
      return await sleeper.call('payroll-agent', 'POST', '/v1/encrypt', body, options).catch(() => failed);
    }

    /** Sends a request, which is on its way until it is answered. */
    function ask(): Promise<Answer> {
      const asked = send().then((answer) => {
        underWay.delete(asked);
        newest = answer;
        return answer;
      });
      underWay.add(asked);
      return asked;
    }

    async function askForEver(): Promise<void> {
      while (!over) if ((await ask()).status !== 200) await sleep(20);
    }

    /** Stops it in the middle of many requests: answered, computed, read, not read yet, on connections that are not open yet. */
    async function stop(): Promise<void> {
      await Promise.all(Array.from({ length: burst / 2 }, ask)); // opens so many
      for (let n = 0; n < burst; n += 1) void ask();
      await sleep(randomInt(15));
      sleeper.child!.kill('SIGSTOP');
    }

    /** Begins a rotation at the other api process. Answers its version and how to wait for its end. */
    async function rotate(): Promise<{ version: number; ended: () => Promise<void> }> {
      const { status, body } = await awake.call('operator', 'POST', '/v1/keys/bank/rotate', {});
      assert.equal(status, 202, JSON.stringify(body));
      const ended = async () => {
        const deadline = performance.now() + rotationMaxMs;
        for (let phase: unknown; phase !== 'done'; await sleep(50)) {
          ({ phase } = (await awake.call('operator', 'GET', `/v1/rotations/${String(body['id'])}`)).body);
          assert.ok(performance.now() < deadline, `the rotation is ${String(phase)}`);
        }
      };
      return { version: body['version'] as number, ended };
    }

    /** Waits until it serves the version: it has found its way back. */
    async function serves(version: number): Promise<void> {
      const deadline = performance.now() + 20_000;
      while (newest?.body['version'] !== version) {
        assert.ok(performance.now() < deadline, `it serves again: ${JSON.stringify(newest)}`);
        await sleep(20);
      }
    }

    it(`lets no envelope of the old version out afterwards (${sleeps} times)`, async () => {
      for (let n = 0; n < askers; n += 1) asking.push(askForEver());
      await serves(1);
      const statuses = new Map<number, number>();
      for (let n = 0; n < sleeps; n += 1) {
        // Now and then it falls asleep while the rotation is on, ready for the new version, perhaps, and not there for it.
        const first = n % 2 === 0;
        if (first) await stop();
        const { version, ended } = await rotate();
        if (!first) {
          await sleep(randomInt(3_000));
          await stop();
        }
        await ended();
        const waiting = [...underWay];
        assert.ok(waiting.length >= askers, 'requests are on their way');
        sleeper.child!.kill('SIGCONT');
        for (const { status, body } of await Promise.all(waiting)) {
          if (status === 200) assert.equal(body['version'], version, `version ${version} was done`);
          assert.ok([0, 200, 503, 504].includes(status), JSON.stringify(body));
          statuses.set(status, (statuses.get(status) ?? 0) + 1);
        }
        await serves(version);
      }
      const told = [...statuses].map(([status, n]) => `${n} of ${status === 0 ? 'a broken connection' : status}`);
      console.log(`      ${sleeps} sleeps; answers afterwards: ${told.join(', ')}; of the old version 0`);
    });
  },
  true,
);
