/**
 * A live table is adopted by real processes beside an application that knows nothing of it, verified, finished, and given
 * back; in the end every row is compared with what was written. Held against the same table filled by the same two
 * statements with texts that cost nothing to make.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { roleOf, type Pool } from '../../src/db.ts';
import { parsePolicy } from '../../src/policy/policy.ts';
import { loadCatalog } from '../../src/targets/catalog.ts';
import { mustBeOk, operator, type Api } from '../support.ts';
import { Shadow, startApplication } from './adoption/application.ts';
import { address, columns, makePolicy, makeTable, type Person } from './adoption/people.ts';
import { openDatabase, type BenchDatabase } from './database.ts';
import { listBusySpans, sweep, type Row } from './engine.ts';
import { startProcesses, type Undo } from './service.ts';
import type { BenchOptions, Section } from './table.ts';
import { say, until, untilDone, type RunState } from './waiting.ts';

const writesPerSecond = 300;
const rawRowsMax = 1_000_000;
const batchRows = 1_000;
const pageRows = 10_000;

const seconds = (ms: number) => ms / 1000;

/** The limit: the same reads and writes, of texts as long as envelopes and tokens are. */
async function measureRaw(
  { owner, asWorker, rowsUrl }: BenchDatabase,
  policyText: string,
  rows: number,
): Promise<number> {
  await makeTable(owner, 'raw', rows, roleOf(rowsUrl));
  const policy = parsePolicy(policyText.replaceAll('"app.people"', '"app.raw"'));
  const targets = { find: () => owner, findRows: () => owner, close: () => Promise.resolve() };
  const table = (await loadCatalog(targets, policy.columns)).tables.get('app.raw')!;
  const read = ['salary_enc', 'ssn_enc', 'ssn_eq', 'salary', 'ssn'];
  const [salary, ssn, token] = [`fe1.salary.1.${'A'.repeat(107)}`, `fe1.ssn.1.${'A'.repeat(107)}`, 'b1.AAA'];
  const beside = (plaintext: string | null | undefined, text: string) => (typeof plaintext === 'string' ? text : null);
  const renew = (found: readonly Row[]) =>
    found.map(({ values: [, , , plain = null, plainSsn = null] }) => [
      ...[beside(plain, salary), beside(plainSsn, ssn), beside(plainSsn, token)],
      ...[plain, plainSsn],
    ]);
  const filled = (column: string, source: string) =>
    ({ column, value: 'null', source: { column: source, filled: true } }) as const;
  const stale = [filled('salary_enc', 'salary'), filled('ssn_enc', 'ssn')];
  const application = startApplication(owner, 'raw', new Shadow(rows), writesPerSecond);
  const started = performance.now();
  const written = ['salary_enc', 'ssn_enc', 'ssn_eq'];
  const updated = await sweep(asWorker, { table, columns: read, written, stale, rowsMax: batchRows, renew }, rows, 1);
  const took = seconds(performance.now() - started);
  await application.stop();
  await owner.query('drop table app.raw cascade; checkpoint');
  return updated / took;
}

interface AdoptionState {
  readonly state: string;
  readonly unfilled: number;
  readonly plaintext: number;
}

const pathOf = (column: string) => `/v1/adoptions/${address}.${column}`;

async function look(api: Api, column: string): Promise<AdoptionState> {
  return mustBeOk(await api.call(operator, 'GET', pathOf(column))) as unknown as AdoptionState;
}

/** The pace of the first pass, from its plan to the end of its last range. */
async function fillTable(api: Api, owner: Pool, rows: number): Promise<{ id: string; rowsPerSecond: number }> {
  for (const { column } of columns) mustBeOk(await api.call(operator, 'POST', `${pathOf(column)}/start`, {}));
  const list = async () => {
    const { items } = mustBeOk(await api.call(operator, 'GET', '/v1/rotations?limit=20')) as unknown as {
      items: RunState[];
    };
    return items.find((item) => item.kind === 'adoption');
  };
  const run = await until(list, (found) => found !== undefined && (found.pass > 1 || found.phase === 'done'), rows * 2);
  const [span] = await listBusySpans(owner, [run!.id]);
  const { rows: counted } = await owner.query<{ n: string }>(
    'select count(*) as n from app.people where salary is not null or ssn is not null',
  );
  return { id: run!.id, rowsPerSecond: Number(counted[0]!.n) / seconds(span![1] - span![0]) };
}

/** Runs a verb on a column to its end; what it took, and how many of its rows failed. */
async function perform(api: Api, column: string, verb: string, body: object, rows: number) {
  const started = performance.now();
  const headers: Record<string, string> = {};
  let answer = mustBeOk(await api.call(operator, 'POST', `${pathOf(column)}/${verb}`, body));
  const { approvalId } = answer;
  if (typeof approvalId === 'string') {
    headers['approval-id'] = approvalId;
    for (const name of ['security-auditor', 'security-lead']) {
      const decision = { decision: 'approve', reason: 'bench' };
      mustBeOk(await api.call({ name }, 'POST', `/v1/approvals/${approvalId}/decisions`, decision));
    }
    answer = mustBeOk(await api.call(operator, 'POST', `${pathOf(column)}/${verb}`, body, headers));
  }
  const ended = await untilDone(api, String(answer.id), 60_000 + rows * 2);
  const failed = ended.columns.reduce((n, each) => n + each.failed, 0);
  return { failed, rowsPerSecond: rows / seconds(performance.now() - started) };
}

/** Rows that hold something else than was written last. */
async function countWrong(owner: Pool, shadow: Shadow): Promise<number> {
  let wrong = 0;
  for (let from = 0; from < shadow.rows; from += pageRows) {
    const { rows } = await owner.query<Person & { id: string }>(
      'select id, salary::text, ssn from app.people where id > $1 and id <= $2',
      [from, from + pageRows],
    );
    for (const { id, salary, ssn } of rows) {
      const expected = shadow.person(Number(id));
      if (expected.salary !== salary || expected.ssn !== ssn) wrong += 1;
    }
  }
  return wrong;
}

async function count(owner: Pool, condition: string): Promise<number> {
  const { rows } = await owner.query<{ n: string }>(`select count(*) as n from app.people where ${condition}`);
  return Number(rows[0]!.n);
}

async function goThrough(api: Api, owner: Pool, rows: number) {
  const shadow = new Shadow(rows);
  say('the table is adopted while the application writes');
  const application = startApplication(owner, 'people', shadow, writesPerSecond);
  const filled = await fillTable(api, owner, rows);
  await application.stop();
  const looks = () => Promise.all(columns.map(({ column }) => look(api, column)));
  await until(looks, (all) => all.every(({ unfilled }) => unfilled === 0), 60_000 + rows);
  const verbs: { name: string; failed: number; rowsPerSecond: number }[] = [];
  const each = async (verb: string, body: object = {}) => {
    say(`${verb} of both columns`);
    for (const { column, from } of columns) {
      verbs.push({ name: `${verb} ${from}`, ...(await perform(api, column, verb, body, rows)) });
    }
  };
  await each('verify');
  await each('finish');
  const plaintext = await count(owner, 'salary is not null or ssn is not null');
  await each('undo', { reason: 'bench' });
  await each('leave');
  const wrong = await countWrong(owner, shadow);
  const sealed = await count(owner, 'salary_enc is not null or ssn_enc is not null or ssn_eq is not null');
  return { filled, written: application.written(), verbs, plaintext, wrong, sealed };
}

export async function benchAdoption({ rows, concurrency }: BenchOptions): Promise<Section[]> {
  const undo: Undo[] = [];
  try {
    const database = await openDatabase();
    undo.push(() => database.close());
    const policyText = await makePolicy(concurrency);
    say('the limit is measured on a table of its own');
    const raw = await measureRaw(database, policyText, Math.min(rows, rawRowsMax));
    say(`${rows.toLocaleString('en-US')} rows are filled`);
    await makeTable(database.owner, 'people', rows, roleOf(database.workerUrl));
    const policy = join(database.home, 'keys-policy.json');
    await writeFile(policy, policyText);
    const { api, hasVault } = await startProcesses(database, policy, 1, undo);
    const { filled, written, verbs, plaintext, wrong, sealed } = await goThrough(api, database.owner, rows);
    const where = hasVault ? 'API and worker are processes of their own, root keys in a Vault' : 'One process';
    const rate = (name: string, rowsPerSecond: number) => ({
      name,
      figures: { 'rows/s': rowsPerSecond, 'of raw': rowsPerSecond / raw },
    });
    return [
      {
        title: `adoption, ${rows.toLocaleString('en-US')} rows`,
        rows: [
          rate('raw UPDATE of both columns', raw),
          rate('adoption of both columns', filled.rowsPerSecond),
          ...verbs.map(({ name, rowsPerSecond }) => rate(name, rowsPerSecond)),
        ],
        note: `${where}; an application writes ${writesPerSecond} rows/s of plaintext beside raw and adoption: ${written.toLocaleString('en-US')} beside adoption. The verbs include their waits.`,
      },
      {
        title: 'proof',
        rows: [
          { name: 'envelopes other than their source', figures: { rows: verbs[0]!.failed + verbs[1]!.failed } },
          { name: 'plaintext after finish', figures: { rows: plaintext } },
          { name: 'rows other than written, after undo', figures: { rows: wrong } },
          { name: 'envelopes and tokens after undo', figures: { rows: sealed } },
        ],
      },
    ];
  } finally {
    for (const each of undo.splice(0).reverse()) await each();
  }
}
