/**
 * /v1/adoptions and /v1/adoptions/{table.column}/start, /verify, /finish, /undo, /leave: the life cycle of a column that
 * is filled from another one. Only the word is stored; workers do the rest. Who may rotate a class may adopt its columns;
 * plaintext comes back (`undo`) only when other people agree, too.
 */
import { randomUUID } from 'node:crypto';
import { canonicalDigest } from '../crypto/canonical.ts';
import { askWithin } from '../db.ts';
import { FieldkeepError } from '../errors.ts';
import type { RegisteredColumn } from '../policy/policy.ts';
import { findByName, refuseDestination, viewAdoption } from '../adoption/adoption.ts';
import { findAdoption, findColumnRun, setStarted, setUndone } from '../rotation/adoption-store.ts';
import { listGuards } from '../targets/adoption-trigger-store.ts';
import { findTriggerProblem, toTriggers } from '../targets/adoption-triggers.ts';
import { countStale } from '../rotation/census.ts';
import { countMaxMs } from '../rotation/counts.ts';
import { loadCatalog, type TableShape } from '../targets/catalog.ts';
import { findRun, insertRun, type NewRun } from '../rotation/store.ts';
import { rowsOf } from '../targets/targets.ts';
import { unadopted, unopened, type ColumnKind, type Stale } from '../rotation/work.ts';
import type { Service } from '../service.ts';
import { performCall, type Computed } from './call.ts';
import { findAnswer, insertAnswer } from './idempotency-store.ts';
import { cutPage } from './page.ts';
import { questionsAbout, rotateAnything } from './questions.ts';
import { needsApproval } from './needs-approval.ts';
import { requesterOf, type Call, type Operation, type Result } from './perform.ts';

interface Body {
  readonly reason?: string;
  readonly to?: string;
}

/** Errors: `column_unknown`. */
function getColumn({ policy }: Service, name: string): RegisteredColumn {
  const column = findByName(policy.columns, name);
  if (column === undefined) throw new FieldkeepError('column_unknown', 'The policy registers no such column.');
  return column;
}

function nameOf({ address, column }: RegisteredColumn): string {
  return `${address}.${column}`;
}

function conflict(detail: string): FieldkeepError {
  return new FieldkeepError('conflict', detail);
}

export const listAdoptions: Operation = (service, call) =>
  performCall(service, call, { action: 'adoptions', questions: questionsAbout(undefined, service) }, async () => {
    const { cursor } = call.query;
    const columns = service.policy.columns.toSorted((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
    const adopted: RegisteredColumn[] = [];
    for (const column of columns.filter((each) => cursor === undefined || nameOf(each) > cursor)) {
      const { startedAt, undoneAt } = await findAdoption(service.pool, column.address, column.column);
      if (column.adopt || startedAt !== undefined || undoneAt !== undefined) adopted.push(column);
    }
    const { page, next } = cutPage(call, adopted, nameOf);
    const deadline = performance.now() + countMaxMs;
    const items: object[] = [];
    for (const column of page) items.push(await viewAdoption(service, column, deadline));
    return { body: { items, ...next } };
  });

export const getAdoption: Operation = (service, call) =>
  performCall(service, call, { action: 'adoptions', questions: questionsAbout(undefined, service) }, async () => {
    const column = getColumn(service, call.params['column']!);
    await lookAgain(service);
    return { body: await viewAdoption(service, column, performance.now() + countMaxMs) };
  });

/** Tables are altered and given triggers right before these calls. */
async function lookAgain(service: Service): Promise<void> {
  const { policy } = service;
  const catalog = await loadCatalog(service.targets, policy.columns);
  if (service.policy === policy) service.catalog = catalog;
}

/** The table as it is now; undefined where this process is not connected to it: a worker finds out then. */
function findTable({ targets, catalog }: Service, column: RegisteredColumn): TableShape | undefined {
  if (targets.findRows(column.database) === undefined) return undefined;
  const table = catalog.tables.get(column.address);
  if (table === undefined) throw conflict(catalog.problems.get(column.address) ?? 'The table cannot be looked at.');
  return table;
}

/** Errors: `conflict` naming what stands in the way of writing into the column of plaintext. */
function checkPlaintextColumn(table: TableShape, source: string, mustTakeNull: boolean): void {
  const found = table.attributes.get(source);
  if (found === undefined) throw conflict(`Table ${table.address} has no column ${source}.`);
  if (!found.readable || !found.writable) {
    throw conflict(
      `The role of the worker may not read and update column ${source} of table ${table.address}, or not use its type ${found.cast}.`,
    );
  }
  if (found.composite) {
    throw conflict(
      `Column ${source} of table ${table.address} is of the composite type ${found.cast}: a value with a null in it could be overlooked.`,
    );
  }
  if (mustTakeNull && found.required) {
    throw conflict(
      `Column ${source} of table ${table.address} is NOT NULL, by itself, by its domain or in a partition: its owner drops that first.`,
    );
  }
}

async function checkTriggers(service: Service, table: TableShape, column: RegisteredColumn, source: string) {
  const command = `npm run adopt -- sql ${nameOf(column)}${source === column.from ? '' : ` --to ${source}`}`;
  const problem = await findTriggerProblem(rowsOf(service, table), toTriggers(column, source), command);
  if (problem !== undefined) throw conflict(`${nameOf(column)} cannot stand beside ${source}: ${problem}`);
}

function checkDestination({ policy }: Service, column: RegisteredColumn, to: string): void {
  const refusal = refuseDestination(policy.columns, column, to);
  if (refusal !== undefined) throw conflict(refusal);
}

/** Errors: `conflict` when the column itself refuses plaintext. */
async function checkGuards(service: Service, table: TableShape, { schema, name, column }: RegisteredColumn) {
  const [guard] = await listGuards(rowsOf(service, table), schema, name, column);
  if (guard === undefined) return;
  throw conflict(
    `The guard ${guard} refuses plaintext in ${table.address}.${column}: the table's owner drops it first.`,
  );
}

/** Runs a call on the column of its path; who may rotate its class may make it. Who may rotate none learns of no column. */
function performOnColumn(
  service: Service,
  call: Call,
  action: 'adopt' | 'decrypt',
  compute: (column: RegisteredColumn) => Promise<Computed>,
): Promise<Result> {
  return performCall(service, call, { action, questions: rotateAnything(service) }, async (narrow) => {
    const column = getColumn(service, call.params['column']!);
    narrow({ class: column.class, questions: [{ action: 'rotate', class: column.class }] });
    await lookAgain(service);
    const { facts, ...rest } = await compute(column);
    return { ...rest, facts: { table: column.address, column: column.column, ...facts } };
  });
}

function told(what: string, { reason }: Body): string {
  return reason === undefined ? what : `${what}: ${reason}`;
}

export const startAdoption: Operation = async (service, call) => {
  const body = call.body as Body;
  const result = await performOnColumn(service, call, 'adopt', async (column) => {
    if (!column.adopt) throw conflict(`The policy does not say "adopt": true of ${nameOf(column)}.`);
    const runId = await findColumnRun(service.pool, column.address, column.column);
    const last = runId === undefined ? undefined : await findRun(service.pool, runId);
    if (last !== undefined && last.kind !== 'verification' && last.doneAt === undefined) {
      throw conflict(`Another run about ${nameOf(column)} is under way: ${last.kind} ${last.id}.`);
    }
    const table = findTable(service, column);
    if (table !== undefined && column.from !== undefined) {
      await checkTriggers(service, table, column, column.from);
      checkPlaintextColumn(table, column.from, false);
    }
    return {
      facts: { purpose: told('start', body) },
      async writes(tx) {
        await setStarted(tx, column.address, column.column);
        // At once, not when a worker next looks for plaintext; one that is under way takes the column in.
        await insertRun(tx, { id: randomUUID(), kind: 'adoption', requestedBy: requesterOf(call) });
        return await viewAdoption({ ...service, pool: tx }, column);
      },
    };
  });
  await lookAgain(service);
  service.wake();
  return result;
};

/** A run about one column, inserted in the transaction of its entry. */
function answerBegun(call: Call, column: RegisteredColumn, kind: ColumnKind, body: Body): Computed & { run: NewRun } {
  const source = kind === 'undo' || kind === 'leave' ? (body.to ?? column.from) : column.from;
  const run: NewRun = {
    ...{ id: randomUUID(), kind, family: column.class, table: column.address, column: column.column },
    ...(source !== undefined && source !== column.column && { source }),
    ...(body.reason !== undefined && { reason: body.reason }),
    requestedBy: requesterOf(call),
  };
  const { table: _table, column: _column, ...shown } = run;
  return {
    run,
    status: 202,
    body: { ...shown, phase: 'active', columns: [] },
    location: `/v1/rotations/${run.id}`,
    facts: { purpose: told(`${kind} ${run.id}`, body) },
    async writes(tx) {
      if (await insertRun(tx, run)) return;
      throw conflict(`Another run about ${nameOf(column)} is under way.`);
    },
  };
}

function needsSource(column: RegisteredColumn, source: string | undefined): string {
  if (source !== undefined && source !== column.column) return source;
  throw conflict(`${nameOf(column)} has no column beside it ("from") that it could be compared with.`);
}

/**
 * What is left, where that can be said within a call; 0 where the table is too large for that, for the run itself leaves no
 * value behind: it seals what has no envelope first, and is blocked by an envelope that has no plaintext.
 */
async function countNow(service: Service, table: TableShape, stale: readonly Stale[]): Promise<number> {
  return (await askWithin(rowsOf(service, table), countMaxMs, (db) => countStale(db, table, stale))) ?? 0;
}

export const verifyAdoption: Operation = async (service, call) => {
  const result = await performOnColumn(service, call, 'adopt', (column) => {
    needsSource(column, column.from);
    return Promise.resolve(answerBegun(call, column, 'verification', call.body as Body));
  });
  service.wake();
  return result;
};

export const finishAdoption: Operation = async (service, call) => {
  const result = await performOnColumn(service, call, 'adopt', async (column) => {
    const from = needsSource(column, column.from);
    const { startedAt, undoneAt } = await findAdoption(service.pool, column.address, column.column);
    if (startedAt === undefined || undoneAt !== undefined) {
      throw conflict(`${nameOf(column)} is not being adopted: it was never started, or it was undone. Start it first.`);
    }
    const table = findTable(service, column);
    if (table !== undefined) {
      checkPlaintextColumn(table, from, true);
      const left = await countNow(service, table, unadopted({ ...column, adopt: true }));
      if (left > 0) {
        throw conflict(
          `${left} of the values of ${column.address}.${from} have no envelope yet: an application still writes plaintext, the column is being filled, or they do not open (npm run status).`,
        );
      }
    }
    return answerBegun(call, column, 'finish', call.body as Body);
  });
  service.wake();
  return result;
};

/** Removes the envelopes again, once plaintext stands beside every one of them. */
export const leaveAdoption: Operation = async (service, call) => {
  const body = call.body as Body;
  const result = await performOnColumn(service, call, 'decrypt', async (column) => {
    const source = needsSource(column, body.to ?? column.from);
    checkDestination(service, column, source);
    const table = findTable(service, column);
    if (table !== undefined) {
      checkPlaintextColumn(table, source, false);
      const left = await countNow(service, table, [unopened({ ...column, from: source })]);
      if (left > 0) throw conflict(`${left} envelopes of ${nameOf(column)} have no plaintext in ${source} yet.`);
    }
    const begun = answerBegun(call, column, 'leave', body);
    return {
      ...begun,
      async writes(tx) {
        await setUndone(tx, column.address, column.column);
        await begun.writes?.(tx);
      },
    };
  });
  service.wake();
  return result;
};

/** Decrypts the column into its source, or into `to`: for everybody who may read the table to see. */
export const undoAdoption: Operation = async (service, call) => {
  const body = call.body as Body & { reason: string };
  const request = ['undo', call.params['column'], body.reason, body.to ?? null, call.approvalId ?? null];
  const keyed = { ...call, idempotencyDigest: canonicalDigest(request) };
  const result = await performOnColumn(service, call, 'decrypt', async (column) => {
    const known = await findAnswer(service.pool, keyed);
    if (known !== undefined) return known;
    const to = body.to ?? column.from ?? (column.adopt ? column.column : undefined);
    if (to === undefined) {
      throw conflict(
        `The policy has no "from" for ${nameOf(column)}: say where its plaintext goes. npm run decrypt-column -- ${nameOf(column)} --to COLUMN`,
      );
    }
    checkDestination(service, column, to);
    const table = findTable(service, column);
    if (table !== undefined) {
      checkPlaintextColumn(table, to, false);
      if (column.sealed !== undefined && table.attributes.get(to)?.type === 'bytea') {
        throw conflict(
          `Column ${to} of table ${table.address} holds bytes that others sealed, and values come back as text: npm run decrypt-column -- ${nameOf(column)} --to a column of type text.`,
        );
      }
      if (to !== column.column) await checkTriggers(service, table, column, to);
      else await checkGuards(service, table, column);
    }
    const outcome = await needsApproval(service, call, {
      ...{ action: 'decrypt', about: `/v1/adoptions/${nameOf(column)}`, reason: body.reason },
      details: () => Promise.resolve({ decrypts: { table: column.address, column: column.column, to } }),
    });
    if ('pending' in outcome) return outcome.pending;
    const { run: _run, ...begun } = answerBegun(call, column, 'undo', { ...body, to });
    return {
      ...begun,
      facts: { ...begun.facts, purpose: told(`undo under approval ${outcome.id}`, body) },
      async writes(tx) {
        await outcome.use(tx);
        await setUndone(tx, column.address, column.column);
        await begun.writes?.(tx);
        await insertAnswer(tx, keyed, { status: 202, body: begun.body });
      },
    };
  });
  service.wake();
  return result;
};
