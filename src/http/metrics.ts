/**
 * Metrics and the port for scrapers and probes: one of its own, bound to this machine unless told otherwise, so that the
 * numbers are not on the port that agents reach. Labels are route patterns, statuses and problem codes: closed lists, no values.
 */
import { createServer, type Server } from 'node:http';
import { once } from 'node:events';
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { Health } from '../health.ts';
import { Door } from './door.ts';

export interface Metrics {
  readonly registry: Registry;
  observe(route: string, status: number, code: string, seconds: number): void;
  /** A request was refused before it became an operation. */
  observeRefusal(code: string): void;
}

const bucketsSeconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

export function createMetrics(): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const requests = new Histogram({
    name: 'fieldkeep_http_request_duration_seconds',
    help: 'Time from the request headers to the answer, by route pattern, status and problem code.',
    labelNames: ['route', 'status', 'code'],
    buckets: bucketsSeconds,
    registers: [registry],
  });
  const refusals = new Counter({
    name: 'fieldkeep_refusals_total',
    help: 'Requests that were refused before they became an operation, by problem code; most of them without a good credential.',
    labelNames: ['code'],
    registers: [registry],
  });
  // Looking a child up by its labels costs more than counting; the labels are few, so the children are kept.
  const children = new Map<string, Histogram.Internal<'route' | 'status' | 'code'>>();
  return {
    registry,
    observe(route, status, code, seconds) {
      const key = `${route} ${status} ${code}`;
      let child = children.get(key);
      if (child === undefined) children.set(key, (child = requests.labels(route, String(status), code)));
      child.observe(seconds);
    },
    observeRefusal: (code) => refusals.inc({ code }),
  };
}

/**
 * Shows figures that are kept elsewhere, read at every scrape: `name` becomes fieldkeep_<name>, a counter when it ends in
 * `_total`, else a gauge.
 */
export function exposeFigures({ registry }: Metrics, read: () => Readonly<Record<string, number>>): void {
  const counters = new Map<string, { counter: Counter; shown: number }>();
  const gauges = new Map<string, Gauge>();
  const show = (name: string, value: number) => {
    const shape = { name: `fieldkeep_${name}`, help: `${name.replaceAll('_', ' ')}.`, registers: [registry] };
    if (!name.endsWith('_total')) {
      let gauge = gauges.get(name);
      if (gauge === undefined) gauges.set(name, (gauge = new Gauge(shape)));
      return gauge.set(value);
    }
    let known = counters.get(name);
    if (known === undefined) counters.set(name, (known = { counter: new Counter(shape), shown: 0 }));
    known.counter.inc(Math.max(0, value - known.shown));
    known.shown = value;
  };
  const all = () => {
    for (const [name, value] of Object.entries(read())) show(name, value);
  };
  // The first one's `collect` brings all of them up to date before a scrape reads them.
  new Gauge({ name: 'fieldkeep_up', help: '1 while the process runs.', registers: [registry], collect: all }).set(1);
  all();
}

/** A figure with labels from closed lists: names of the policy, phases. */
export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/**
 * Shows gauges that are read from the database at every scrape; `help` names each of them. While it cannot be read they
 * are absent, and `fieldkeep_<what>_known` is 0.
 */
export function exposeSamples(
  { registry }: Metrics,
  what: string,
  help: Readonly<Record<string, { readonly text: string; readonly labels: readonly string[] }>>,
  read: () => Promise<readonly Sample[]>,
): void {
  let reading: Promise<void> | undefined;
  // A scrape asks all of them at once: they share one reading, and are shown when it is there.
  const collect = () => (reading ??= look().finally(() => (reading = undefined)));
  const gauge = (name: string, text: string, labels: readonly string[]) =>
    new Gauge({ name: `fieldkeep_${name}`, help: text, labelNames: [...labels], registers: [registry], collect });
  const gauges = new Map(Object.entries(help).map(([name, { text, labels }]) => [name, gauge(name, text, labels)]));
  const known = gauge(`${what}_known`, `1 when the ${what} could be read at this scrape.`, []);

  async function look(): Promise<void> {
    const samples = await read().catch(() => undefined);
    known.set(samples === undefined ? 0 : 1);
    for (const each of gauges.values()) each.reset();
    for (const { name, labels, value } of samples ?? []) gauges.get(name)?.set(labels, value);
  }
}

export interface InternalPort {
  readonly registry: Registry;
  readonly health: () => Promise<Health>;
  readonly port: number;
  readonly host: string;
}

const insideConnectionsMax = 64;

/** Answers GET /metrics, /livez and /readyz over plain HTTP, and nothing else: for scrapers and probes inside. */
export async function listenInside({ registry, health, port, host }: InternalPort): Promise<Server> {
  const answers: Readonly<Record<string, () => Promise<[status: number, type: string, text: string]>>> = {
    '/metrics': async () => [200, registry.contentType, await registry.metrics()],
    '/livez': () => Promise.resolve([200, 'application/json', '{"status":"ok"}']),
    '/readyz': async () => {
      const { reasons, warnings } = await health();
      const ready = reasons.length === 0;
      return [ready ? 200 : 503, 'application/json', JSON.stringify({ ready, reasons, warnings })];
    },
  };
  const limits = { headersTimeout: 5_000, requestTimeout: 5_000, connectionsCheckingInterval: 1_000 };
  const server = createServer(limits, (req, res) => {
    const answer = Object.hasOwn(answers, req.url ?? '') ? answers[req.url!] : undefined;
    if (answer === undefined || req.method !== 'GET') return void res.writeHead(404).end();
    answer().then(
      ([status, type, text]) => res.writeHead(status, { 'Content-Type': type, 'Cache-Control': 'no-store' }).end(text),
      () => res.writeHead(500).end(),
    );
  });
  server.timeout = 10_000;
  new Door(server, { max: insideConnectionsMax });
  server.listen(port, host);
  await once(server, 'listening');
  return server;
}
