/**
 * Encrypt and decrypt over HTTPS with durable audit, beside a bare Express handler that answers the same bytes, in turn.
 * Service, bare server and load share this machine's cores, as they would on a laptop.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { atExit } from './ending.ts';
import { applyLoad, type Load } from './load.ts';
import { startService, type Service } from './service.ts';
import { median, type BenchOptions, type Section } from './table.ts';

const connections = 32;
const batches = [1, 10, 100, 1000];
const context = (row: number) => ({ table: 'demo.employees', column: 'bank', row: String(row) });
const value = 'GB29 NWBK 6016 1331 9268 19';

async function startBare(home: string, answers: Record<string, string>): Promise<{ url: string; stop: () => void }> {
  const file = join(home, 'answers.json');
  writeFileSync(file, JSON.stringify(answers));
  const script = fileURLToPath(new URL('./bare-server.ts', import.meta.url));
  const child = spawn(process.execPath, [script, home, file], { stdio: ['ignore', 'pipe', 'inherit'] });
  const forget = atExit(() => child.kill());
  const [port] = (await once(child.stdout, 'data')) as [Buffer];
  const stop = () => {
    child.kill();
    forget();
  };
  return { url: `https://localhost:${port.toString().trim()}`, stop };
}

export interface Case {
  readonly name: string;
  readonly path: string;
  readonly fields: number;
  readonly body: string;
  readonly answer: string;
}

/** Requests and the answers that the service gives them, by asking it once. */
export async function makeCases({ url, ca, token }: Service, sizes: readonly number[] = batches): Promise<Case[]> {
  const { Client } = await import('undici');
  const client = new Client(url, { connect: { ca } });
  const ask = async (path: string, body: string): Promise<string> => {
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
    const answer = await client.request({ method: 'POST', path, headers, body });
    const text = await answer.body.text();
    if (answer.statusCode !== 200) throw new Error(`${path} answered ${answer.statusCode}: ${text.slice(0, 200)}`);
    return text;
  };
  const cases: Case[] = [];
  const add = async (name: string, path: string, fields: number, request: object) => {
    const body = JSON.stringify(request);
    const answer = await ask(path, body);
    cases.push({ name, path, fields, body, answer });
    return JSON.parse(answer) as { envelope: string; items: { envelope: string }[] };
  };
  const { envelope } = await add('encrypt', '/v1/encrypt', 1, { class: 'bank', value, context: context(1) });
  await add('decrypt', '/v1/decrypt', 1, { envelope, context: context(1), view: 'full' });
  for (const n of sizes) {
    const items = Array.from({ length: n }, (_, i) => ({ class: 'bank', value, context: context(i) }));
    const sealed = await add(`encrypt × ${n}`, '/v1/encrypt', n, { items });
    const opened = sealed.items.map((item, i) => ({ envelope: item.envelope, context: context(i) }));
    await add(`decrypt × ${n}`, '/v1/decrypt', n, { items: opened, view: 'full' });
  }
  await client.close();
  return cases;
}

async function measureCase(
  service: Service,
  each: Case,
  { rounds, seconds }: BenchOptions,
): Promise<Section['rows'][number]> {
  const bare = await startBare(service.home, { [each.path]: each.answer });
  const ours: Load[] = [];
  const limit: Load[] = [];
  try {
    for (let round = 0; round <= rounds; round += 1) {
      const credential = { authorization: `Bearer ${service.token}` };
      const load = { ca: service.ca, path: each.path, credential, body: each.body, connections, seconds };
      const a = await applyLoad({ ...load, origin: bare.url });
      const b = await applyLoad({ ...load, origin: service.url });
      if (round === 0) continue; // warms up
      limit.push(a);
      ours.push(b);
    }
  } finally {
    bare.stop();
  }
  const rate = median(ours.map((load) => load.perSecond));
  const figures = {
    'req/s': rate,
    'p50 ms': median(ours.map((load) => load.p50Ms)),
    'p99 ms': median(ours.map((load) => load.p99Ms)),
    'fields/s': rate * each.fields,
    'bare req/s': median(limit.map((load) => load.perSecond)),
    'bare p99 ms': median(limit.map((load) => load.p99Ms)),
    'of bare': median(ours.map((load, i) => load.perSecond / limit[i]!.perSecond)),
  };
  return { name: each.name, figures };
}

export async function benchApi(options: BenchOptions): Promise<Section[]> {
  const service = await startService({ VAULT_ADDR: '' });
  try {
    const rows: Section['rows'][number][] = [];
    for (const each of await makeCases(service)) rows.push(await measureCase(service, each, options));
    const note = `${connections} connections, TLS 1.3, load on the same machine; bare: Express, helmet and body parsing, the same answer.`;
    return [{ title: 'HTTPS with durable audit', rows, note }];
  } finally {
    await service.stop();
  }
}
