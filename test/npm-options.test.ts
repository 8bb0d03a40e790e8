/**
 * No command runs without the options that npm kept from it. NPM_CLIS names further npm-cli.js files, separated by colons;
 * the npm at hand is always asked.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findTaken } from '../scripts/npm-options.ts';
import { openTestService, type TestService } from './support/service.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: Record<string, string> };
/** By the name of its npm script, the file of every command. */
const commands = Object.entries(scripts).flatMap(([name, line]): [string, string][] => {
  const file = /^node (scripts\/\S+\.ts)$/.exec(line)?.[1];
  return file === undefined ? [] : [[name, file]];
});
const pathOfNpm = process.env.npm_execpath ?? '';
const npms = [
  basename(pathOfNpm) === 'npm-cli.js' ? [process.execPath, pathOfNpm] : ['npm'],
  ...(process.env.NPM_CLIS ?? '').split(':').flatMap((file) => (file === '' ? [] : [[process.execPath, file]])),
];

interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

describe('options that npm takes for itself', function () {
  this.timeout(120_000);
  const folder = mkdtempSync(join(tmpdir(), 'fieldkeep-npm-'));
  after(() => rmSync(folder, { recursive: true, force: true }));

  /** Nothing of the npm that runs the tests, and no setting of whoever runs them. */
  async function run(line: readonly string[], more: Record<string, string> = {}): Promise<Ran> {
    const own = Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name));
    const userconfig = join(folder, 'npmrc');
    const quiet = { npm_config_userconfig: userconfig, npm_config_update_notifier: 'false', npm_config_cache: folder };
    const env = { ...Object.fromEntries(own), FIELDKEEP_HOME: folder, ...quiet, ...more };
    const child = spawn(line[0]!, line.slice(1), { cwd: root, env });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    return { code: child.exitCode, out, err };
  }

  const usages = new Map<string, Promise<string[]>>();
  /** As the usage names them, which is what a wrong option is answered with. */
  function optionsOf(file: string): Promise<string[]> {
    const known = usages.get(file);
    if (known !== undefined) return known;
    const asked = run([process.execPath, file, '--no-such-option']).then(({ err }) => {
      assert.match(err, /^Usage: npm run /, file);
      return [...new Set(Array.from(err.matchAll(/--([a-z][a-z-]*)/g), ([, name]) => name!))];
    });
    usages.set(file, asked);
    return asked;
  }

  function assertRefused(ran: Ran, options: readonly string[], what: string): void {
    assert.equal(ran.code, 2, `${what}: ${ran.err}`);
    const told = /npm took (.*) for itself\. The command did not get/.exec(ran.err)?.[1]?.split(/, | and /);
    assert.deepEqual(told?.toSorted(), options.map((each) => `--${each}`).toSorted(), what);
  }

  it('every command that takes options reads them where npm is asked first', () => {
    const readers = globSync('{scripts,src}/**/*.ts', { cwd: root }).filter((file) =>
      /\bparseArgs\(|process\.argv\.slice\(2\)\.(includes|find)/.test(readFileSync(join(root, file), 'utf8')),
    );
    assert.deepEqual(readers, ['scripts/support.ts']);
    assert.ok(commands.length >= 10);
  });

  it('every command refuses every option of its own that stands in the environment, whatever its case', async () => {
    for (const [name, file] of commands) {
      const options = await optionsOf(file);
      assert.ok(options.length > 0, name);
      const spell = (i: number) => (i % 2 === 0 ? 'npm_config_' : 'NPM_CONFIG_');
      const taken = options.map((each, i) => [`${spell(i)}${each.replaceAll('-', '_')}`, 'x']);
      const ran = await run([process.execPath, file], Object.fromEntries(taken) as Record<string, string>);
      assertRefused(ran, options, name);
      assert.equal(ran.out, '', name);
    }
  });

  it('knows what npm makes of an option: other spellings, letters of its own, longer names', () => {
    const flag = { type: 'boolean' } as const;
    const names = { 'dry-run': flag, apply: flag, as: flag, sql: flag, to: flag };
    const taken = (env: Record<string, string>) => findTaken(names, env).map(({ option }) => option);
    assert.deepEqual(taken({ npm_config_dry_run: 'true' }), ['dry-run']);
    assert.deepEqual(taken({ npm_config_dryrun: 'true' }), ['dry-run']);
    assert.deepEqual(taken({ npm_config_token_description: 'a' }), ['to']);
    assert.deepEqual(taken({ npm_config_all: 'true', npm_config_loglevel: 'silent' }), ['as']);
    assert.deepEqual(taken({ npm_config_long: 'true', npm_config_loglevel: 'warn' }), ['sql']);
    const letters = { npm_config_all: 'true', npm_config_long: 'true', npm_config_yes: 'true' };
    assert.deepEqual(taken({ ...letters, npm_config_parseable: 'true' }), ['apply']);
  });

  it('what npm always sets, what it has turned off, and its other settings keep no command from running', () => {
    const names = { json: { type: 'boolean' }, call: { type: 'boolean' }, 'call-off': { type: 'boolean' } } as const;
    const usual = {
      ...{
        npm_config_user_agent: 'npm/11',
        npm_config_cache: 'c',
        npm_config_loglevel: 'warn',
        npm_config_prefix: 'p',
      },
      ...{ npm_config_local_prefix: 'l', npm_config_node_gyp: 'g', npm_config_noproxy: '', npm_config_ca: 'ca' },
      ...{ npm_config_json: '', npm_config_dry_run: 'true', npm_config_yes: 'true', NPM_CONFIG_REGISTRY: 'r' },
    };
    assert.deepEqual(findTaken(names, usual), []);
    assert.deepEqual(findTaken({ 'call-off': names['call-off'] }, { npm_config_call: 'node x' }), []);
  });

  describe('through npm', () => {
    for (const npm of npms) {
      it(`${npm.at(-1)}: every command, all its options at once and those alone that npm reads in its own way`, async () => {
        const major = Number((await run([...npm, '--version'])).out.split('.')[0]);
        for (const [name, file] of commands) {
          const options = await optionsOf(file);
          // npm 12 refuses what it does not know, and takes what it does.
          const sets = major < 12 ? [options] : options.map((each) => [each]);
          for (const set of sets) {
            const ran = await run([...npm, 'run', name, 'word', ...set.map((each) => `--${each}=true`)]);
            if (/EUNKNOWNCONFIG/.test(ran.err)) assert.ok(major >= 12 && ran.code !== 0, name);
            else assertRefused(ran, set, name);
          }
        }
      });

      it(`${npm.at(-1)}: what to write instead is told, and it works`, async () => {
        const ran = await run([...npm, 'run', 'vault:setup', '--dry-run', '--json']);
        assertRefused(ran, ['dry-run', 'json'], 'vault:setup');
        const [, instead] = /what is meant for the command:\n {2}npm (.*)\n/.exec(ran.err)!;
        assert.equal(instead, 'run vault:setup -- --dry-run --json');
        const again = await run([...npm, ...instead.split(' ')]);
        assert.equal(again.code, 0, again.err);
        assert.match(again.out, /^vault write /m);
        const exec = await run([...npm, 'exec', '--offline', 'node', 'scripts/vault-setup.ts', '--dry-run']);
        assertRefused(exec, ['dry-run'], 'npm exec');
        assert.match(exec.err, /\n {2}npm exec -- node scripts\/vault-setup\.ts --dry-run\n/);
        const right = await run([...npm, 'exec', '--offline', '--', 'node', 'scripts/vault-setup.ts', '--dry-run']);
        assert.equal(right.code, 0, right.err);
      });

      it(`${npm.at(-1)}: a setting in an .npmrc is told apart in words, and can be turned off for a call`, async () => {
        writeFileSync(join(folder, 'npmrc'), 'dry-run=true\n');
        try {
          const ran = await run([...npm, 'run', 'vault:setup', '--', '--check']);
          assertRefused(ran, ['dry-run'], 'vault:setup');
          assert.match(ran.err, /If you gave no such option, dry-run is a setting of your npm, in an \.npmrc file/);
          assert.match(ran.err, /\n {2}npm run --no-dry-run vault:setup -- …\n/);
          const off = await run([...npm, 'run', '--no-dry-run', 'vault:setup', '--', '--dry-run']);
          assert.equal(off.code, 0, off.err);
        } finally {
          rmSync(join(folder, 'npmrc'));
        }
      });
    }

    it('no rotation begins that was to be a rehearsal, nor one whose reason became a word', async () => {
      const it_: TestService = await openTestService({ workers: false });
      try {
        writeFileSync(join(it_.home, 'runtime.json'), JSON.stringify({ pid: process.pid, url: it_.url }));
        for (const words of [
          ['bank', '--dry-run'],
          ['--dry-run', 'bank'],
          ['bank', '--compromised'],
          ['--reason', 'bank'],
          ['bank', '--reason=canary'],
        ]) {
          const ran = await run([...npms[0]!, 'run', 'rotate', ...words], { FIELDKEEP_HOME: it_.home });
          assert.notEqual(ran.code, 0, words.join(' '));
          assert.doesNotMatch(ran.err, /canary/, 'values are not repeated');
        }
        assert.deepEqual((await it_.call('operator', 'GET', '/v1/rotations')).body.items, []);
        const right = [...npms[0]!, 'run', 'rotate', '--', 'bank', '--dry-run', '--json'];
        const ran = await run(right, { FIELDKEEP_HOME: it_.home });
        assert.equal(ran.code, 0, ran.err);
        assert.match(ran.out, /"phase":"dry-run"/);
      } finally {
        await it_.close();
      }
    });
  });
});
