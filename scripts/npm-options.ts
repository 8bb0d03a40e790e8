/**
 * Options that npm takes for itself. `npm run rotate bank --dry-run` lacks the `--` in front of what is meant for the
 * command: npm keeps the option, and the command would do in earnest what was to be rehearsed. What npm took stands in the
 * environment as npm_config_dry_run, and so a command that finds an option of its own there does nothing.
 *
 * npm spells some options in another way:
 *
 *     --to       npm 11: the beginning of token-description, so npm_config_token_description
 *     --apply    -a -p -p -l -y, for every letter is one of its own; npm_config_all, …
 *
 * npm exports its settings in the same way, so `json=true` in an .npmrc looks like `--json`. The refusal names both causes.
 */
import { relative } from 'node:path';
import type { ParseArgsConfig } from 'node:util';
import { StartupError } from '../src/errors.ts';

type Options = NonNullable<ParseArgsConfig['options']>;
type Environment = Readonly<Record<string, string | undefined>>;

/** A mistake in how the command was called: exit code 2. */
export class UsageError extends StartupError {}

/** Options whose letters npm reads one by one, and the settings that come of them. */
const spelled: Readonly<Record<string, readonly string[]>> = {
  apply: ['all', 'parseable', 'long', 'yes'],
  as: ['all', 'loglevel'],
  sql: ['long', 'loglevel'],
};

interface Taken {
  readonly option: string;
  /** What npm calls it. */
  readonly setting: string;
}

/** The settings that npm exports, by their names on its command line. Empty: turned off, or not set. */
function readSettings(environment: Environment): string[] {
  return Object.entries(environment).flatMap(([name, value]) => {
    const setting = /^npm_config_(\w+)$/i.exec(name)?.[1];
    return setting === undefined || !value ? [] : [setting.toLowerCase().replaceAll('_', '-')];
  });
}

const bare = (name: string) => name.replaceAll('-', '');

function findSetting(option: string, settings: readonly string[]): string | undefined {
  const letters = spelled[option];
  if (letters?.every((each) => settings.includes(each)) === true) return letters[0];
  return settings.find((each) => bare(each) === bare(option) || each.startsWith(option));
}

/** Which of the options npm has taken, or has a setting for. */
export function findTaken(options: Options, environment: Environment): Taken[] {
  const settings = readSettings(environment);
  return Object.keys(options).flatMap((option) => {
    const setting = findSetting(option, settings);
    return setting === undefined ? [] : [{ option, setting }];
  });
}

/** How the command is called through npm, up to where its own words begin. */
function nameCommand(environment: Environment, script: string): string {
  const { npm_lifecycle_event: event = 'npx', npm_lifecycle_script: line = '' } = environment;
  return event !== 'npx' && line.includes(script) ? `npm run ${event}` : `npm exec -- node ${script}`;
}

const list = (names: readonly string[]) => names.join(', ').replace(/, ([^,]*)$/, ' and $1');

/** Errors: UsageError where npm has one of the options: what to write instead. Values are not repeated. */
export function refuseTaken(options: Options, environment: Environment, argv: readonly string[]): void {
  const taken = findTaken(options, environment);
  if (taken.length === 0) return;
  const isText = ({ option }: Taken) => options[option]?.type === 'string';
  const script = relative(process.cwd(), argv[1]!);
  const command = nameCommand(environment, script);
  const dashes = command.includes(' -- ') ? '' : '-- ';
  // npm 10 and 11 leave the value of an unknown option among the words: which of them it is cannot be told.
  const words = taken.some(isText) ? [argv.length > 2 ? '…' : ''] : argv.slice(2);
  const again = taken.map((each) => `--${each.option}${isText(each) ? ' "…"' : ''}`);
  const names = [...new Set(taken.map(({ setting }) => setting))];
  const off = taken.map((each) => (isText(each) ? `--${each.setting}=` : `--no-${each.setting}`));
  throw new UsageError(
    `npm took ${list(taken.map(({ option }) => `--${option}`))} for itself. The command did not get ` +
      `${taken.length === 1 ? 'it' : 'them'} and has done nothing. Put -- before what is meant for the command:\n` +
      `  ${[`${command} ${dashes}`.trim(), ...words, ...again].filter((each) => each !== '').join(' ')}\n` +
      `If you gave no such option, ${list(names)} is a setting of your npm, in an .npmrc file or in the environment as ` +
      `${list(names.map((each) => `npm_config_${each.replaceAll('-', '_')}`))}. Unset it, or turn it off for this call:\n` +
      `  ${command.replace(/^npm (run|exec)/, `npm $1 ${[...new Set(off)].join(' ')}`)} ${dashes}…`,
  );
}
