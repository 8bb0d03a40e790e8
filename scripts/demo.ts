/**
 * npm run demo -- [--rows 100000]
 *
 * The whole product on one table: plaintext is taken in and encrypted in place, agents with different rights read the
 * same row, the keys of `ssn` rotate while an application keeps writing, and at the end every row is opened and compared.
 * Works against the running service, or starts one for the time of the demo.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { openPool, type Pool } from '../src/db.ts';
import { StartupError } from '../src/errors.ts';
import { makePerson, type Person } from './demo/data.ts';
import { verify } from './demo/verify.ts';
import { startWriter } from './demo/writer.ts';
import { followRun, type RunProgress } from './progress.ts';
import {
  type Api,
  findService,
  formatCount as count,
  formatSeconds,
  mustBeOk,
  openApi,
  openProgress,
  operator,
  progressLine,
  readWords,
  run,
  type RunningService,
} from './support.ts';

const rowsMax = 5_000_000;
const say = (text = '') => void process.stdout.write(`${text}\n`);

function readRows(): number {
  const { values } = readWords('Usage: npm run demo [-- --rows 100000]', {
    options: { rows: { type: 'string', default: '100000' } },
  });
  const rows = Number(values.rows);
  if (Number.isInteger(rows) && rows >= 10 && rows <= rowsMax) return rows;
  throw new StartupError(`--rows takes a whole number from 10 to ${count(rowsMax)}.`);
}

async function startOwnService(): Promise<{ service: RunningService; child: ChildProcess }> {
  say('No service is running; starting one for the demo.');
  const main = fileURLToPath(new URL('../src/main.ts', import.meta.url));
  const child = spawn(process.execPath, [main], { stdio: ['ignore', 'ignore', 'inherit'] });
  for (let waited = 0; waited < 60_000 && child.exitCode === null; waited += 100) {
    const service = findService();
    if (service?.pid === child.pid) return { service: service!, child };
    await sleep(100);
  }
  child.kill('SIGTERM');
  throw new StartupError('The service did not start.');
}

function openOwner(service: RunningService): Pool {
  const url = service.databaseUrl ?? process.env.DATABASE_OWNER_URL ?? process.env.DATABASE_URL;
  if (url === undefined) throw new StartupError('Set DATABASE_OWNER_URL: the demo loads its table as the owner.');
  return openPool(url, { max: 4, name: 'demo', statementTimeoutMs: 300_000 });
}

async function load(owner: Pool, rows: number): Promise<Person[]> {
  const people = Array.from({ length: rows }, (_, i) => makePerson(i + 1));
  const started = performance.now();
  await owner.query('truncate demo.employees');
  for (let from = 0; from < rows; from += 5000) {
    const chunk = people.slice(from, from + 5000);
    const column = (name: keyof Person) => chunk.map((person) => person[name]);
    await owner.query(
      `insert into demo.employees (id, tenant, name, ssn, bank, salary)
       select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])`,
      [column('id'), column('tenant'), column('name'), column('ssn'), column('bank'), column('salary')],
    );
  }
  await owner.query(`select setval(pg_get_serial_sequence('demo.employees', 'id'), $1)`, [rows]);
  await owner.query('analyze demo.employees');
  say(`   ${count(rows)} rows of plaintext in ${formatSeconds((performance.now() - started) / 1000)}. The first one:`);
  const { ssn, bank, salary } = people[0]!;
  say(`   ssn ${ssn} · bank ${bank} · salary ${salary}`);
  return people;
}

async function follow(api: Api, id: string, also?: () => string): Promise<void> {
  const last = await followRun(api, id, { indent: '   ', ...(also !== undefined && { also }) });
  if (last.phase === 'blocked') throw new StartupError('It is blocked: npm run status says why.');
}

async function census(owner: Pool): Promise<string> {
  const lines: string[] = [];
  for (const column of ['ssn', 'bank', 'salary']) {
    const { rows } = await owner.query<{ version: number | null; n: string }>(
      `select fieldkeep.fe_version(${column}) as version, count(*) as n from demo.employees group by 1 order by 1`,
    );
    const name = (version: number | null) => (version === null ? 'null' : version === 0 ? 'PLAINTEXT' : `v${version}`);
    lines.push(
      `   ${column.padEnd(7)} ${rows.map((row) => `${name(row.version)}: ${count(Number(row.n))}`).join('   ')}`,
    );
  }
  return lines.join('\n');
}

async function showViews(api: Api, owner: Pool): Promise<void> {
  const { rows } = await owner.query<Record<'ssn' | 'bank' | 'salary', string>>(
    'select ssn, bank, salary from demo.employees where id = 1',
  );
  const asks: [string, 'ssn' | 'bank' | 'salary', string | undefined, string | undefined][] = [
    ['payroll-agent', 'bank', 'full', undefined],
    ['payroll-agent', 'salary', 'full', undefined],
    ['invoice-agent', 'bank', 'last4', undefined],
    ['invoice-agent', 'bank', undefined, undefined],
    ['cx-agent', 'ssn', 'last4', undefined],
    ['hr-agent', 'ssn', 'full', 'onboarding'],
    ['recruit-agent', 'ssn', 'exists', undefined],
    ['recruit-agent', 'salary', undefined, undefined],
  ];
  for (const [name, column, view, purpose] of asks) {
    const context = { table: 'demo.employees', column, row: '1' };
    const body = { envelope: rows[0]![column], context, ...(view && { view }), ...(purpose && { purpose }) };
    const answer = await api.call({ name, tenant: 'acme' }, 'POST', '/v1/decrypt', body);
    const shown =
      answer.status === 200
        ? String(answer.body.value)
        : `${answer.status} ${String(answer.body.code)}: ${String(answer.body.detail)}`;
    say(`   ${name.padEnd(14)} ${column.padEnd(7)} ${(view ?? '(default)').padEnd(9)} → ${shown}`);
  }
}

async function adopt(api: Api, owner: Pool): Promise<void> {
  const started = performance.now();
  for (;;) {
    const { items } = mustBeOk(await api.call(operator, 'GET', '/v1/rotations?limit=20')) as {
      items: RunProgress[];
    };
    const unfinished = items.find((item) => item.kind === 'adoption' && item.phase !== 'done');
    if (unfinished !== undefined) await follow(api, unfinished.id);
    const { rows } = await owner.query<{ left: boolean }>(
      `select exists (select 1 from demo.employees where fieldkeep.fe_version(ssn) = 0)
           or exists (select 1 from demo.employees where fieldkeep.fe_version(bank) = 0)
           or exists (select 1 from demo.employees where fieldkeep.fe_version(salary) = 0) as left`,
    );
    if (!rows[0]!.left) break;
    await sleep(200);
  }
  say(
    `   Adopted in ${formatSeconds((performance.now() - started) / 1000)}. The same row as anybody with SQL sees it now:`,
  );
  const { rows } = await owner.query<{ ssn: string; ssn_eq: string }>(
    'select ssn, ssn_eq from demo.employees where id = 1',
  );
  say(`   ssn ${rows[0]!.ssn.slice(0, 60)}… · ssn_eq ${rows[0]!.ssn_eq}`);
}

async function rotate(api: Api, owner: Pool, people: Person[]): Promise<void> {
  const writer = startWriter(api, owner, people);
  try {
    const { id } = mustBeOk(await api.call(operator, 'POST', '/v1/keys/ssn/rotate', { reason: 'demo' })) as {
      id: string;
    };
    await follow(api, id, () => ` · the application wrote ${count(writer.written())}`);
  } finally {
    await writer.stop();
  }
  say(`   Meanwhile the application wrote ${count(writer.written())} rows.`);
}

async function prove(api: Api, owner: Pool, people: Person[]): Promise<boolean> {
  const progress = openProgress();
  const tenants = [...new Set(people.map((person) => person.tenant))];
  const expected = { rows: people.length, tenants, person: (id: number) => people[id - 1]! };
  const verdict = await verify(api, owner, expected, (rows) =>
    progress.show(progressLine('   opening      ', rows, people.length, `${count(rows)} rows`)),
  );
  progress.end(`   ${count(verdict.opened)} values opened and equal, ${count(verdict.nulls)} nulls still null.`);
  say(
    `   lost ${verdict.lost} · mixed up ${verdict.mixed} · not opening ${verdict.closed} · left as plaintext ${verdict.plaintext}`,
  );
  return verdict.lost + verdict.mixed + verdict.closed + verdict.plaintext === 0;
}

interface AuditItem {
  readonly index: number;
  readonly entry: Readonly<Record<string, string | number | undefined>>;
}

async function showAudit(api: Api, since: string): Promise<void> {
  const tally = new Map<string, number>();
  let newest: AuditItem[] = [];
  let cursor: string | undefined;
  do {
    const query = new URLSearchParams({ from: since, limit: '1000', ...(cursor !== undefined && { cursor }) });
    const page = mustBeOk(await api.call({ name: 'security-auditor' }, 'GET', `/v1/audit/entries?${query.toString()}`));
    const items = page.items as AuditItem[];
    if (newest.length === 0) newest = items.slice(0, 4);
    for (const { entry } of items) {
      const key = `${String(entry.agent ?? entry.person ?? '(nobody)').padEnd(17)} ${String(entry.action).padEnd(10)} ${entry.outcome}`;
      tally.set(key, (tally.get(key) ?? 0) + 1);
    }
    cursor = page.nextCursor as string | undefined;
  } while (cursor !== undefined);
  for (const [key, n] of [...tally].sort()) say(`   ${key.padEnd(40)} ${count(n)}`);
  say('   The newest of them:');
  for (const { index, entry } of newest) say(`   #${index} ${JSON.stringify(entry).slice(0, 150)}…`);
}

async function tell(service: RunningService, rows: number): Promise<void> {
  const api = await openApi(service);
  const owner = openOwner(service);
  try {
    const since = new Date().toISOString();
    say('\n1. An application keeps personal data in plaintext (demo.employees)');
    const people = await load(owner, rows);
    say('\n2. Fieldkeep adopts the three columns, in place');
    await adopt(api, owner);
    say('\n3. The same row for different agents');
    await showViews(api, owner);
    say(`\n4. The keys of ssn rotate while the application keeps writing\n${await census(owner)}`);
    await rotate(api, owner, people);
    say(await census(owner));
    say('\n5. Every row is opened and compared with what was written');
    const proven = await prove(api, owner, people);
    say('\n6. What the audit log has to say of all this');
    await showAudit(api, since);
    say(proven ? '\nNothing was lost or mixed up.' : '\nSOMETHING WAS LOST OR MIXED UP: see 5.');
    if (!proven) process.exitCode = 1;
  } finally {
    await owner.end();
    api.close();
  }
}

await run(async () => {
  const rows = readRows();
  const running = findService();
  if (running !== undefined) return await tell(running, rows);
  const { service, child } = await startOwnService();
  try {
    await tell(service, rows);
  } finally {
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGTERM');
    await ended;
  }
});
