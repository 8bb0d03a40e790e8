/** A load over kept-alive TLS connections: each sends its next request when the last was answered. */
import { Client } from 'undici';

export interface Load {
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

interface LoadRequest {
  readonly origin: string;
  readonly ca: string;
  readonly path: string;
  /** How the caller says who it is. */
  readonly credential: Readonly<Record<string, string>>;
  readonly body: string;
  readonly connections: number;
  readonly seconds: number;
}

/** Errors: the first answer that is not 200. */
export async function applyLoad(request: LoadRequest): Promise<Load> {
  const { origin, ca, path, body, connections } = request;
  const headers = { ...request.credential, 'content-type': 'application/json' };
  const clients = Array.from({ length: connections }, () => new Client(origin, { connect: { ca }, pipelining: 1 }));
  const latencies: number[] = [];
  const started = performance.now();
  const end = started + request.seconds * 1000;
  const drive = async (client: Client) => {
    while (performance.now() < end) {
      const sent = performance.now();
      const answer = await client.request({ method: 'POST', path, headers, body });
      const text = await answer.body.text();
      if (answer.statusCode !== 200) throw new Error(`${path} answered ${answer.statusCode}: ${text.slice(0, 200)}`);
      latencies.push(performance.now() - sent);
    }
  };
  try {
    await Promise.all(clients.map(drive));
  } finally {
    await Promise.all(clients.map((client) => client.destroy()));
  }
  const seconds = (performance.now() - started) / 1000;
  latencies.sort((a, b) => a - b);
  const at = (share: number) => latencies[Math.floor(latencies.length * share)] ?? NaN;
  return { perSecond: latencies.length / seconds, p50Ms: at(0.5), p99Ms: at(0.99) };
}
