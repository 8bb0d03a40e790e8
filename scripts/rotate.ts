/**
 * npm run rotate -- FAMILY [--wait] [--reason "…"] [--compromised] [--dry-run]
 * npm run rotate -- FAMILY --pause | --resume | --cancel [--reason "…"]
 * npm run rotate -- FAMILY --waive --reason "…" [--approval ID]
 * npm run rotate -- --approve ID | --deny ID --as NAME --reason "…"
 *
 * Starts a rotation of a key family, as the operator, and with --wait follows it to its end; or holds, goes on with or gives
 * up the one under way; or gives up its rows that do not open, once other people have agreed. --json for scripts.
 */
import { StartupError } from '../src/errors.ts';
import { decide } from './approvals.ts';
import { followRun, type RunProgress } from './progress.ts';
import { controlRun } from './rotate/control.ts';
import { describeDryRun, type DryRun } from './rotate/dry-run.ts';
import { waive } from './rotate/waive.ts';
import { flag, mustBeOk, operator, readWords, run, text, withApi, type Api } from './support.ts';

const usage = `Usage: npm run rotate -- FAMILY [--wait] [--reason "…"] [--compromised] [--dry-run]
       npm run rotate -- FAMILY --pause | --resume | --cancel [--reason "…"]
       npm run rotate -- FAMILY --waive --reason "…" [--approval ID]
       npm run rotate -- --approve ID | --deny ID --as NAME --reason "…"
       --json for scripts`;

const options = {
  ...{ wait: flag, compromised: flag, 'dry-run': flag, json: flag, reason: text, approval: text, as: text },
  ...{ pause: flag, resume: flag, cancel: flag, waive: flag, approve: text, deny: text },
};

interface Form {
  readonly takes: readonly string[];
  readonly needs: readonly string[];
  /** Whether it is about a family; the others name an approval. */
  readonly family: boolean;
}

const control: Form = { family: true, takes: ['reason'], needs: [] };
const decision: Form = { family: false, takes: [], needs: ['as', 'reason'] };
/** The forms of the command, by the option that makes it one. An option that a form does not take is a mistake in it. */
const forms = {
  start: { family: true, takes: ['wait', 'compromised', 'dry-run', 'reason'], needs: [] },
  ...{ pause: control, resume: control, cancel: control },
  waive: { family: true, takes: ['approval'], needs: ['reason'] },
  ...{ approve: decision, deny: decision },
} satisfies Record<string, Form>;

function readArguments() {
  const { values, positionals } = readWords(usage, { allowPositionals: true, options });
  const given = Object.entries(values).flatMap(([name, value]) => (value === false || name === 'json' ? [] : [name]));
  const named = given.filter((name) => name in forms) as (keyof typeof forms)[];
  const form = named[0] ?? 'start';
  const { takes, needs, family }: Form = forms[form];
  const rest = given.filter((name) => name !== form);
  const fits = rest.every((name) => takes.includes(name) || needs.includes(name));
  if (!fits || !needs.every((name) => rest.includes(name)) || positionals.length !== (family ? 1 : 0)) {
    throw new StartupError(usage);
  }
  return { form, values, family: positionals[0] ?? '' };
}

type Arguments = ReturnType<typeof readArguments>;

function describeStart({ id, family, version = 0 }: RunProgress, compromised: boolean): string {
  const started = `Rotation ${id} of ${family} to version ${version} has started. Follow it: npm run status`;
  if (!compromised) return started;
  const closed = `Version ${version - 1} of ${family} is closed: nothing is encrypted under it any more, and only grants`;
  return [
    `${closed} that cover compromised versions open what it holds.`,
    `New values of ${family} are refused until version ${version} is active.`,
    started,
  ].join('\n');
}

async function start(api: Api, { family, values }: Arguments): Promise<void> {
  const body = {
    ...(values.reason !== undefined && { reason: values.reason }),
    ...(values.compromised && { compromised: true }),
    ...(values['dry-run'] && { dryRun: true }),
  };
  const path = `/v1/keys/${encodeURIComponent(family)}/rotate`;
  const answer = mustBeOk(await api.call(operator, 'POST', path, body)) as unknown as RunProgress;
  const told = values['dry-run'] ? describeDryRun(answer as DryRun) : describeStart(answer, values.compromised);
  if (!values.json) process.stdout.write(`${told}\n`);
  const follow = values.wait && !values['dry-run'];
  const last = follow ? await followRun(api, answer.id, { quiet: values.json }) : answer;
  if (values.json) process.stdout.write(`${JSON.stringify(last)}\n`);
  if (last.phase === 'blocked') process.exitCode = 1;
}

async function obey(api: Api, asked: Arguments): Promise<void> {
  const { form, family, values } = asked;
  const { reason, approval, as: name } = values;
  if (form === 'start') return await start(api, asked);
  const told =
    form === 'waive'
      ? await waive(api, family, reason!, approval)
      : form === 'approve' || form === 'deny'
        ? await decide(api, { id: values[form]!, decision: form, as: name!, reason: reason! })
        : await controlRun(api, family, form, reason);
  process.stdout.write(values.json ? `${JSON.stringify(told.body)}\n` : told.text);
}

await run(async () => {
  const asked = readArguments();
  await withApi((api) => obey(api, asked));
});
