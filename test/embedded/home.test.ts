/** The state folder: one service at a time, files for their owner only, one clear sentence when it cannot be used. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync, chmodSync } from 'node:fs';
import { join } from 'node:path';
import { isRunning, openHome, writePrivate } from '../../src/embedded/home.ts';
import { StartupError } from '../../src/errors.ts';
import { firstLine, isRoot, kill, makeDead, makeFolder, makeStranger, makeZombie, runModule } from './support.ts';

describe('embedded/home', () => {
  const folder = makeFolder();
  let n = 0;
  const fresh = () => join(folder.path, `home ${(n += 1)}`);
  after(() => folder.remove());

  /** A process that holds the folder. */
  function hold(path: string) {
    return runModule(
      (url) => `
        import { openHome } from ${url('embedded/home.ts')};
        openHome(${JSON.stringify(path)});
        console.log('held');
        setInterval(() => undefined, 1000);`,
    );
  }

  function refusal(path: string): string {
    try {
      openHome(path);
    } catch (error) {
      assert.ok(error instanceof StartupError, String(error));
      assert.doesNotMatch(error.message, /\n/);
      return error.message;
    }
    return assert.fail(`${path} was opened`);
  }

  it('is made with the folders above it, for its owner only', () => {
    const path = join(fresh(), 'a', 'b');
    openHome(path).release();
    assert.equal(statSync(path).mode & 0o777, isRoot ? 0o711 : 0o700);
    assert.deepEqual(readdirSync(path), [], 'a released folder is as it was');
  });

  it('is closed to others again when it was open', () => {
    const path = fresh();
    mkdirSync(path);
    chmodSync(path, 0o777);
    openHome(path).release();
    assert.equal(statSync(path).mode & 0o066, 0);
  });

  it('refuses a second service, and says which process has it', async () => {
    const path = fresh();
    const holder = hold(path);
    await firstLine(holder);
    assert.match(refusal(path), new RegExp(`process ${holder.pid}\\b`));
    assert.ok(refusal(path).includes(path));
    assert.equal(statSync(join(path, 'service.lock')).mode & 0o777, 0o600);
    await kill(holder);
    openHome(path).release();
  });

  it('opens for one of many that start at once', async () => {
    const path = fresh();
    const rivals = Array.from({ length: 6 }, () =>
      runModule(
        (url) => `
          import { openHome } from ${url('embedded/home.ts')};
          try { openHome(${JSON.stringify(path)}); console.log('held'); } catch (error) { console.log(error.name); }
          setInterval(() => undefined, 1000);`,
      ),
    );
    const said = await Promise.all(rivals.map(firstLine));
    await Promise.all(rivals.map(kill));
    assert.deepEqual(said.sort(), [...Array<string>(5).fill('StartupError'), 'held']);
  });

  it('ignores a lock whose process is dead, cut short, or somebody else by now', async () => {
    const stranger = makeStranger();
    const locks = [`${await makeDead()} 1`, `${await makeDead()} `, '', 'nonsense', `${stranger.pid} 1`];
    for (const lock of process.platform === 'linux' ? locks : locks.slice(0, 4)) {
      const path = fresh();
      mkdirSync(path);
      writeFileSync(join(path, 'service.lock'), lock);
      openHome(path).release();
    }
    await stranger.end();
  });

  it('takes a zombie for dead', async function () {
    if (process.platform !== 'linux') this.skip(); // elsewhere a zombie cannot be told from the living
    const zombie = await makeZombie();
    assert.equal(isRunning(zombie.pid), false);
    await zombie.end();
  });

  it('does not give up a lock that is another service’s by now', () => {
    const path = fresh();
    const home = openHome(path);
    writeFileSync(join(path, 'service.lock'), '1 1');
    home.release();
    assert.equal(readFileSync(join(path, 'service.lock'), 'utf8'), '1 1');
  });

  it('says in one sentence that it cannot be used', () => {
    const file = join(folder.path, 'file');
    writeFileSync(file, '');
    assert.match(refusal(file), /state folder .*file cannot be used \(EEXIST\)/);
    assert.match(refusal(join(file, 'below')), /cannot be used \(ENOTDIR\)/);
  });

  it('says so of a folder that this user may not write', function () {
    if (isRoot) {
      this.test!.title += ' (only for ordinary users: not run)';
      this.skip();
    }
    const path = fresh();
    mkdirSync(path, { mode: 0o500 });
    assert.match(refusal(join(path, 'below')), /cannot be used \(EACCES\)/);
  });

  it('writes files as a whole, for the owner only, also over an open one', () => {
    const path = join(folder.path, 'private');
    writeFileSync(path, 'old', { mode: 0o666 });
    chmodSync(path, 0o666);
    writePrivate(path, 'new');
    assert.equal(readFileSync(path, 'utf8'), 'new');
    assert.equal(statSync(path).mode & 0o777, 0o600);
  });

  it('does not write through a link that somebody laid', () => {
    const victim = join(folder.path, 'victim');
    const path = join(folder.path, 'linked');
    writeFileSync(victim, 'untouched');
    symlinkSync(victim, path);
    writePrivate(path, 'new');
    assert.equal(readFileSync(victim, 'utf8'), 'untouched');
    rmSync(path);
  });
});
