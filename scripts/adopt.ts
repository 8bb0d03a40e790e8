/**
 * npm run adopt -- plan TABLE.COLUMN [--exact] [--json]        what would break; exit 1 when something has to be mended first
 * npm run adopt -- sql TABLE.COLUMN [--finish | --undo]        what the owner of the table runs
 *
 * TABLE.COLUMN is as callers name it: app.people.ssn, or hr:app.people.ssn in a target. Both look at the live table, by
 * TARGET_<NAME>_OWNER_URL or TARGET_<NAME>_URL, DATABASE_OWNER_URL or DATABASE_URL, or the running service's own database,
 * and change nothing.
 */
import { parseArgs } from 'node:util';
import { readConfig } from '../src/config.ts';
import { StartupError } from '../src/errors.ts';
import { readPolicy } from '../src/policy-watch.ts';
import type { Policy, RegisteredColumn } from '../src/policy/policy.ts';
import { describePlan, plan, printSql } from './adopt/plan.ts';
import { run } from './support.ts';

const usage = `Usage: npm run adopt -- plan TABLE.COLUMN [--exact] [--json]
       npm run adopt -- sql TABLE.COLUMN [--finish | --undo]`;

const flag = { type: 'boolean', default: false } as const;
const options = { exact: flag, json: flag, finish: flag, undo: flag };

interface Asked {
  readonly policy: Policy;
  readonly column: RegisteredColumn;
  readonly flags: Readonly<Record<keyof typeof options, boolean>>;
}

interface Verb {
  /** The options that it takes; another one is a mistake. */
  readonly takes: readonly (keyof typeof options)[];
  readonly obey: (asked: Asked) => Promise<void>;
}

const verbs: Readonly<Record<string, Verb>> = {
  plan: {
    takes: ['exact', 'json'],
    async obey({ policy, column, flags }) {
      const planned = await plan(policy, column, flags.exact);
      process.stdout.write(flags.json ? `${JSON.stringify(planned)}\n` : describePlan(planned));
      if (planned.findings.some(({ level }) => level === 'stop')) process.exitCode = 1;
    },
  },
  sql: {
    takes: ['finish', 'undo'],
    async obey({ column, flags }) {
      if (flags.finish && flags.undo) throw new StartupError(usage);
      process.stdout.write(await printSql(column, flags.finish ? 'finish' : flags.undo ? 'undo' : undefined));
    },
  },
};

/** Column names may hold dots, too, so the policy says where one begins. */
function getColumn({ columns }: Policy, name: string): RegisteredColumn {
  const found = columns.find(({ address, column }) => `${address}.${column}` === name);
  if (found !== undefined) return found;
  throw new StartupError(`The policy has no column ${name}. Name it as callers do: [target:]schema.table.column`);
}

function readArguments() {
  try {
    const { values, positionals } = parseArgs({ allowPositionals: true, options });
    const [word = '', name, ...more] = positionals;
    const verb = Object.hasOwn(verbs, word) ? verbs[word] : undefined;
    const given = (Object.keys(values) as (keyof typeof options)[]).filter((option) => values[option]);
    const fits = verb !== undefined && given.every((option) => verb.takes.includes(option));
    if (fits && name !== undefined && more.length === 0) return { verb, name, flags: values };
  } catch {
    // Told below: node's words repeat what was given.
  }
  throw new StartupError(usage);
}

await run(async () => {
  const { verb, name, flags } = readArguments();
  const policy = readPolicy(readConfig(process.env).policyFile);
  await verb.obey({ policy, column: getColumn(policy, name), flags });
});
