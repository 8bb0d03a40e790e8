/**
 * A Vault that is killed and started again and again while requests come at a constant rate. VAULT_CHAOS=20 does it twenty
 * times over two minutes; a plain run does it twice.
 */
import assert from 'node:assert/strict';
import { openTestService, type Reply } from '../support/service.ts';
import { describeVault, loginAs, openAt, openVaultServer, setUp } from '../support/vault.ts';

const cycles = Number(process.env.VAULT_CHAOS ?? '2');
const cycleMs = 6_000;
const requestsPerSecond = 200;
/** Key lifetimes pass five times as fast, so that keys are refreshed ahead during the run. */
const haste = 5;

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const at = (row: number) => ({ table: 'demo.employees', column: 'bank', row: String(row) });

describeVault(
  'a Vault that comes and goes',
  function () {
    this.timeout(cycles * cycleMs + 60_000);

    it(`costs no request while keys are fresh, and service returns within 2 s (${cycles} times)`, async () => {
      const server = await openVaultServer({ own: true });
      await setUp(server, 'transit', ['ssn', 'bank', 'salary']);
      const auth = { method: 'token', token: await loginAs(server, 'fieldkeep-worker') } as const;
      const { rootKeys } = openAt(server, { mount: 'transit', auth });
      const it_ = await openTestService({ rootKeys, now: () => performance.now() * haste });
      const valueOf = (row: number) => `value of row ${row}`;
      const seal = (row: number, tenant: string) =>
        it_.call(
          'payroll-agent',
          'POST',
          '/v1/encrypt',
          { class: 'bank', value: valueOf(row), context: at(row) },
          { tenant },
        );
      const envelopes: string[] = [];
      for (let row = 0; row < 50; row += 1) envelopes.push((await seal(row, 'acme')).body['envelope'] as string);

      const wrong: string[] = [];
      let [sent, answered] = [0, 0];
      const check = (row: number, reply: Reply) => {
        answered += 1;
        if (reply.status !== 200) wrong.push(reply.text);
        else if ('value' in reply.body && reply.body['value'] !== valueOf(row)) wrong.push(`another value for ${row}`);
      };
      const ask = async () => {
        const row = sent % envelopes.length;
        sent += 1;
        const body = { envelope: envelopes[row], context: at(row), view: 'full' };
        const asked = sent % 4 === 0 ? seal(row, 'acme') : it_.call('payroll-agent', 'POST', '/v1/decrypt', body);
        await asked.then(
          (reply) => check(row, reply),
          (error: unknown) => wrong.push(String(error)),
        );
      };
      const began = performance.now();
      const load = setInterval(() => {
        const due = ((performance.now() - began) / 1000) * requestsPerSecond;
        while (sent < due) void ask();
      }, 5);
      const returns: number[] = [];
      try {
        for (let cycle = 0; cycle < cycles; cycle += 1) {
          const started = performance.now();
          await server.stop();
          const away = await seal(0, `away-${cycle}`);
          assert.equal(away.status, 503, 'a key that is not at hand cannot be had');
          await wait(1_500);
          await server.start();
          const back = performance.now();
          while ((await seal(0, `back-${cycle}`)).status !== 200) {
            assert.ok(performance.now() - back < 2_000, 'service returned within 2 s');
            await wait(20);
          }
          returns.push(Math.round(performance.now() - back));
          await wait(Math.max(0, cycleMs - (performance.now() - started)));
        }
      } finally {
        clearInterval(load);
        while (answered + wrong.length < sent && wrong.length < 100) await wait(10);
        await it_.close();
        await server.close();
      }
      const seconds = (performance.now() - began) / 1000;
      console.log(
        `      ${sent} requests in ${seconds.toFixed(0)} s, ${it_.service.keyring.unwraps} unwraps; back after ${Math.max(...returns)} ms at most`,
      );
      assert.deepEqual(wrong.slice(0, 3), []);
      assert.ok(sent > (cycles * cycleMs * requestsPerSecond * 0.8) / 1000, `${sent} requests`);
    });
  },
  true,
);
