/**
 * npm run adopt -- plan TABLE.COLUMN [--exact] [--json]                what would break; exit 1 when something has to be mended
 * npm run adopt -- sql TABLE.COLUMN [--finish | --undo] [--to COLUMN]   what the owner of the table runs
 * npm run adopt -- start | verify | finish TABLE.COLUMN [--reason "…"] [--wait] [--json]
 * npm run adopt -- undo TABLE.COLUMN --reason "…" [--approval ID] [--wait] [--json]     plaintext comes back beside envelopes
 * npm run adopt -- undo TABLE.COLUMN --leave [--wait] [--json]                          and then the envelopes go
 * npm run adopt -- cancel TABLE.COLUMN [--reason "…"]     gives up what was begun: verify, finish, undo; what is done stays so
 * npm run adopt -- status TABLE.COLUMN [--json]
 *
 * TABLE.COLUMN is as callers name it: app.people.ssn, or hr:app.people.ssn in a target. The first two look at the live table,
 * by TARGET_<NAME>_OWNER_URL or TARGET_<NAME>_URL, DATABASE_OWNER_URL or DATABASE_URL, or the running service's own database,
 * and change nothing. The others ask the service that runs here, as the operator; its workers do the work.
 */
import { readConfig } from '../src/config.ts';
import { StartupError } from '../src/errors.ts';
import { readPolicy } from '../src/policy-watch.ts';
import type { Policy, RegisteredColumn } from '../src/policy/policy.ts';
import { cancel, describeAdoption, live, look, type LifeVerb } from './adopt/life.ts';
import { describePlan, getColumn, plan, printSql } from './adopt/plan.ts';
import { flag, readWords, run, text, withApi } from './support.ts';

const usage = `Usage: npm run adopt -- plan TABLE.COLUMN [--exact] [--json]
       npm run adopt -- sql TABLE.COLUMN [--finish | --undo] [--to COLUMN]
       npm run adopt -- start | verify | finish TABLE.COLUMN [--reason "…"] [--wait] [--json]
       npm run adopt -- undo TABLE.COLUMN --reason "…" [--approval ID] [--wait] [--json]
       npm run adopt -- undo TABLE.COLUMN --leave [--wait] [--json]
       npm run adopt -- cancel TABLE.COLUMN [--reason "…"]
       npm run adopt -- status TABLE.COLUMN [--json]`;

const flags = { exact: flag, json: flag, finish: flag, undo: flag, wait: flag, leave: flag } as const;
const texts = { reason: text, approval: text, to: text } as const;
const options = { ...flags, ...texts };
type Option = keyof typeof options;

interface Asked {
  readonly name: string;
  readonly policy: Policy;
  readonly column: RegisteredColumn;
  readonly values: Readonly<Record<keyof typeof flags, boolean>> & { readonly [K in keyof typeof texts]?: string };
}

interface Verb {
  /** The options that it takes; another one is a mistake. */
  readonly takes: readonly Option[];
  readonly obey: (asked: Asked) => Promise<void>;
}

/** A verb that the service's workers carry out. */
function lives(verb: LifeVerb, takes: readonly Option[] = ['reason', 'wait', 'json']): Verb {
  return {
    takes,
    obey: ({ name, values: { reason, approval, wait, json } }) =>
      withApi(async (api) => {
        const command = `npm run adopt -- ${verb} ${name}${wait ? ' --wait' : ''}`;
        const told = await live(api, { verb, name, reason, approval, wait, command });
        process.stdout.write(json ? `${JSON.stringify(told.body)}\n` : told.text);
        if (told.isStuck === true) process.exitCode = 1;
      }),
  };
}

const undo = lives('undo');
const leave = lives('leave');

const verbs: Readonly<Record<string, Verb>> = {
  plan: {
    takes: ['exact', 'json'],
    async obey({ policy, column, values: { exact, json } }) {
      const planned = await plan(policy, column, exact);
      process.stdout.write(json ? `${JSON.stringify(planned)}\n` : describePlan(planned));
      if (planned.findings.some(({ level }) => level === 'stop')) process.exitCode = 1;
    },
  },
  sql: {
    takes: ['finish', 'undo', 'to'],
    async obey({ policy, column, values: { finish, undo: undone, to } }) {
      if (finish && undone) throw new StartupError(usage);
      process.stdout.write(
        await printSql(policy, column, { to, after: finish ? 'finish' : undone ? 'undo' : undefined }),
      );
    },
  },
  start: lives('start'),
  verify: lives('verify'),
  finish: lives('finish'),
  undo: {
    takes: ['reason', 'approval', 'wait', 'json', 'leave'],
    async obey(asked) {
      if (asked.values.leave) return await leave.obey(asked);
      if (asked.values.reason === undefined) throw new StartupError(usage);
      await undo.obey(asked);
    },
  },
  cancel: {
    takes: ['reason'],
    obey: ({ name, values: { reason } }) =>
      withApi(async (api) => void process.stdout.write(await cancel(api, name, reason))),
  },
  status: {
    takes: ['json'],
    obey: ({ name, values: { json } }) =>
      withApi(async (api) => {
        const adoption = await look(api, name);
        process.stdout.write(json ? `${JSON.stringify(adoption)}\n` : describeAdoption(adoption));
      }),
  },
};

function readArguments() {
  const { values, positionals } = readWords(usage, { allowPositionals: true, options });
  const [word = '', name, ...more] = positionals;
  const verb = Object.hasOwn(verbs, word) ? verbs[word] : undefined;
  const given = (Object.keys(values) as Option[]).filter((option) => values[option] !== false);
  const fits = verb !== undefined && given.every((option) => verb.takes.includes(option));
  if (fits && name !== undefined && more.length === 0) return { verb, name, values };
  throw new StartupError(usage);
}

await run(async () => {
  const { verb, name, values } = readArguments();
  const policy = readPolicy(readConfig(process.env).policyFile);
  await verb.obey({ name, policy, column: getColumn(policy, name), values });
});
