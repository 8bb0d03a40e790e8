/** Holding the unfinished rotation of a family, letting it go on, and giving it up. */
import { StartupError } from '../../src/errors.ts';
import type { RunProgress } from '../progress.ts';
import { mustBeOk, operator, type Api } from '../support.ts';

type ControlVerb = 'pause' | 'resume' | 'cancel';

const outcomes: Readonly<Record<ControlVerb, string>> = {
  pause: 'is paused. Let it go on with --resume',
  resume: 'goes on. Follow it: npm run status',
  cancel: 'is cancelled. What it has re-encrypted stays so.',
};

/** Errors: StartupError when nothing of the family is rotating. */
export async function getUnfinished(api: Api, family: string): Promise<RunProgress> {
  const path = `/v1/rotations?family=${encodeURIComponent(family)}&limit=100`;
  const runs = mustBeOk(await api.call(operator, 'GET', path)).items as RunProgress[];
  const run = runs.find(({ kind, doneAt }) => kind === 'rotation' && doneAt === undefined);
  if (run === undefined) throw new StartupError(`No rotation of ${family} is under way.`);
  return run;
}

/** Answers the rotation as it is then, and a sentence for people. */
export async function controlRun(
  api: Api,
  family: string,
  verb: ControlVerb,
  reason: string | undefined,
): Promise<{ body: object; text: string }> {
  const { id } = await getUnfinished(api, family);
  const body = reason === undefined ? {} : { reason };
  const run = mustBeOk(await api.call(operator, 'POST', `/v1/rotations/${id}/${verb}`, body));
  return { body: run, text: `Rotation ${id} of ${family} ${outcomes[verb]}\n` };
}
