/**
 * Agents at an even pace, whatever the answers do (an open loop): a request's latency counts from the moment it was due, so
 * one slow answer is not hidden by the requests that it kept from being sent. A fourth each: decrypt to the last four,
 * decrypt in full, encrypt, search tokens. Envelopes are read from the table again and again.
 */
import { randomInt } from 'node:crypto';
import { Pool as Connections } from 'undici';
import type { Pool } from '../../../src/db.ts';
import { openIssuer } from '../../../src/embedded/issuer.ts';
import { columns, valueOf, type Column } from '../people.ts';
import type { Service } from '../service.ts';
import { clock, Recorder } from './latency.ts';

const connections = 16;
/** So many behind, and the service is not keeping up at all; more would only measure the queue. */
const outstandingMax = 2_000;
const sampleRows = 500;
const sampleEveryMs = 1_000;

type Sampled = { readonly id: string; readonly tenant: string } & Readonly<Record<Column, string>>;

interface Ask {
  readonly agent: string;
  readonly tenant: string;
  readonly path: string;
  readonly body: object;
}

function pick<T>(list: readonly T[]): T {
  return list[randomInt(list.length)]!;
}

function makeAsk(n: number, row: Sampled): Ask {
  const { id, tenant } = row;
  const place = (column: Column) => ({ table: 'demo.employees', column });
  const decrypt = (agent: string, column: Column, view: string): Ask => {
    const body = { envelope: row[column], context: { ...place(column), row: id }, view };
    return { agent, tenant, path: '/v1/decrypt', body };
  };
  switch (n % 4) {
    case 0:
      return n % 8 === 0 ? decrypt('invoice-agent', 'bank', 'last4') : decrypt('cx-agent', 'ssn', 'last4');
    case 1:
      return decrypt('payroll-agent', n % 8 === 1 ? 'bank' : 'salary', 'full');
    case 2: {
      const column = pick(columns);
      const context = { ...place(column), row: id };
      const body = { class: column, value: valueOf(column, Number(id), n), context };
      return { agent: 'payroll-agent', tenant, path: '/v1/encrypt', body };
    }
    default: {
      const body = { class: 'ssn', value: valueOf('ssn', Number(id)), context: place('ssn') };
      return { agent: 'hr-agent', tenant: 'acme', path: '/v1/search-tokens', body };
    }
  }
}

async function makeTokens(service: Service, rows: number): Promise<Map<string, string>> {
  const issuer = await openIssuer(service.home);
  const tokens = new Map<string, string>();
  const ttlSeconds = 3_600 + Math.ceil(rows / 100);
  for (const subject of ['invoice-agent', 'cx-agent', 'payroll-agent', 'hr-agent']) {
    for (const tenant of ['acme', 'globex']) {
      tokens.set(
        `${subject} ${tenant}`,
        await issuer.issueToken({ audience: 'fieldkeep', subject, tenant, ttlSeconds }),
      );
    }
  }
  return tokens;
}

export interface Traffic {
  readonly recorder: Recorder;
  /** While rows hold what no agent could open, the envelopes at hand are used on. */
  keepSample(keep: boolean): void;
  /** Statuses other than 200, and how often each came. */
  readonly faults: ReadonlyMap<string, number>;
  stop(): Promise<void>;
}

interface TrafficOptions {
  readonly service: Service;
  readonly owner: Pool;
  readonly rows: number;
  readonly perSecond: number;
}

export async function startTraffic({ service, owner, rows, perSecond }: TrafficOptions): Promise<Traffic> {
  const tokens = await makeTokens(service, rows);
  const client = new Connections(service.url, { connections, pipelining: 1, connect: { ca: service.ca } });
  const recorder = new Recorder();
  const faults = new Map<string, number>();
  const outstanding = new Set<Promise<void>>();
  let sample = await readSample();
  let keeping = false;
  let reading: Promise<void> | undefined;

  async function readSample(): Promise<Sampled[]> {
    const ids = Array.from({ length: sampleRows }, () => 1 + randomInt(rows));
    const sql =
      'select e.id::text, e.tenant, e.ssn, e.bank, e.salary from demo.employees e where e.id = any ($1::bigint[])';
    return (await owner.query<Sampled>(sql, [ids])).rows;
  }

  function fault(what: string): void {
    faults.set(what, (faults.get(what) ?? 0) + 1);
  }

  async function send(n: number, dueAt: number): Promise<void> {
    const { agent, tenant, path, body } = makeAsk(n, pick(sample));
    const headers = {
      authorization: `Bearer ${tokens.get(`${agent} ${tenant}`)!}`,
      'content-type': 'application/json',
    };
    let ok = false;
    try {
      const answer = await client.request({ method: 'POST', path, headers, body: JSON.stringify(body) });
      const text = await answer.body.text();
      ok = answer.statusCode === 200;
      if (!ok) fault(`${answer.statusCode} ${(JSON.parse(text) as { code?: string }).code}`);
    } catch {
      fault('no answer');
    }
    recorder.add(dueAt, ok ? clock() - dueAt : undefined);
  }

  const started = clock();
  let n = 0;
  const sending = setInterval(() => {
    for (let dueAt = 0; (dueAt = started + (n * 1000) / perSecond) <= clock(); n += 1) {
      if (outstanding.size >= outstandingMax) {
        fault('not sent');
        recorder.add(dueAt, undefined);
        continue;
      }
      const one = send(n, dueAt).finally(() => outstanding.delete(one));
      outstanding.add(one);
    }
  }, 1);
  const sampling = setInterval(() => {
    if (keeping) return;
    reading ??= readSample().then(
      (found) => {
        if (!keeping) sample = found;
        reading = undefined;
      },
      () => (reading = undefined),
    );
  }, sampleEveryMs);

  return {
    recorder,
    faults,
    keepSample: (keep) => void (keeping = keep),
    async stop() {
      clearInterval(sending);
      clearInterval(sampling);
      await Promise.all(outstanding);
      await reading;
      await client.close();
    },
  };
}
