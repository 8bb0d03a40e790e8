import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isRunning } from '../src/embedded/home.ts';
import { undoAll } from '../src/stopping.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const stopMaxMs = 15_000;
const startMaxMs = 90_000;

describe('stopping', function () {
  this.timeout(180_000);
  const homes: string[] = [];
  const running: ChildProcess[] = [];

  afterEach(async () => {
    for (const child of running.splice(0).filter((each) => each.exitCode === null && each.signalCode === null)) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    for (const home of homes.splice(0)) {
      const pid = postgresOf(home);
      if (pid !== undefined && isRunning(pid)) {
        process.kill(pid, 'SIGCONT');
        process.kill(pid, 'SIGINT');
        while (isRunning(pid)) await sleep(20);
      }
      rmSync(home, { recursive: true, force: true });
    }
  });

  function postgresOf(home: string): number | undefined {
    const secrets = join(home, 'postgres.json');
    const { id } = existsSync(secrets) ? (JSON.parse(readFileSync(secrets, 'utf8')) as { id: string }) : { id: '' };
    const folders = [join(home, 'postgres', 'data'), join('/var/lib/fieldkeep', id, 'data')];
    const file = folders.map((folder) => join(folder, 'postmaster.pid')).find((each) => existsSync(each));
    return file === undefined ? undefined : Number(readFileSync(file, 'utf8').split('\n')[0]);
  }

  async function start(command: readonly string[], more: Record<string, string> = {}) {
    const home = mkdtempSync(join(tmpdir(), 'fieldkeep-stop-'));
    homes.push(home);
    const policy = join(home, 'policy.json');
    writeFileSync(policy, readFileSync(join(root, 'keys-policy.json')));
    const env = {
      ...process.env,
      ...{
        FIELDKEEP_HOME: join(home),
        PORT: '0',
        DATABASE_URL: '',
        VAULT_ADDR: '',
        FIELDKEEP_POLICY: policy,
        NODE_ENV: '',
      },
      ...more,
    };
    const child = spawn(command[0]!, command.slice(1), { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] });
    running.push(child);
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk: Buffer) => (output += chunk.toString()));
    const runtime = join(home, 'runtime.json');
    const deadline = performance.now() + startMaxMs;
    while (!existsSync(runtime)) {
      assert.ok(child.exitCode === null && performance.now() < deadline, output);
      await sleep(50);
    }
    const { pid, url } = JSON.parse(readFileSync(runtime, 'utf8')) as { pid: number; url: string };
    return { child, pid, port: Number(new URL(url).port), home, policy, output: () => output };
  }

  function dial(port: number): Socket {
    const socket = connect({ port, host: 'localhost' });
    socket.on('error', () => undefined);
    return socket;
  }

  async function goneWithin(pid: number, ms: number): Promise<number> {
    const startedAt = performance.now();
    while (isRunning(pid)) {
      assert.ok(performance.now() - startedAt < ms, `process ${pid} still runs after ${ms} ms`);
      await sleep(20);
    }
    return performance.now() - startedAt;
  }

  async function isRefused(port: number): Promise<boolean> {
    const socket = dial(port);
    return await new Promise((resolve) =>
      socket.once('connect', () => resolve(false)).once('error', () => resolve(true)),
    );
  }

  it('undoes newest first, goes on after what hangs or fails, and says so', async () => {
    const done: string[] = [];
    const told: string[] = [];
    const wrong = await undoAll(
      [
        { what: 'The first', run: () => void done.push('first') },
        { what: 'The failing', run: () => Promise.reject(new Error('secret')) },
        { what: 'The hanging', run: () => new Promise(() => undefined), maxMs: 50 },
        { what: 'The last', run: (signal) => void done.push(`last ${signal}`) },
      ],
      'SIGTERM',
      1_000,
      (sentence) => told.push(sentence),
    );
    assert.deepEqual(done, ['last SIGTERM', 'first']);
    assert.deepEqual(wrong, ['The hanging', 'The failing']);
    assert.match(told.join('\n'), /The hanging did not end in time/);
    assert.doesNotMatch(told.join('\n'), /secret/);
  });

  it('hands SIGTERM to npm, and to its shell, on to the service', async () => {
    for (const toShell of [false, true]) {
      const started = await start(['npm', 'start'], { LAME_DUCK_SECONDS: '0' });
      const npm = started.child.pid!;
      assert.notEqual(started.pid, npm);
      const children = readFileSync(`/proc/${npm}/task/${npm}/children`, 'utf8').trim().split(' ').map(Number);
      process.kill(toShell ? children[0]! : npm, 'SIGTERM');
      await goneWithin(started.pid, stopMaxMs);
      assert.ok(await isRefused(started.port));
      await goneWithin(npm, 5_000);
    }
  });

  it('ends in its time with sockets open that say nothing, at a limit of 256 descriptors, and reloads the policy there', async () => {
    const command = ['sh', '-c', `ulimit -n 256 && exec '${process.execPath}' src/main.ts`];
    const { child, pid, port, policy, output } = await start(command);
    const sockets = Array.from({ length: 400 }, (_, i) => {
      const socket = dial(port);
      if (i % 2 === 0) socket.write(Buffer.from('16030100c8010000c40303', 'hex'));
      return socket;
    });
    await sleep(1_000);
    const text = readFileSync(policy, 'utf8');
    writeFileSync(policy, text.replace('"mask": "****"', '"mask": "####"'));
    const deadline = performance.now() + 20_000;
    while (!output().includes('A new policy is in force')) {
      assert.ok(performance.now() < deadline, output());
      await sleep(50);
    }
    const exit = once(child, 'exit');
    child.kill('SIGTERM');
    await goneWithin(pid, stopMaxMs);
    const [code] = (await exit) as [number];
    assert.equal(code, 0, output());
    for (const socket of sockets) socket.destroy();
  });

  it('ends in its time when the database does not answer', async () => {
    const { child, pid, home, output } = await start([process.execPath, 'src/main.ts']);
    const postgres = postgresOf(home)!;
    const family = [
      postgres,
      ...readFileSync(`/proc/${postgres}/task/${postgres}/children`, 'utf8').trim().split(' ').map(Number),
    ];
    for (const each of family) process.kill(each, 'SIGSTOP');
    try {
      child.kill('SIGTERM');
      await goneWithin(pid, stopMaxMs + 1_000);
      assert.match(output(), /did not end in time/);
      assert.ok(!existsSync(join(home, 'runtime.json')));
    } finally {
      for (const each of family) process.kill(each, 'SIGCONT');
    }
  });
});
