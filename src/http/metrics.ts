/**
 * Metrics and their listener: a port of its own, bound to this machine unless told otherwise, so that the numbers are
 * not on the port that agents reach. Labels are route patterns, statuses and problem codes: closed lists, no values.
 */
import { createServer, type Server } from 'node:http';
import { once } from 'node:events';
import { collectDefaultMetrics, Histogram, Registry } from 'prom-client';

export interface Metrics {
  readonly registry: Registry;
  observe(route: string, status: number, code: string, seconds: number): void;
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
  };
}

/** Answers `GET /metrics` over plain HTTP, and nothing else. */
export async function listenForMetrics(registry: Registry, port: number, host = '127.0.0.1'): Promise<Server> {
  const server = createServer({ headersTimeout: 5_000, requestTimeout: 5_000 }, (req, res) => {
    if (req.url !== '/metrics' || req.method !== 'GET') return void res.writeHead(404).end();
    registry.metrics().then(
      (text) => res.writeHead(200, { 'Content-Type': registry.contentType, 'Cache-Control': 'no-store' }).end(text),
      () => res.writeHead(500).end(),
    );
  });
  server.listen(port, host);
  await once(server, 'listening');
  return server;
}
