/** Real processes, one of which starts with another policy: a rotation leaves nothing behind, and people are told who differs. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parsePolicy } from '../../src/policy/policy.ts';
import { Site, type Process } from '../support/processes.ts';
import { describeVault } from '../support/vault.ts';
import { policyText, shippedPolicy } from './support.ts';

const rows = Number(process.env.ROWS ?? 3_000);

describeVault(
  'a third worker with a policy that registers no columns',
  function () {
    this.timeout(180_000);
    let site: Site;
    let api: Process;
    let odd: Process;
    let folder: string;
    let file: string;
    const text = JSON.stringify({ ...(JSON.parse(policyText) as object), columns: [] });

    before(async () => {
      folder = mkdtempSync(join(tmpdir(), 'fieldkeep-odd-'));
      file = join(folder, 'policy.json');
      writeFileSync(file, text);
      site = await Site.open();
      await site.start('first', 'worker');
      await site.start('second', 'worker');
      api = await site.start('api', 'api');
      await site.owner.query(
        `insert into demo.employees (id, tenant, name, ssn)
         select n, 'acme', 'n', '536-22-' || n from generate_series(1, $1::int) n`,
        [rows],
      );
      await until(async () => (await count('fieldkeep.fe_version(ssn) = 1')) === rows, 'everything is adopted');
      odd = await site.start('odd', 'worker', { FIELDKEEP_POLICY: file });
    });
    after(async () => {
      await site?.close();
      rmSync(folder, { recursive: true, force: true });
    });

    async function count(where: string): Promise<number> {
      const { rows: found } = await site.owner.query<{ n: number }>(
        `select count(*)::int as n from demo.employees where ${where}`,
      );
      return found[0]!.n;
    }

    async function until(holds: () => Promise<boolean>, what: string): Promise<void> {
      const deadline = performance.now() + 90_000;
      while (!(await holds())) {
        assert.ok(performance.now() < deadline, what);
        await sleep(100);
      }
    }

    async function rotate(): Promise<void> {
      const { status, body } = await api.call('operator', 'POST', '/v1/keys/ssn/rotate', {});
      assert.equal(status, 202, JSON.stringify(body));
      let run: Record<string, unknown> = {};
      await until(async () => {
        run = (await api.call('operator', 'GET', `/v1/rotations/${String(body['id'])}`)).body;
        return run['phase'] === 'done';
      }, 'the rotation is done');
      assert.equal(await count(`fieldkeep.fe_version(ssn) is distinct from ${String(body['version'])}`), 0);
      assert.equal(run['policyVersion'], shippedPolicy.version);
    }

    it('a rotation is done by the others, with every row under the new version', async () => {
      await rotate();
      assert.ok(odd.isRunning && odd.output.includes('Another policy is in force'), odd.output);
    });

    it('the keys, a run and readiness name it', async () => {
      const said = new RegExp(`^worker ${odd.instance} has had policy ${parsePolicy(text).version} since `);
      const { warnings } = (await api.call('operator', 'GET', '/v1/keys')).body;
      assert.match(String((warnings as string[])[0]), said);
      const ready = await api.call('operator', 'GET', '/readyz');
      assert.equal(ready.status, 200);
      assert.ok((ready.body['warnings'] as string[]).some((each) => said.test(each)));
    });

    it('it works with the others once its file is theirs', async () => {
      writeFileSync(file, policyText);
      await until(
        async () => (await api.call('operator', 'GET', '/v1/keys')).body['warnings'] === undefined,
        'no skew',
      );
      await rotate();
    });
  },
  true,
);
