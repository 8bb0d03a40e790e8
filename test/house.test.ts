/**
 * The rules of the house that neither the compiler nor the linter holds: imports point one way, every outside library has
 * one owner, files stay small and say what they are.
 */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const linesMax = 450;
const depthMax = 2;

/** From left to right: a file imports only from its own place and from places before it. Places of one row do not mix. */
const order: readonly (readonly string[])[] = [
  ['errors', 'log', 'present', 'within'],
  ['disk', 'stopping'],
  ['crypto'],
  ['policy'],
  ['session'],
  ['db'],
  ['migrate'],
  ['keys'],
  ['audit', 'asked'],
  ['targets'],
  ['values'],
  ['rotation'],
  ['adoption', 'retirement'],
  ['config'],
  ['embedded'],
  ['policy-watch', 'service'],
  ['services'],
  ['health'],
  ['operations'],
  ['http', 'jobs'],
  ['front', 'logins'],
  ['main'],
  ['scripts'],
];

/** Where an outside library may be imported: files, or folders ending in a slash. What is not listed here is not used. */
const owners: Readonly<Record<string, readonly string[]>> = {
  '@peculiar/webcrypto': ['src/crypto/webcrypto.ts', 'src/embedded/tls.ts'], // the latter gives it to @peculiar/x509
  '@peculiar/x509': ['src/embedded/tls.ts'],
  'rate-limiter-flexible': ['src/http/refusals.ts'],
  'reflect-metadata': ['src/embedded/tls.ts'],
  canonicalize: ['src/crypto/canonical.ts'],
  cron: ['src/jobs/'],
  express: ['src/http/'],
  helmet: ['src/http/'],
  jose: ['src/http/authenticate.ts', 'src/embedded/issuer.ts'],
  'node-pg-migrate': ['src/migrate.ts'],
  'node-vault': ['src/keys/vault.ts'],
  openpgp: ['src/crypto/pgp.ts'],
  pg: ['src/db.ts'],
  'pg-boss': ['src/jobs/'],
  pino: ['src/main.ts'],
  'prom-client': ['src/http/metrics.ts'],
  zod: ['src/policy/', 'src/http/', 'src/config.ts', 'src/keys/backup.ts'],
};

/** A logger is handed down as a type; nobody but main makes one. */
const freeTypes: ReadonlySet<string> = new Set(['pino']);

interface Import {
  readonly from: string;
  readonly specifier: string;
  readonly typeOnly: boolean;
}

const list = (pattern: string) => globSync(pattern, { cwd: root }).sort();
const read = (file: string) => readFileSync(join(root, file), 'utf8');
const sources = list('src/**/*.ts');
const scripts = list('scripts/**/*.ts');
const tests = list('test/**/*.ts');

function findImports(file: string): Import[] {
  const text = read(file);
  const statements = text.matchAll(/^(?:import|export)\s+(type\s)?(?:[^'";]*?\sfrom\s+)?'([^']+)'/gm);
  const calls = text.matchAll(/\b(?:import|require)\((?:\s*)'([^']+)'/g);
  return [
    ...Array.from(statements, ([, type, specifier]) => ({
      from: file,
      specifier: specifier!,
      typeOnly: type !== undefined,
    })),
    ...Array.from(calls, ([, specifier]) => ({ from: file, specifier: specifier!, typeOnly: false })),
  ];
}

/** The place of a file in the order: its folder under src, or its own name at the top. */
function placeOf(file: string): string {
  const [top = '', second = ''] = file.split('/');
  return top === 'src' ? second.replace(/\.ts$/, '') : top;
}

function libraryOf(specifier: string): string {
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

const rankOf = (place: string) => order.findIndex((row) => row.includes(place));
const isOutside = ({ specifier }: Import) => !/^(\.|node:)/.test(specifier);
const targetOf = ({ from, specifier }: Import) => relative(root, join(root, dirname(from), specifier));

/** Asserts that nothing is left to complain about, and says all of it otherwise. */
function assertNone(complaints: readonly string[]): void {
  assert.deepEqual(complaints, []);
}

describe('the house', () => {
  it('knows the place of every file', () => {
    assertNone([...sources, ...scripts].filter((file) => rankOf(placeOf(file)) === -1));
  });

  it('imports one way', () => {
    const inside = [...sources, ...scripts].flatMap(findImports).filter(({ specifier }) => specifier.startsWith('.'));
    assert.ok(inside.length > 100, 'imports were found at all');
    const wrong = inside.filter((each) => {
      const [from, to] = [placeOf(each.from), placeOf(targetOf(each))];
      return from !== to && !(rankOf(to) !== -1 && rankOf(to) < rankOf(from));
    });
    assertNone(wrong.map((each) => `${each.from} imports ${targetOf(each)}`));
  });

  it('imports in no circle, not even of types', () => {
    const edges = new Map(
      sources.map((file) => {
        const inside = findImports(file).filter(({ specifier }) => specifier.startsWith('.'));
        return [file, inside.map(targetOf)] as const;
      }),
    );
    // What imports nothing that is left is in no circle: taken away again and again, only circles stay.
    for (let before = -1; before !== edges.size;) {
      before = edges.size;
      for (const [file, targets] of edges) if (!targets.some((target) => edges.has(target))) edges.delete(file);
    }
    assertNone([...edges.keys()]);
  });

  it('gives every outside library one owner', () => {
    const outside = sources.flatMap(findImports).filter(isOutside);
    const wrong = outside.filter(({ from, specifier, typeOnly }) => {
      const library = libraryOf(specifier);
      if (typeOnly && freeTypes.has(library)) return false;
      return !(owners[library] ?? []).some(
        (owner) => from === owner || (owner.endsWith('/') && from.startsWith(owner)),
      );
    });
    assertNone(wrong.map(({ from, specifier }) => `${from} imports ${specifier}`));
  });

  it('keeps outside libraries out of the scripts, but for what the benchmark compares with', () => {
    const outside = scripts
      .filter((file) => !/^scripts\/bench\b/.test(file))
      .flatMap(findImports)
      .filter(isOutside);
    assertNone(outside.map(({ from, specifier }) => `${from} imports ${specifier}`));
  });

  it('declares what it imports and imports what it declares', () => {
    const { dependencies } = JSON.parse(read('package.json')) as { dependencies: Record<string, string> };
    assert.deepEqual(Object.keys(dependencies).sort(), Object.keys(owners).sort());
  });

  it(`has no file of more than ${linesMax} lines`, () => {
    const long = [...sources, ...scripts, ...tests].filter((file) => read(file).split('\n').length - 1 > linesMax);
    assertNone(long);
  });

  it(`goes at most ${depthMax} folders deep, and has no barrels`, () => {
    assertNone(sources.filter((file) => dirname(file).split('/').length - 1 > depthMax || /\/index\.ts$/.test(file)));
  });

  it('opens every file with what it is', () => {
    assertNone([...sources, ...scripts].filter((file) => !/^(#!.*\n)?\/\*\*/.test(read(file))));
  });

  it('logs through the logger only', () => {
    assertNone(sources.filter((file) => /\bconsole\s*\.\s*\w+\(/.test(read(file))));
  });

  it('leaves no test alone in focus', () => {
    assertNone(tests.filter((file) => /\b(describe|context|it|specify)\.only\(/.test(read(file))));
  });

  it('runs no install script that allowScripts does not name', () => {
    const { packages } = JSON.parse(read('package-lock.json')) as {
      packages: Record<string, { hasInstallScript?: boolean }>;
    };
    const { allowScripts } = JSON.parse(read('package.json')) as { allowScripts: Record<string, boolean> };
    const wanting = Object.entries(packages).filter(([, { hasInstallScript }]) => hasInstallScript === true);
    const names = wanting.map(([path]) => path.replace(/^.*node_modules\//, ''));
    assertNone(names.filter((name) => !(name in allowScripts)));
  });
});
