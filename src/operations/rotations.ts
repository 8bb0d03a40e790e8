/** GET /v1/rotations, /v1/rotations/{id} and its failures: how far runs are, and which rows do not open. */
import { FieldkeepError } from '../errors.ts';
import { listWarnings } from '../targets/catalog.ts';
import type { Question } from '../policy/access.ts';
import { describeSkew } from '../rotation/in-force.ts';
import { viewRun } from '../rotation/progress.ts';
import { listFailures as findFailures, type StoredFailure } from '../rotation/failure-store.ts';
import { findRun, listRuns, type Run } from '../rotation/store.ts';
import { columnsOf } from '../rotation/work.ts';
import type { Service } from '../service.ts';
import { performCall } from './call.ts';
import { badCursor, cutPage, limitOf, readPage, uuidPattern } from './page.ts';
import { questionsAbout } from './questions.ts';
import type { Operation } from './perform.ts';
import { describeRetirements } from './retirement.ts';

/** Errors: `not_found`. */
export async function getRun(service: Service, id: string): Promise<Run> {
  const run = uuidPattern.test(id) ? await findRun(service.pool, id) : undefined;
  if (run === undefined) throw new FieldkeepError('not_found', 'There is no rotation with this id.');
  return run;
}

/** After the newest rotation of a family: what the versions before lack before they may be destroyed. */
async function findRetirement(service: Service, run: Run): Promise<object | undefined> {
  const { family, version, phase } = run;
  const known = family === undefined ? undefined : service.keyring.state.families.get(family);
  if (phase !== 'done' || known === undefined || known.active !== version) return undefined;
  const versions = [...(await describeRetirements(service, known.family))];
  return versions.length === 0 ? undefined : versions.map(([each, told]) => ({ version: each, ...told }));
}

/** With what will make an unfinished run slow or stand in its way; of a done one, with what comes after it. */
async function view(service: Service, run: Run): Promise<object> {
  const retirement = await findRetirement(service, run);
  const shown = { ...(await viewRun(service.pool, run)), ...(retirement !== undefined && { retirement }) };
  const warnings =
    run.doneAt === undefined
      ? [...(await describeSkew(service.pool)), ...listWarnings(service.catalog, columnsOf(service.catalog, run))]
      : [];
  return warnings.length === 0 ? shown : { ...shown, warnings };
}

export const listRotations: Operation = (service, call) =>
  performCall(service, call, { action: 'rotations', questions: questionsAbout(undefined, service) }, async () => {
    const { family } = call.query;
    const runs = await listRuns(service.pool, { ...readPage(call), ...(family !== undefined && { family }) });
    const { page, next } = cutPage(call, runs, ({ id }) => id);
    return { body: { items: await Promise.all(page.map((run) => view(service, run))), ...next } };
  });

/** Whoever is to agree to giving up rows of a run may see it, too. */
function questionsOnRun(service: Service): Question[] {
  return [...questionsAbout(undefined, service), { action: 'approve' }];
}

export const getRotation: Operation = (service, call) =>
  performCall(service, call, { action: 'rotations', questions: questionsOnRun(service) }, async () => ({
    body: await view(service, await getRun(service, call.params['id']!)),
  }));

function formatCursor({ table, column, row }: StoredFailure): string {
  return Buffer.from(JSON.stringify([table, column, row])).toString('base64url');
}

function parseCursor(cursor: string | undefined): [string, string, string] | undefined {
  if (cursor === undefined) return undefined;
  try {
    const parts: unknown = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'));
    if (Array.isArray(parts) && parts.length === 3 && parts.every((part) => typeof part === 'string')) {
      return parts as [string, string, string];
    }
  } catch {
    // told below
  }
  throw badCursor();
}

export const listFailures: Operation = (service, call) =>
  performCall(service, call, { action: 'rotations', questions: questionsOnRun(service) }, async () => {
    const run = await getRun(service, call.params['id']!);
    const found = await findFailures(service.pool, run.id, limitOf(call) + 1, parseCursor(call.query['cursor']));
    const { page, next } = cutPage(call, found, formatCursor);
    return { body: { items: page, ...next } };
  });
