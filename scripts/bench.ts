/**
 * npm run bench [-- crypto] [api] [rotation] [live] [adoption] [vault] [--rounds 5] [--seconds 2] [--rows 100000] [--concurrency 1] [--workers 1] [--rate 1000] [--json]
 *
 * Measures us beside our limits, in turn and in one run, because machines are noisy and only ratios travel: a bare
 * cipher loop, a bare Express handler behind the same TLS, the same UPDATEs without crypto, transit. Figures are medians
 * of rounds. Three sections only run by name:
 *
 *     live    whole processes beside traffic of agents and an application that writes; once, for minutes. It is quiet
 *             for ten times --seconds, and --workers processes rotate where root keys are in a Vault; the last time
 *             at --rate rows a second of each family, in short batches
 *     adoption   a live table is adopted, finished and given back beside an application that writes to it; once
 *     vault   us beside transit; it runs unnamed, too, where VAULT_ADDR is set
 *
 * The Vault of `rotation`, `live` and `vault` is that of VAULT_ADDR and VAULT_TOKEN, else `bao` or `vault` from PATH.
 * --concurrency: ranges that `rotation` works on at once, and stretches of keys of what it is compared with.
 */
import { StartupError } from '../src/errors.ts';
import { benchAdoption } from './bench/adoption.ts';
import { benchApi } from './bench/api.ts';
import { benchCrypto } from './bench/crypto.ts';
import { benchLive } from './bench/live.ts';
import { benchRotation } from './bench/rotation.ts';
import { formatTable, type Section } from './bench/table.ts';
import { benchVault } from './bench/vault.ts';
import { flag, readWords, run } from './support.ts';

const sections = {
  crypto: benchCrypto,
  api: benchApi,
  rotation: benchRotation,
  live: benchLive,
  adoption: benchAdoption,
  vault: benchVault,
} as const;
type Name = keyof typeof sections;

const usage = `Usage: npm run bench [-- ${Object.keys(sections).join(' | ')}] [--rounds 5] [--seconds 2] [--rows 100000]
                   [--concurrency 1] [--workers 1] [--rate 1000] [--json]`;
const number = (value: string) => ({ type: 'string', default: value }) as const;
const words = {
  ...{ rounds: number('5'), seconds: number('2'), rows: number('100000') },
  ...{ concurrency: number('1'), workers: number('1'), rate: number('1000'), json: flag },
};

await run(async () => {
  const { values, positionals } = readWords(usage, { allowPositionals: true, options: words });
  const names = Object.keys(sections) as Name[];
  const isUsual = (name: Name) =>
    name !== 'live' && name !== 'adoption' && (name !== 'vault' || process.env.VAULT_ADDR);
  const all = names.filter(isUsual);
  const chosen = positionals.length === 0 ? all : names.filter((name) => positionals.includes(name));
  const options = {
    rounds: Number(values.rounds),
    seconds: Number(values.seconds),
    rows: Number(values.rows),
    concurrency: Number(values.concurrency),
    workers: Number(values.workers),
    rate: Number(values.rate),
  };
  const isClear = Object.values(options).every((each) => each > 0) && positionals.every((each) => each in sections);
  if (!isClear) throw new StartupError(usage);
  const results: Section[] = [];
  for (const name of chosen) {
    if (!values.json) process.stdout.write(`${name} …\n`);
    const measured = await sections[name](options);
    results.push(...measured);
    if (!values.json) for (const section of measured) process.stdout.write(`\n${formatTable(section)}\n`);
  }
  if (values.json) process.stdout.write(`${JSON.stringify(results)}\n`);
});
