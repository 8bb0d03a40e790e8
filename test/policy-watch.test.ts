/**
 * A right that the policy file takes away is gone within two seconds, whatever hangs: a target that takes connections and says
 * nothing, a target's server that is stopped, an event loop that is kept busy. CHANGES says how often the file changes.
 */
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { connect, quoteIdentifier, roleOf } from '../src/db.ts';
import { startPostgres, type EmbeddedPostgres } from '../src/embedded/postgres.ts';
import { openEmbeddedRootKeys } from '../src/keys/embedded.ts';
import { parsePolicy } from '../src/policy/policy.ts';
import { watchPolicy, type PolicyWatch } from '../src/policy-watch.ts';
import { adoptPolicy } from '../src/service.ts';
import { createDatabase, type TestDatabase } from './support/database.ts';
import { openTestService, type TestService } from './support/service.ts';

const changes = Number(process.env.CHANGES ?? 5);
const goneMaxMs = 2_000;
const askers = 8;

type Json = Record<string, unknown>;
const shipped = JSON.parse(readFileSync(new URL('../keys-policy.json', import.meta.url), 'utf8')) as Json & {
  agents: Record<string, { grants: unknown[] }>;
  columns: object[];
};
const inTarget = {
  ...{ database: 'hr', table: 'public.people', key: ['id'], tenant: { column: 'tenant' } },
  ...{ column: 'bank', class: 'bank', adopt: true },
};

/** With a column in a target of its own, and with the right to encrypt or without. */
function policyText(may: boolean, note = 0): string {
  const agent = { ...shipped.agents['payroll-agent']!, ...(!may && { grants: ['decrypt:bank:full'] }) };
  const agents = { ...shipped.agents, 'payroll-agent': agent };
  return JSON.stringify({ ...shipped, agents, columns: [...shipped.columns, inTarget] }) + ' '.repeat(note);
}

describe('a right that the policy file takes away', function () {
  this.timeout(60_000 + changes * 8_000);
  let folder: string;
  let file: string;
  let database: TestDatabase;
  let it_: TestService | undefined;
  let watch: PolicyWatch | undefined;

  const openRootKeys = () => openEmbeddedRootKeys(join(folder, 'root-keys.json'));

  beforeEach(async () => {
    database = await createDatabase();
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-watch-'));
    file = join(folder, 'policy.json');
    writeFileSync(file, policyText(true));
  });
  afterEach(async () => {
    watch?.stop();
    await it_?.close();
    it_ = undefined;
    await database.drop();
    rmSync(folder, { recursive: true, force: true });
  });

  async function open(url: string): Promise<TestService> {
    const policy = parsePolicy(policyText(true));
    // With keys from before: those of a new database are made once every target was asked whether it knows others.
    await (await openTestService({ database, rootKeys: await openRootKeys() })).close();
    it_ = await openTestService({ database, rootKeys: await openRootKeys(), policy, targets: new Map([['hr', url]]) });
    const { service } = it_;
    watch = watchPolicy(file, policy.version, (next) => adoptPolicy(service, next), pino({ level: 'silent' }));
    service.policyWatch = watch;
    return it_;
  }

  async function ask(row: number): Promise<number> {
    const context = { table: 'demo.employees', column: 'bank', row: String(row) };
    const body = { class: 'bank', value: 'GB29 NWBK 6016', context };
    return (await it_!.call('payroll-agent', 'POST', '/v1/encrypt', body)).status;
  }

  /** Takes the right away and gives it back. Answers how long after each change of the file an answer still came, in ms. */
  async function measure(times: number): Promise<number[]> {
    let [over, lastOkAt] = [false, 0];
    const asking = Array.from({ length: askers }, async (_, n) => {
      while (!over) if ((await ask(n + 1)) === 200) lastOkAt = performance.now();
    });
    const gone: number[] = [];
    for (let n = 0; n < times; n += 1) {
      for (const until = performance.now() + 15_000; (await ask(1)) !== 200; await sleep(20)) {
        assert.ok(performance.now() < until, 'the right is there');
      }
      await sleep(Math.random() * 250);
      writeFileSync(file, policyText(false, n));
      const changedAt = performance.now();
      await sleep(goneMaxMs + 500); // whatever comes late is to be seen
      gone.push(Math.max(0, lastOkAt - changedAt));
      assert.equal(await ask(1), 403);
      writeFileSync(file, policyText(true, n));
    }
    over = true;
    await Promise.all(asking);
    return gone.toSorted((a, b) => a - b);
  }

  function check(gone: readonly number[], what: string): void {
    const last = gone.at(-1)!;
    const median = gone[Math.floor(gone.length / 2)]!;
    console.log(
      `      ${what}: gone after ${Math.round(median)} ms (median), ${Math.round(last)} ms (longest of ${gone.length})`,
    );
    assert.ok(last <= goneMaxMs, `${Math.round(last)} ms`);
  }

  it('is gone while a target takes connections and never answers, which keeps no start waiting', async () => {
    const sockets = new Set<Socket>();
    const silent: Server = createServer((socket) => sockets.add(socket.on('error', () => undefined)));
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    try {
      const startedAt = performance.now();
      await open(`postgres://who:ever@127.0.0.1:${(silent.address() as AddressInfo).port}/hr`);
      const startMs = performance.now() - startedAt;
      assert.ok(startMs < 9_000, `it starts, after ${Math.round(startMs)} ms`);
      const problem = it_!.service.catalog.problems.get('hr:public.people');
      assert.match(problem!, /^Target hr of table hr:public\.people has not answered since \d{4}-/);
      check(await measure(changes), 'a target that says nothing');
      const closedAt = performance.now();
      await it_!.close();
      it_ = undefined;
      assert.ok(performance.now() - closedAt < 30_000, 'it ends');
    } finally {
      for (const socket of sockets) socket.destroy();
      silent.close();
    }
  });

  it('is gone while the server of a target is stopped, and tables elsewhere are worked on', async () => {
    const home = mkdtempSync(join(tmpdir(), 'fieldkeep-stopped-'));
    chmodSync(home, 0o711); // as root, Postgres runs as another user below it
    const postgres: EmbeddedPostgres = await startPostgres({ home });
    const stop = () => process.kill(-postgres.pid, 'SIGSTOP');
    const goOn = () => process.kill(-postgres.pid, 'SIGCONT');
    try {
      const role = roleOf(postgres.workerUrl);
      const target = await connect(postgres.ownerUrl, { name: 'target' });
      const sql = readFileSync(new URL('../migrations/target.sql', import.meta.url), 'utf8');
      await target.query(sql.replaceAll(':service', quoteIdentifier(role)));
      await target.query(`create table public.people (id bigint primary key, tenant text, bank text);
        grant select, update on public.people to ${role}`);
      await target.end();
      const { service, owner } = await open(postgres.workerUrl);
      assert.ok(service.catalog.tables.has('hr:public.people'));
      stop();
      check(await measure(changes), 'a target whose server is stopped');
      await owner.query(`insert into demo.employees (id, tenant, name, bank) values (1, 'acme', 'n', 'GB29')`);
      for (const until = performance.now() + 20_000; ; await sleep(50)) {
        const { rows } = await owner.query<{ bank: string }>('select bank from demo.employees where id = 1');
        if (rows[0]!.bank.startsWith('fe1.')) break;
        assert.ok(performance.now() < until, 'plaintext of our own tables is adopted meanwhile');
      }
      goOn();
      for (const until = performance.now() + 30_000; !service.catalog.tables.has('hr:public.people'); await sleep(50)) {
        assert.ok(performance.now() < until, 'the target is worked on again');
      }
    } finally {
      goOn();
      await it_?.close();
      it_ = undefined;
      await postgres.stop();
      rmSync(home, { recursive: true, force: true });
    }
  });

  it('is gone in a process that was busy, or slept, for longer than that', async () => {
    await open('postgres://who:ever@127.0.0.1:1/hr');
    assert.equal(await ask(1), 200);
    const answers = Array.from({ length: 32 }, (_, n) => ask(n + 1));
    writeFileSync(file, policyText(false));
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2_500); // as SIGSTOP and SIGCONT do to it
    for (const status of await Promise.all(answers)) assert.ok([403, 503].includes(status), String(status));
  });
});

describe('watchPolicy', () => {
  let folder: string;
  let file: string;
  let watch: PolicyWatch | undefined;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-watch-'));
    file = join(folder, 'policy.json');
    writeFileSync(file, policyText(true));
  });
  afterEach(() => {
    watch?.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  function start(adopt: (version: string) => Promise<void>): void {
    const { version } = parsePolicy(policyText(true));
    watch = watchPolicy(file, version, (policy) => adopt(policy.version), pino({ level: 'silent' }));
  }

  async function until(holds: () => boolean): Promise<void> {
    for (const end = performance.now() + 5_000; !holds(); await sleep(20)) assert.ok(performance.now() < end);
  }

  it('gives out a change while the one before is still being put in force', async () => {
    const given: string[] = [];
    start((version) => {
      given.push(version);
      return new Promise(() => undefined);
    });
    writeFileSync(file, policyText(false, 1));
    await until(() => given.length === 1);
    writeFileSync(file, policyText(false, 2));
    await until(() => given.length === 2);
    assert.equal(given[1], parsePolicy(policyText(false, 2)).version);
  });

  it('tries again what could not be put in force', async () => {
    let tries = 0;
    start(() => ((tries += 1) < 3 ? Promise.reject(new Error('away')) : Promise.resolve()));
    writeFileSync(file, policyText(false));
    await until(() => tries === 3);
    await sleep(1_500);
    assert.equal(tries, 3);
  });

  it('gives out the same policy again on SIGHUP: a person has said so', async () => {
    const given: string[] = [];
    start((version) => Promise.resolve(void given.push(version)));
    await sleep(600);
    assert.deepEqual(given, []);
    process.emit('SIGHUP');
    await until(() => given.length === 1);
  });
});
