import assert from 'node:assert/strict';
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

interface Started {
  readonly child: ChildProcess;
  readonly output: () => string;
}

describe('npm start', function () {
  this.timeout(90_000);
  let home: string;
  const children: ChildProcess[] = [];

  before(() => {
    home = join(mkdtempSync(join(tmpdir(), 'fieldkeep start ')), 'home');
  });
  after(async () => {
    for (const child of children.filter((each) => each.exitCode === null && each.signalCode === null)) {
      child.kill('SIGTERM');
      await once(child, 'exit');
    }
    rmSync(dirname(home), { recursive: true, force: true });
  });

  function start(env: Record<string, string> = {}): Started {
    const variables = {
      ...process.env,
      FIELDKEEP_HOME: home,
      PORT: '0',
      DATABASE_URL: '',
      DATABASE_OWNER_URL: '',
      VAULT_ADDR: '',
      ...env,
    };
    const child = spawn(process.execPath, [join(root, 'src/main.ts')], {
      cwd: root,
      env: variables,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    children.push(child);
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    return { child, output: () => output };
  }

  async function greeted(started: Started): Promise<void> {
    while (!started.output().includes('Stop: Ctrl-C')) {
      assert.equal(started.child.exitCode, null, started.output());
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }

  async function ended({ child }: Started): Promise<number | null> {
    if (child.exitCode === null) await once(child, 'exit');
    return child.exitCode;
  }

  it('greets with commands that work, leaves runtime.json, and drains on SIGTERM', async () => {
    const started = start();
    await greeted(started);
    const runtime = join(home, 'runtime.json');
    assert.equal(statSync(runtime).mode & 0o777, 0o600);
    const { pid, url } = JSON.parse(readFileSync(runtime, 'utf8')) as { pid: number; url: string };
    assert.equal(pid, started.child.pid);
    assert.match(url, /^https:\/\/localhost:\d+$/);
    assert.match(started.output(), /Not for production/);
    const commands = started
      .output()
      .split('\n')
      .filter((line) => line.startsWith('  curl'));
    assert.equal(commands.length, 3);
    if (spawnSync('curl', ['--version']).status === 0) {
      const said = commands.map((command) => spawnSync('sh', ['-c', command], { cwd: root, encoding: 'utf8' }).stdout);
      assert.match(said[0]!, /"value":"GB29 NWBK 6016 1331 9268 19"/);
      assert.match(said[1]!, /"value":"\*\*\*\*"/);
      assert.match(said[2]!, /"code":"forbidden"/);
    }
    const status = spawnSync(process.execPath, [join(root, 'scripts/status.ts')], {
      env: { ...process.env, FIELDKEEP_HOME: home },
      encoding: 'utf8',
    });
    assert.match(status.stdout, /bank\s+v1 active/, status.stderr);
    started.child.kill('SIGTERM');
    assert.equal(await ended(started), 0);
    assert.ok(!existsSync(runtime));
  });

  it('finds everything as it was, also after a kill -9', async () => {
    const before = readFileSync(join(home, 'root-keys.json'), 'utf8');
    const killed = start();
    await greeted(killed);
    killed.child.kill('SIGKILL');
    await ended(killed);
    const started = start();
    await greeted(started);
    assert.equal(readFileSync(join(home, 'root-keys.json'), 'utf8'), before);
    const second = start();
    assert.equal(await ended(second), 1);
    assert.match(second.output(), /Another service \(process \d+\)/);
    started.child.kill('SIGTERM');
    assert.equal(await ended(started), 0);
  });

  it('goes on when nobody reads its output any more', async () => {
    const { child } = start();
    child.stdout!.destroy();
    child.stderr!.destroy();
    const runtime = join(home, 'runtime.json');
    while (!existsSync(runtime)) {
      assert.equal(child.exitCode, null);
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
    await new Promise((resolve) => setTimeout(resolve, 1_000)); // it greets right afterwards
    assert.equal(child.exitCode, null);
    child.kill('SIGTERM');
    assert.equal(await ended({ child, output: () => '' }), 0);
  });

  it('takes in a new policy while it runs, and keeps the last good one', async () => {
    const policy = join(dirname(home), 'policy.json');
    const text = readFileSync(join(root, 'keys-policy.json'), 'utf8');
    writeFileSync(policy, text);
    const started = start({ FIELDKEEP_POLICY: policy });
    await greeted(started);
    writeFileSync(policy, text.replace('"agents"', '"agent"'));
    started.child.kill('SIGHUP');
    while (!started.output().includes('the last good policy stays in force'))
      await new Promise((resolve) => setTimeout(resolve, 50));
    writeFileSync(policy, text.replace('"mask": "****"', '"mask": "####"'));
    while (!started.output().includes('A new policy is in force'))
      await new Promise((resolve) => setTimeout(resolve, 50));
    started.child.kill('SIGTERM');
    assert.equal(await ended(started), 0);
  });

  it('says in one sentence why it cannot start', async () => {
    const taken = createServer().listen(0, 'localhost');
    await once(taken, 'listening');
    const port = String((taken.address() as AddressInfo).port);
    const bad = join(dirname(home), 'bad.json');
    writeFileSync(bad, '{"schemaVersion": 2}');
    const cases: [Record<string, string>, RegExp][] = [
      [{ PORT: port }, /is taken by another program/],
      [{ PORT: 'x' }, /The environment is not usable: PORT/],
      [{ FIELDKEEP_POLICY: bad }, /The policy has \d+ problems/],
      [{ FIELDKEEP_POLICY: join(dirname(home), 'none.json') }, /cannot be read/],
      [{ FIELDKEEP_HOME: bad }, /The state folder .* cannot be used/],
      [{ NODE_ENV: 'production' }, /embedded root keys are refused in production/],
      [{ NODE_ENV: 'production', VAULT_SKIP_VERIFY: 'false' }, /VAULT_SKIP_VERIFY is refused in production/],
      [{ NODE_ENV: 'production', DEBUG: 'pg,node-vault' }, /DEBUG naming node-vault is refused/],
      [
        { VAULT_ADDR: 'https://127.0.0.1:9', VAULT_TOKEN: '' },
        /VAULT_AUTH=token needs VAULT_TOKEN or VAULT_TOKEN_FILE/,
      ],
      [
        { VAULT_ADDR: 'https://127.0.0.1:9', VAULT_TOKEN: 'x', VAULT_CACERT: bad + '.none' },
        /VAULT_CACERT cannot be read/,
      ],
      [{ ROLE: 'api' }, /ROLE=api needs VAULT_ADDR/],
      [{ DATABASE_URL: 'postgresql://nobody:x@127.0.0.1:9/none' }, /The database cannot be reached/],
    ];
    try {
      for (const [env, sentence] of cases) {
        const started = start(env);
        assert.equal(await ended(started), 1, started.output());
        assert.match(started.output(), sentence);
        assert.ok(!started.output().includes('    at '), 'no stack');
      }
    } finally {
      taken.close();
    }
  });
});
