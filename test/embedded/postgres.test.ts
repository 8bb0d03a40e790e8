/** Embedded Postgres: it starts on whatever a laptop left behind, and never beside the data that is there. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync, chmodSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { connect } from '../../src/db.ts';
import { isRunning } from '../../src/embedded/home.ts';
import { startPostgres, type EmbeddedPostgres } from '../../src/embedded/postgres.ts';
import { StartupError } from '../../src/errors.ts';
import {
  firstLine,
  isRoot,
  kill,
  makeDead,
  makeFolder,
  makeHome,
  makeStranger,
  makeZombie,
  runModule,
} from './support.ts';

const settings = { fsync: 'off' };
const farFolder = '/var/lib/fieldkeep';

async function ask(url: string, sql: string, settings: Readonly<Record<string, string>> = {}): Promise<unknown> {
  const client = await connect(url, { name: 'test', settings });
  try {
    return Object.values((await client.query<Record<string, unknown>>(sql)).rows[0] ?? {})[0];
  } finally {
    await client.end();
  }
}

function portOf({ ownerUrl }: EmbeddedPostgres): number {
  return Number(new URL(ownerUrl).port);
}

describe('embedded/postgres', () => {
  const folder = makeFolder();
  const home = makeHome(folder.path); // with a space in it
  const pidFile = join(home, 'postgres', 'data', 'postmaster.pid');
  let running: EmbeddedPostgres[] = [];
  let leftPid = ''; // postmaster.pid as a running server writes it

  async function start(where = home): Promise<EmbeddedPostgres> {
    const postgres = await startPostgres({ home: where, settings });
    running.push(postgres);
    return postgres;
  }

  before(async () => {
    const postgres = await start();
    await ask(postgres.ownerUrl, 'create table public.note as select 42 as n');
    leftPid = readFileSync(pidFile, 'utf8');
    await postgres.stop();
  });
  afterEach(async () => {
    for (const postgres of running) await postgres.stop();
    running = [];
  });
  after(() => folder.remove());

  async function assertNoteIsThere(postgres: EmbeddedPostgres): Promise<void> {
    assert.equal(await ask(postgres.ownerUrl, 'select n from public.note'), 42);
  }

  it('starts again with the data, the passwords and the port it had', async () => {
    assert.ok(!existsSync(pidFile), 'the first stop was a clean one');
    const before = JSON.parse(readFileSync(join(home, 'postgres.json'), 'utf8')) as { port: number };
    const postgres = await start();
    await assertNoteIsThere(postgres);
    assert.equal(portOf(postgres), before.port);
  });

  it('gives every duty a login that owns nothing and is no superuser', async () => {
    const { apiUrl, workerUrl, rowsUrl } = await start();
    for (const [url, name] of [
      [apiUrl, 'fieldkeep_api'],
      [workerUrl, 'fieldkeep_worker'],
      [rowsUrl, 'fieldkeep_rows'],
    ] as const) {
      assert.equal(await ask(url, 'select current_user::text'), name);
      const powers = 'select rolsuper or rolcreatedb or rolcreaterole from pg_roles where rolname = current_user';
      assert.equal(await ask(url, powers), false);
      await assert.rejects(ask(url, 'select n from public.note'), { code: '42501' });
    }
  });

  it('takes the one login of earlier releases its rights and its password, and the login for rows gets those on rows', async () => {
    const before = await start();
    await ask(before.ownerUrl, `create role fieldkeep_service login password 'x'`);
    await ask(before.ownerUrl, 'grant select, update on public.note to fieldkeep_service');
    await before.stop();
    const { ownerUrl, rowsUrl } = await start();
    assert.equal(
      await ask(ownerUrl, `select has_table_privilege('fieldkeep_service', 'public.note', 'select')`),
      false,
    );
    assert.equal(await ask(rowsUrl, 'select n from public.note'), 42);
    const former = new URL(ownerUrl);
    former.username = 'fieldkeep_service';
    former.password = 'x';
    await assert.rejects(ask(former.href, 'select 1'), { code: /^28/ });
  });

  it('gives whoever looks for stray envelopes a role that reads everything and changes nothing', async () => {
    const secretsFile = join(home, 'postgres.json');
    const { passwords, ...rest } = JSON.parse(readFileSync(secretsFile, 'utf8')) as {
      passwords: Record<string, string>;
    };
    assert.match(passwords['reader']!, /^[\w-]{32}$/);
    const older = { ...rest, ownerPassword: passwords['owner'], servicePassword: 'x' };
    const before = await start();
    await ask(before.ownerUrl, 'drop owned by fieldkeep_reader');
    await ask(before.ownerUrl, 'drop role fieldkeep_reader');
    await before.stop();
    writeFileSync(secretsFile, JSON.stringify(older)); // as a version of us left it that knew no reader
    const { readerUrl } = await start();
    const readOnly = { default_transaction_read_only: 'on' };
    assert.equal(await ask(readerUrl, 'select n from public.note', readOnly), 42);
    await assert.rejects(ask(readerUrl, 'delete from public.note', readOnly), { code: '25006' });
    await assert.rejects(ask(readerUrl, 'begin read write; delete from public.note', readOnly), {
      code: '42501',
    });
  });

  it('listens on loopback only, asks for a password, and keeps its files to itself', async () => {
    const { ownerUrl } = await start();
    assert.equal(await ask(ownerUrl, 'show listen_addresses'), '127.0.0.1');
    assert.equal(await ask(ownerUrl, 'show unix_socket_directories'), '');
    const wrong = new URL(ownerUrl);
    wrong.password = 'wrong';
    await assert.rejects(ask(wrong.href, 'select 1'), { code: '28P01' });
    for (const file of ['postgres.json', 'postgres.log'])
      assert.equal(statSync(join(home, file)).mode & 0o777, 0o600, file);
    for (const path of ['postgres', 'postgres/data'])
      assert.equal(statSync(join(home, path)).mode & 0o777, 0o700, path);
  });

  it('takes over a server that outlived its service', async () => {
    const child = runModule(
      (url) => `
        import { startPostgres } from ${url('embedded/postgres.ts')};
        const { pid } = await startPostgres({ home: ${JSON.stringify(home)}, settings: { fsync: 'off' } });
        console.log(pid);
        setInterval(() => undefined, 1000);`,
    );
    const pid = Number(await firstLine(child));
    await kill(child);
    assert.ok(isRunning(pid), 'the server lives on');
    const postgres = await start();
    assert.equal(postgres.pid, pid);
    await assertNoteIsThere(postgres);
    await postgres.stop();
    assert.ok(!isRunning(pid));
  });

  it('stops twice without complaint', async () => {
    const postgres = await start();
    await postgres.stop();
    await postgres.stop();
  });

  describe('when a postmaster.pid was left behind', () => {
    function leave(pid: number): void {
      writeFileSync(pidFile, leftPid.replace(/^\d+/, String(pid)));
    }

    it('starts if its process is dead', async () => {
      leave(await makeDead());
      await assertNoteIsThere(await start());
    });

    it('waits for a statement that outlives a killed server, and starts', async () => {
      const killed = await start();
      const client = await connect(killed.ownerUrl, { name: 'test' });
      const busyUntil = `clock_timestamp() + interval '1.5 s'`;
      const busy = client.query(
        `do $$ declare t timestamptz := ${busyUntil}; begin while clock_timestamp() < t loop end loop; end $$`,
      );
      const ended = busy.catch(() => undefined); // answered, or cut off: either is fine
      await ask(killed.ownerUrl, 'select pg_sleep(0.2)'); // by now the other statement runs
      process.kill(killed.pid, 'SIGKILL');
      const postgres = await start();
      assert.notEqual(postgres.pid, killed.pid);
      await assertNoteIsThere(postgres);
      await ended;
      await client.end().catch(() => undefined);
    });

    it('starts if another program has the number now, and leaves that alone', async () => {
      const stranger = makeStranger();
      leave(stranger.pid);
      await assertNoteIsThere(await start());
      assert.ok(isRunning(stranger.pid));
      await stranger.end();
    });

    it('starts if the number is a zombie', async function () {
      if (process.platform !== 'linux') this.skip(); // elsewhere a zombie cannot be told from the living
      const zombie = await makeZombie();
      assert.doesNotThrow(() => process.kill(zombie.pid, 0), 'it looks alive to a signal');
      leave(zombie.pid);
      await assertNoteIsThere(await start());
      await zombie.end();
    });

    it('starts at once if another Postgres has the number now', async function () {
      if (process.platform !== 'linux') this.skip(); // makes a cluster of its own, once is enough
      const other = await start(makeHome(folder.path, 'other'));
      leave(other.pid);
      await assertNoteIsThere(await start());
      assert.ok(isRunning(other.pid));
    });
  });

  it('takes another port when its own is taken', async () => {
    const { port } = JSON.parse(readFileSync(join(home, 'postgres.json'), 'utf8')) as { port: number };
    const taker = createServer();
    await new Promise<void>((resolve) => taker.listen(port, '127.0.0.1', resolve));
    const postgres = await start();
    await assertNoteIsThere(postgres);
    assert.notEqual(portOf(postgres), port);
    await new Promise((resolve) => taker.close(resolve));
  });

  it('starts afresh when the state folder was deleted', async () => {
    const gone = makeHome(folder.path, 'gone');
    const first = await start(gone);
    await ask(first.ownerUrl, 'create table public.note as select 1 as n');
    await first.stop();
    rmSync(gone, { recursive: true });
    const again = await start(makeHome(folder.path, 'gone'));
    assert.equal(await ask(again.ownerUrl, `select to_regclass('public.note')`), null);
  });

  it('says what is missing when the passwords are gone and the data is not', async () => {
    const halved = makeHome(folder.path, 'halved');
    mkdirSync(join(halved, 'postgres', 'data'), { recursive: true });
    await assert.rejects(startPostgres({ home: halved, settings }), (error: Error) => {
      assert.ok(error instanceof StartupError);
      assert.match(error.message, /postgres\.json is missing/);
      return true;
    });
  });

  it('says in one sentence why the server does not start', async () => {
    await assert.rejects(startPostgres({ home, settings: { shared_buffers: 'plenty' } }), (error: Error) => {
      assert.ok(error instanceof StartupError);
      assert.match(error.message, /^Embedded Postgres does not start: .*shared_buffers/);
      assert.doesNotMatch(error.message, /\n/);
      return true;
    });
  });

  describe(`as root, below a folder that is closed to others${isRoot ? '' : ' (only for root: not run)'}`, () => {
    before(function () {
      if (!isRoot) this.skip();
    });

    it('keeps the data in a far folder, and finds it there again', async () => {
      const closed = makeHome(folder.path, 'closed');
      const inner = makeHome(closed, 'state');
      chmodSync(closed, 0o700);
      const first = await start(inner);
      const { id } = JSON.parse(readFileSync(join(inner, 'postgres.json'), 'utf8')) as { id: string };
      const far = join(farFolder, id);
      try {
        assert.equal(await ask(first.ownerUrl, 'show data_directory'), join(far, 'data'));
        assert.equal(statSync(far).mode & 0o777, 0o700);
        await ask(first.ownerUrl, 'create table public.note as select 42 as n');
        await first.stop();
        await assertNoteIsThere(await start(inner));
        await running.at(-1)!.stop();
        chmodSync(closed, 0o711); // open now, and the data still where it was
        await assertNoteIsThere(await start(inner));
        await running.at(-1)!.stop();
      } finally {
        rmSync(far, { recursive: true, force: true });
      }
    });

    it('does not start empty when a folder above its data was closed', async () => {
      const parent = makeHome(folder.path, 'parent');
      const inner = makeHome(parent, 'state');
      mkdirSync(join(inner, 'postgres', 'data'), { recursive: true });
      writeFileSync(join(inner, 'postgres.json'), JSON.stringify({ id: 'test', port: 0 }));
      chmodSync(parent, 0o700);
      await assert.rejects(startPostgres({ home: inner, settings }), (error: Error) => {
        assert.ok(error instanceof StartupError);
        assert.ok(error.message.includes(`${parent} is closed to others`), error.message);
        return true;
      });
    });
  });
});
