/**
 * npm run decrypt-column -- TABLE.COLUMN --to COLUMN --sql                            the triggers, for the owner of the table
 * npm run decrypt-column -- TABLE.COLUMN --to COLUMN --reason "…" [--approval ID]     once other people agree
 * npm run decrypt-column -- TABLE.COLUMN --to COLUMN --leave                          at last, no envelope is left
 *
 * The way out: the values of a registered column are decrypted into another column of the table (or in place, when that is
 * the same), by the job that encrypts, online. Every value that is revealed has its item in the audit log. --wait follows it.
 */
import { readConfig } from '../src/config.ts';
import { StartupError } from '../src/errors.ts';
import { readPolicy } from '../src/policy-watch.ts';
import { live } from './adopt/life.ts';
import { getColumn, printSql } from './adopt/plan.ts';
import { flag, readWords, run, text, withApi } from './support.ts';

const usage = `Usage: npm run decrypt-column -- TABLE.COLUMN --to COLUMN --sql
       npm run decrypt-column -- TABLE.COLUMN --to COLUMN --reason "…" [--approval ID] [--wait] [--json]
       npm run decrypt-column -- TABLE.COLUMN --to COLUMN --leave [--reason "…"] [--wait] [--json]`;

const options = {
  ...{ to: text, reason: text, approval: text },
  ...{ sql: flag, leave: flag, wait: flag, json: flag },
};

function readArguments() {
  const { values, positionals } = readWords(usage, { allowPositionals: true, options });
  const [name, ...more] = positionals;
  const { to, ...rest } = values;
  const isClear = rest.sql ? !rest.leave && rest.reason === undefined : rest.leave || rest.reason !== undefined;
  if (name === undefined || to === undefined || more.length > 0 || !isClear) throw new StartupError(usage);
  return { name, to, ...rest };
}

await run(async () => {
  const { name, to, sql, leave, json, reason, approval, wait } = readArguments();
  const policy = readPolicy(readConfig(process.env).policyFile);
  const column = getColumn(policy, name);
  if (sql) return void process.stdout.write(await printSql(policy, column, { to }));
  const command = `npm run decrypt-column -- ${name} --to ${to}${wait ? ' --wait' : ''}`;
  const asked = { verb: leave ? 'leave' : 'undo', name, to, reason, approval, wait, command } as const;
  const told = await withApi((api) => live(api, asked));
  process.stdout.write(json ? `${JSON.stringify(told.body)}\n` : told.text);
  if (told.isStuck === true) process.exitCode = 1;
});
