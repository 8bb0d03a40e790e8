/**
 * npm run target:setup -- NAME [--check | --apply] [--worker ROLE] [--rows ROLE] [--reader ROLE]
 *                                 [--application ROLE]
 *
 * Prints the SQL that a database needs before its registered columns are worked on: for psql, or for its owner to read. NAME
 * is a target of the policy, or `own` for Fieldkeep's own database. --apply makes what is missing, as the owner; --check
 * changes nothing and exits 1 when something is not as it should be. Roles come from the URLs of worker, rows and reader; no
 * password is printed or set.
 */
import { readFileSync } from 'node:fs';
import { readConfig, type Config } from '../src/config.ts';
import { connect, findRefusal, isUnavailable, roleOf, sqlState, type Client } from '../src/db.ts';
import { readerRole } from '../src/embedded/postgres.ts';
import { StartupError } from '../src/errors.ts';
import { usualRole } from '../src/migrate.ts';
import type { Policy } from '../src/policy/policy.ts';
import { readPolicy } from '../src/policy-watch.ts';
import { applyStep, findPartitions, lookAtTarget } from '../src/targets/look.ts';
import { formatPlan, planTarget, type TargetPlanOptions } from '../src/targets/plan.ts';
import type { Step, TargetState } from '../src/targets/state.ts';
import { claimSetup } from '../src/targets/store.ts';
import { readerVariableOf, rowsVariableOf, variableOf } from '../src/targets/targets.ts';
import { findService, flag, readWords, run, text } from './support.ts';

const usage =
  'Usage: npm run target:setup -- NAME [--check | --apply] [--worker ROLE] [--rows ROLE] [--reader ROLE] [--application ROLE]';
/** An index of a large table is built in one statement. */
const statementTimeoutMs = 24 * 3_600_000;
/** Even looking waits for a table that somebody holds for themselves. */
const lookTimeout = '2s';

function readArguments() {
  const options = { check: flag, apply: flag, worker: text, rows: text, reader: text, application: text };
  const { positionals, values } = readWords(usage, { allowPositionals: true, options });
  if (positionals.length === 1 && !(values.check && values.apply)) return { name: positionals[0]!, ...values };
  throw new StartupError(usage);
}

/** A database as its roles reach it, each with the variable that says so. */
interface Access {
  readonly owner?: Door;
  readonly worker?: Door;
  readonly rows?: Door;
  readonly reader?: Door;
}

interface Door {
  readonly url: string;
  readonly variable: string;
}

function findAccess(config: Config, name: string): Access {
  const door = (who: keyof Access, url: string | undefined, variable: string) =>
    url === undefined ? {} : { [who]: { url, variable } };
  if (name !== 'own') {
    return {
      ...door('owner', config.targetOwners.get(name), variableOf(name, '_OWNER')),
      ...door('worker', config.targets.get(name), variableOf(name)),
      ...door('rows', config.rows.get(name), variableOf(name, '_ROWS')),
      ...door('reader', config.readers.get(name), variableOf(name, '_READER')),
    };
  }
  const embedded = config.databaseUrl === undefined ? findService()?.databaseUrl : undefined;
  return {
    ...door('owner', config.databaseOwnerUrl ?? config.databaseUrl ?? embedded, 'DATABASE_OWNER_URL'),
    ...door('worker', config.databaseWorkerUrl ?? config.databaseUrl, 'DATABASE_URL'),
    ...door('rows', config.rows.get(undefined), rowsVariableOf(undefined)),
    ...door('reader', config.readers.get(undefined), readerVariableOf(undefined)),
  };
}

function selectColumns(policy: Policy, name: string) {
  const columns = policy.columns.filter(({ database }) => (database ?? 'own') === name);
  if (columns.length > 0) return columns;
  const names = [...new Set(policy.columns.map(({ database }) => database ?? 'own'))];
  throw new StartupError(`The policy registers no column in ${name}; it does in ${names.join(', ') || 'no database'}.`);
}

const readMigration = (file: string) => readFileSync(new URL(`../migrations/${file}`, import.meta.url), 'utf8');

function makeOptions(config: Config, access: Access, asked: ReturnType<typeof readArguments>): TargetPlanOptions {
  const { name, application } = asked;
  const columns = selectColumns(readPolicy(config.policyFile), name);
  const embedded = name === 'own' && config.databaseUrl === undefined;
  const roleBehind = (door: Door | undefined, usual: string) =>
    door === undefined ? (embedded ? usual : undefined) : roleOf(door.url);
  const worker = asked.worker ?? roleBehind(access.worker, usualRole('worker'));
  if (worker === undefined) {
    throw new StartupError(`Which role does the worker have there? Set ${variableOf(name)} or say --worker ROLE.`);
  }
  const rows = asked.rows ?? roleBehind(access.rows, usualRole('rows'));
  if (rows === undefined && name === 'own') {
    throw new StartupError('Which role works on rows there? Set DATABASE_ROWS_URL or say --rows ROLE.');
  }
  const reader = asked.reader ?? roleBehind(access.reader, readerRole);
  const fixed = readMigration('target.sql');
  return {
    columns,
    worker,
    guarded: /^create table (if not exists )?fieldkeep\.guarded_columns\b/m.test(fixed),
    ...(name !== 'own' && { fixed }),
    ...(rows !== undefined && { rows }),
    ...(reader !== undefined && { reader }),
    ...(application !== undefined && { application }),
  };
}

/** Connects as whoever a URL names. Errors: one sentence with the variable and never the URL. */
async function open({ url, variable }: Door, readOnly = false) {
  const settings = { lock_timeout: lookTimeout, ...(readOnly && { default_transaction_read_only: 'on' }) };
  try {
    return await connect(url, { name: 'setup', statementTimeoutMs, settings });
  } catch (error) {
    const refused = sqlState(error)?.startsWith('28') === true;
    if (refused) throw new StartupError(`The database of ${variable} refuses its credentials.`);
    const unfit = findRefusal(error);
    if (unfit !== undefined) throw new StartupError(`The database of ${variable} answers in ${unfit.phrase}`);
    if (isUnavailable(error)) throw new StartupError(`The database of ${variable} cannot be reached.`);
    if (sqlState(error) === '3D000') throw new StartupError(`The database of ${variable} does not exist.`);
    throw error;
  }
}

/** Errors: one sentence when others hold a table for themselves. */
async function look(db: Client, options: TargetPlanOptions, asOwner: boolean): Promise<TargetState> {
  try {
    return await lookAtTarget(db, options, asOwner);
  } catch (error) {
    if (sqlState(error) !== '55P03') throw error;
    throw new StartupError('Others keep a table there locked, and it cannot be looked at. Run it again.');
  }
}

interface Report {
  readonly step: Step;
  readonly outcome: 'as it should be' | 'made' | 'not as it should be';
  readonly differences: readonly string[];
}

const marks: Readonly<Record<Report['outcome'], string>> = {
  'as it should be': '=',
  made: '+',
  'not as it should be': '!',
};

function compare(steps: readonly Step[], state: TargetState, before?: TargetState): Report[] {
  return steps.map((step) => {
    const differences = step.differences(state);
    if (differences.length > 0) return { step, outcome: 'not as it should be', differences };
    const made = before !== undefined && step.differences(before).length > 0;
    return { step, outcome: made ? 'made' : 'as it should be', differences };
  });
}

function print(reports: readonly Report[]): void {
  for (const { step, outcome, differences } of reports) {
    const lines = [`${marks[outcome]} ${step.what.padEnd(44)} ${outcome}`, ...differences.map((each) => `    ${each}`)];
    process.stdout.write(`${lines.join('\n')}\n`);
  }
  const bad = reports.filter(({ outcome }) => outcome === 'not as it should be').length;
  if (bad === 0) return;
  process.exitCode = 1;
  process.stderr.write(`${bad} of ${reports.length} are not as they should be.\n`);
}

/** What stopped a step, and who or what gets it going. Errors: those that no database answered. */
function explain(step: Step, error: unknown): string {
  if (isUnavailable(error)) throw new StartupError(`${step.what}: the database went away. Run it again.`);
  const state = sqlState(error);
  if (state === undefined) throw error;
  const said = `${step.what}: the database says ${state}, ${(error as Error).message}.`;
  if (state === '55P03') return `${said} Others kept the table locked; run it again.`;
  if (state !== '42501') return said;
  const long = step.statements.join('').length > 2000;
  return long
    ? `${said} Whoever may runs what this command prints without --apply.`
    : `${said} Whoever may runs this:\n\n${formatPlan([step])}`;
}

/** Makes what is not there, in order; after a step that fails the later ones are not tried. Answers what stopped it. */
async function apply(db: Client, steps: readonly Step[], state: TargetState): Promise<string | undefined> {
  if (!(await claimSetup(db))) {
    throw new StartupError(
      'Somebody else sets this database up, or what they began still runs there. Run it again later.',
    );
  }
  for (const step of steps) {
    if (step.statements.length === 0 || step.differences(state).length === 0) continue;
    try {
      await applyStep(db, step);
    } catch (error) {
      return explain(step, error);
    }
  }
  return undefined;
}

/** Where somebody can look, without the indexes that are there and with the partitions that are. */
async function printPlan(
  options: TargetPlanOptions,
  door: Door | undefined,
  name: string,
  readOnly: boolean,
): Promise<void> {
  const head = [`-- What Fieldkeep needs in ${name === 'own' ? 'its own database' : `target ${name}`}, for its owner.`];
  if (options.reader === undefined) {
    const variable = readerVariableOf(name === 'own' ? undefined : name);
    head.push(`-- No role reads here to find undeclared columns: set ${variable} or say --reader ROLE.`);
  }
  if (options.rows === undefined) {
    head.push(
      `-- ${options.worker} works on rows itself: a trigger there could use its rights on mirror and guards.`,
      `-- Set ${rowsVariableOf(name)} to a login of its own, or say --rows ROLE.`,
    );
  }
  if (door === undefined) {
    head.push('-- Nobody looked there: indexes of a partitioned table are printed as of any other.');
    process.stdout.write(`${head.join('\n')}\n\n${formatPlan(planTarget(options))}`);
    return;
  }
  const db = await open(door, readOnly);
  try {
    const steps = planTarget({ ...options, partitions: await findPartitions(db, options.columns) });
    const seen = await look(db, options, false);
    process.stdout.write(`${head.join('\n')}\n\n${formatPlan(steps, seen)}`);
  } finally {
    await db.end();
  }
}

await run(async () => {
  const asked = readArguments();
  const config = readConfig(process.env);
  const access = findAccess(config, asked.name);
  const options = makeOptions(config, access, asked);
  const door = access.owner ?? access.worker ?? access.reader;
  const readOnly = door !== undefined && door === access.reader;
  if (!asked.check && !asked.apply) return await printPlan(options, door, asked.name, readOnly);
  const ownerVariable = asked.name === 'own' ? 'DATABASE_OWNER_URL' : variableOf(asked.name, '_OWNER');
  if (door === undefined || (asked.apply && access.owner === undefined)) {
    throw new StartupError(`Set ${ownerVariable} to the URL of the owner of the tables there.`);
  }
  const db = await open(door, readOnly);
  try {
    const asOwner = access.owner !== undefined;
    const steps = planTarget({ ...options, partitions: await findPartitions(db, options.columns) });
    const before = await look(db, options, asOwner);
    if (asked.check) print(compare(steps, before));
    else {
      const stopped = await apply(db, steps, before);
      print(compare(steps, await look(db, options, asOwner), before));
      if (stopped !== undefined) throw new StartupError(stopped);
    }
    if (!asOwner) {
      process.stderr.write(`What stands in the schema fieldkeep was not compared: that needs ${ownerVariable}.\n`);
    }
  } finally {
    await db.end();
  }
});
