/** What callers see while a real Vault is sealed, stopped, slow, or says no: the table of design, section 3. */
import assert from 'node:assert/strict';
import { createServer, request as forward, Agent } from 'node:https';
import type { AddressInfo } from 'node:net';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ensureTls } from '../../src/embedded/tls.ts';
import { openProxy } from '../support/proxy.ts';
import { openTestService, type Reply, type TestService, type TestServiceOptions } from '../support/service.ts';
import {
  describeVault,
  loginAs,
  openAt,
  openVaultCluster,
  openVaultServer,
  setUp,
  type Opened,
  type VaultServer,
} from '../support/vault.ts';

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const context = { table: 'demo.employees', column: 'bank', row: '1' };
const value = 'GB29 NWBK 6016 1331 9268 19';
const classes = ['ssn', 'bank', 'salary'];
const mount = 'transit';

describeVault(
  'a service on Vault',
  function () {
    this.timeout(60_000);
    let server: VaultServer;
    const clock = { now: 0 };
    const open: { close(): Promise<void> }[] = [];

    before(async () => {
      server = await openVaultServer({ own: true });
      await setUp(server, mount, classes);
    });
    after(() => server.close());
    afterEach(async () => {
      for (const each of open.splice(0).reverse()) await each.close();
      clock.now = 0;
    });

    async function start(
      at: Parameters<typeof openAt>[1],
      options: TestServiceOptions = {},
    ): Promise<TestService & { opened: Opened }> {
      const opened = openAt(server, at);
      const service = await openTestService({ rootKeys: opened.rootKeys, now: () => clock.now, ...options });
      open.push(service);
      return { ...service, opened };
    }

    const asWorker = async () => ({ method: 'token', token: await loginAs(server, 'fieldkeep-worker') }) as const;
    const seal = (it_: TestService, tenant = 'acme') =>
      it_.call('payroll-agent', 'POST', '/v1/encrypt', { class: 'bank', value, context }, { tenant });
    const openIt = (it_: TestService, envelope: unknown, tenant = 'acme') =>
      it_.call('payroll-agent', 'POST', '/v1/decrypt', { envelope, context, view: 'full' }, { tenant });
    const ready = async (it_: TestService) => await it_.call('', 'GET', '/readyz', undefined, { token: '' });

    function assertAway(reply: Reply): void {
      assert.equal(reply.status, 503, reply.text);
      assert.match(String(reply.body['code']), /^(vault_unavailable|keys_not_ready)$/);
      assert.match(String(reply.headers['retry-after']), /^[1-9]$/);
    }

    async function recovers(ask: () => Promise<Reply>, withinMs: number): Promise<void> {
      const until = performance.now() + withinMs;
      let reply = await ask();
      while (reply.status !== 200 && performance.now() < until) {
        await wait(50);
        reply = await ask();
      }
      assert.equal(reply.status, 200, `within ${withinMs} ms: ${reply.text}`);
    }

    /** Lets almost five minutes pass, in steps: by then a key in use is refreshed ahead, and Vault's answer counts at once. */
    async function isRefused(ask: () => Promise<Reply>): Promise<void> {
      for (let i = 0; i < 5; i += 1) {
        clock.now += 45_000;
        await ask();
      }
      clock.now += 43_000; // 268 s: above 80 % of the longest life, and below the shortest
      for (let n = 0; n < 100; n += 1) {
        const reply = await ask();
        if (reply.status !== 200) return assertAway(reply);
        await wait(50);
      }
      assert.fail('The key at hand was not dropped.');
    }

    it('lives while Vault is sealed at its start, is not ready, and becomes ready by itself', async () => {
      const token = await asWorker();
      await server.seal();
      const it_ = await start({ mount, auth: token });
      const before = await ready(it_);
      assert.equal(before.status, 503);
      assert.deepEqual((before.body['reasons'] as string[])[0], 'Vault is sealed.');
      assertAway(await seal(it_));
      await server.unseal();
      await recovers(() => seal(it_), 2_500);
      await recovers(() => ready(it_), 2_500);
    });

    it('lives while Vault is unreachable at its start', async () => {
      const token = await asWorker();
      await server.stop();
      const it_ = await start({ mount, auth: token });
      assert.match((await ready(it_)).text, /Vault refuses connections/);
      assertAway(await seal(it_));
      await server.start();
      await recovers(() => seal(it_), 2_500);
    });

    /** Each way in which a Vault can be away, and back. */
    const outages: Record<string, [lose: () => Promise<void>, restore: () => Promise<void>]> = {
      sealed: [() => server.seal(), () => server.unseal()],
      stopped: [() => server.stop(), () => server.start()],
    };
    for (const [name, [lose, restore]] of Object.entries(outages)) {
      it(`answers from keys at hand while Vault is ${name}, refuses when their time is over, and returns by itself`, async () => {
        const it_ = await start({ mount, auth: await asWorker() });
        const { envelope } = (await seal(it_)).body;
        await lose();
        try {
          for (let i = 0; i < 20; i += 1) {
            assert.equal((await seal(it_)).status, 200);
            assert.equal((await openIt(it_, envelope)).body['value'], value);
          }
          assertAway(await seal(it_, 'globex'));
          await wait(2_100);
          const state = await ready(it_);
          assert.equal(state.status, 200, 'an outage that keys outlive takes no instance out of service');
          assert.match(state.text, /"warnings":\["Vault/);
          for (let i = 0; i < 8; i += 1) {
            clock.now += 50_000; // in steps: a key also goes after a minute without use
            const reply = await openIt(it_, envelope);
            if (reply.status !== 200) assertAway(reply);
          }
          assertAway(await openIt(it_, envelope));
          assertAway(await seal(it_));
        } finally {
          await restore();
        }
        await recovers(() => openIt(it_, envelope), 2_000);
        await recovers(() => seal(it_, 'globex'), 2_000);
      });
    }

    it('shares one unwrap among requests while Vault is slow, and each keeps its own deadline', async () => {
      const proxy = await openProxy(server.address);
      open.push(proxy);
      const address = proxy.through(server.address).replace(/\/$/, '');
      const first = await start({ mount, auth: await asWorker() });
      const { envelope } = (await seal(first)).body;
      const slow = await start({ mount, auth: await asWorker(), address }, { requestDeadlineMs: 2_000 });
      const { service, opened } = slow;
      // Another database, with the same wrapped keys: what a process finds that has just started.
      await slow.owner.query('delete from fieldkeep.data_keys');
      const { rows } = await first.owner.query<{ row: string }>(
        'select to_json(k)::text as row from fieldkeep.data_keys k',
      );
      for (const { row } of rows) {
        await slow.owner.query(
          'insert into fieldkeep.data_keys select * from json_populate_record(null::fieldkeep.data_keys, $1)',
          [row],
        );
      }
      await service.keyring.refresh();
      const ask = () => openIt(slow, envelope);
      proxy.delayMs = 100;
      const unwraps = service.keyring.unwraps;
      const replies = await Promise.all(Array.from({ length: 100 }, ask));
      assert.ok(
        replies.every((reply) => reply.status === 200),
        replies[0]!.text,
      );
      assert.ok(service.keyring.unwraps - unwraps <= 2, 'one for the value, one for the digest of the row');

      clock.now += 400_000;
      proxy.mode = 'swallow';
      const timed = async () => {
        const began = performance.now();
        const reply = await ask();
        return { reply, ms: performance.now() - began };
      };
      const early = timed();
      await wait(1_500);
      const late = timed();
      const [a, b] = [await early, await late];
      assert.equal(a.reply.body['code'], 'deadline_exceeded');
      assert.ok(a.ms >= 1_900 && a.ms < 2_900, `${a.ms} ms`);
      assertAway(b.reply);
      assert.ok(b.ms >= 1_000 && b.ms < 1_950, `${b.ms} ms: what was left of the unwrap, not its own deadline`);
      proxy.mode = 'pass';
      proxy.delayMs = 0;
      await recovers(ask, 4_000);
      assert.equal(opened.session.state.logins, 1);
    });

    /** Ways in which Vault says no to a key: copies at hand go as soon as it is asked. */
    it('drops keys at once when its token was revoked', async () => {
      const { token } = await asWorker();
      const it_ = await start({ mount, auth: { method: 'token', token } });
      const { envelope } = (await seal(it_)).body;
      await server.call('POST', 'auth/token/revoke', { token });
      assert.equal((await openIt(it_, envelope)).status, 200, 'Vault has not been asked yet');
      await isRefused(() => openIt(it_, envelope));
      await wait(3_100);
      assert.match((await ready(it_)).text, /Vault refuses the token/);
    });

    it('drops keys at once when its policy was taken away, and uses them again when it is back', async () => {
      const { data } = await server.call('GET', 'sys/policies/acl/fieldkeep-worker-bank');
      const it_ = await start({ mount, auth: await asWorker() });
      const { envelope } = (await seal(it_)).body;
      await server.call('DELETE', 'sys/policies/acl/fieldkeep-worker-bank');
      await isRefused(() => openIt(it_, envelope));
      await server.call('POST', 'sys/policies/acl/fieldkeep-worker-bank', { policy: data!['policy'] });
      clock.now += 2_001;
      assert.equal((await openIt(it_, envelope)).status, 200);
    });

    it('drops a key at once when its version was trimmed, and no other', async () => {
      const it_ = await start({ mount, auth: await asWorker() });
      const { envelope } = (await seal(it_)).body;
      const ssn = { class: 'ssn', value: '123-45-6789', context: { ...context, column: 'ssn' } };
      await it_.call('payroll-agent', 'POST', '/v1/encrypt', ssn);
      const { data } = await server.call('POST', `${mount}/keys/fk-bank/rotate`, {});
      const newest = data!['latest_version'] as number;
      await server.call('POST', `${mount}/keys/fk-bank/config`, {
        ...{ min_decryption_version: newest, min_encryption_version: newest },
      });
      await server.call('POST', `${mount}/keys/fk-bank/trim`, { min_available_version: newest });
      await isRefused(async () => {
        assert.equal((await it_.call('payroll-agent', 'POST', '/v1/encrypt', ssn)).status, 200);
        return await openIt(it_, envelope);
      });
      assertAway(await openIt(it_, envelope));
      assert.equal((await it_.call('payroll-agent', 'POST', '/v1/encrypt', ssn)).status, 200);
    });

    it('takes what a standby answers for an outage, and a standby that hands on for a good Vault', async () => {
      // TLS ends here, so that the real server's answers can be given the statuses that only clusters have.
      const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-standby-'));
      const tls = await ensureTls(folder);
      let status: { health?: number; calls?: number } = {};
      const agent = new Agent({ ca: server.ca });
      const front = createServer({ cert: tls.cert, key: tls.key }, (req, res) => {
        const forced = req.url!.includes('sys/health') ? status.health : status.calls;
        if (forced !== undefined) return void res.writeHead(forced).end('{"errors":["standby"]}');
        const { method, headers } = req;
        const onward = forward(new URL(req.url!, server.address), { method, headers, agent }, (answer) => {
          res.writeHead(answer.statusCode!, answer.headers);
          answer.pipe(res);
        });
        req.pipe(onward);
      });
      await new Promise<void>((resolve) => front.listen(0, '127.0.0.1', resolve));
      const address = `https://127.0.0.1:${(front.address() as AddressInfo).port}`;
      open.push({
        close: async () => {
          agent.destroy();
          front.closeAllConnections();
          await new Promise((resolve) => front.close(resolve));
          rmSync(folder, { recursive: true });
        },
      });
      const keeper = openAt({ ...server, ca: tls.ca }, { mount, auth: await asWorker(), address });
      const it_ = await openTestService({ rootKeys: keeper.rootKeys, now: () => clock.now });
      open.push(it_);
      const { envelope } = (await seal(it_)).body;
      for (const health of [429, 473]) {
        status = { health };
        await wait(1_100);
        assert.equal(await keeper.rootKeys.findProblem(), undefined, String(health));
      }
      status = { health: 472 };
      await wait(1_100);
      assert.match((await keeper.rootKeys.findProblem())!, /disaster recovery secondary/);
      for (const calls of [429, 472, 473]) {
        status = { calls };
        assert.equal((await openIt(it_, envelope)).status, 200);
        clock.now += 250_000; // refreshed ahead, in vain: that is no reason to drop the key
        await wait(20);
        clock.now = clock.now - 200_000;
        assertAway(await seal(it_, `tenant-${calls}`));
        assert.equal((await openIt(it_, envelope)).status, 200, 'still at hand');
      }
      status = {};
      await recovers(() => seal(it_, 'tenant-429'), 2_000);
    });

    it('works with a standby of a real cluster, and through the loss of its leader', async () => {
      const cluster = await openVaultCluster();
      const [leader, standby] = cluster as [VaultServer, VaultServer, VaultServer];
      open.push(...cluster);
      const healthOf = (each: VaultServer) =>
        each.call('GET', 'sys/health', undefined, '').then(
          () => 200,
          (error: unknown) => (error as { status?: number }).status,
        );
      assert.equal(await healthOf(standby), 429);
      await setUp(leader, mount, classes);
      const auth = { method: 'token', token: await loginAs(leader, 'fieldkeep-worker') } as const;
      const { rootKeys } = openAt(standby, { mount, auth });
      const it_ = await openTestService({ rootKeys, now: () => clock.now });
      open.push(it_);
      const { envelope } = (await seal(it_)).body;
      assert.equal((await ready(it_)).status, 200);
      await leader.stop();
      assert.equal((await openIt(it_, envelope)).body['value'], value, 'at hand');
      await recovers(() => seal(it_, 'globex'), 20_000);
    });

    it('asks Vault nothing for keys at hand', async () => {
      const it_ = await start({ mount, auth: await asWorker() });
      const { envelope } = (await seal(it_)).body;
      const calls = () => {
        const audited = server
          .auditLog()
          .split('\n')
          .filter((line) => line.includes('"transit/decrypt/'));
        return { counted: it_.service.keyring.unwraps, audited: audited.length };
      };
      const before = calls();
      for (let i = 0; i < 10; i += 1) {
        await Promise.all(
          Array.from({ length: 50 }, async () => assert.equal((await openIt(it_, envelope)).status, 200)),
        );
      }
      assert.deepEqual(calls(), before);
    });
  },
  true,
);
