/**
 * A TCP proxy that plays a bad network between a test and any server, a database above all: slow, silent, cut, refused.
 * What it does holds for open connections and for new ones, until it is told otherwise.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';

/**
 * pass     everything goes through, after `delayMs`
 * swallow  requests arrive, replies do not: it happened, and nobody hears of it
 * refuse   new connections are ended at once; open ones go on
 */
export type Mode = 'pass' | 'swallow' | 'refuse';

export interface Proxy {
  readonly port: number;
  mode: Mode;
  /** Added to every message, each way. */
  delayMs: number;
  /** `url` with this proxy in its host's place. */
  through(url: string): string;
  /** Breaks every open connection now. Answers how many there were. */
  cut(): number;
  close(): Promise<void>;
}

/** Sends what comes in on to `to`, in order, however the delay changes meanwhile. */
function relay(from: Socket, to: Socket, delayMs: () => number, mayPass: () => boolean): void {
  let last: Promise<void> = Promise.resolve();
  const queue = (act: () => void) => {
    const wait = new Promise<void>((resolve) => setTimeout(resolve, delayMs()));
    last = last.then(() => wait).then(act);
  };
  from.on('data', (chunk) => queue(() => void (mayPass() && to.writable && to.write(chunk))));
  from.on('end', () => queue(() => to.end()));
}

/** A proxy on a free port of 127.0.0.1 in front of the server that `url` names. */
export async function openProxy(url: string): Promise<Proxy> {
  const { hostname, port: targetPort } = new URL(url);
  const clients = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (client) => {
    client.on('error', () => client.destroy());
    if (proxy.mode === 'refuse') return void client.destroy();
    clients.add(client);
    const upstream = connect({ port: Number(targetPort), host: hostname, allowHalfOpen: true });
    upstream.on('error', () => client.destroy()).on('close', () => client.destroy());
    client.on('close', () => {
      clients.delete(client);
      upstream.destroy();
    });
    relay(
      client,
      upstream,
      () => proxy.delayMs,
      () => true,
    );
    relay(
      upstream,
      client,
      () => proxy.delayMs,
      () => proxy.mode !== 'swallow',
    );
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');

  const proxy: Proxy = {
    port: (server.address() as AddressInfo).port,
    mode: 'pass',
    delayMs: 0,
    through(url) {
      const changed = new URL(url);
      changed.host = `127.0.0.1:${proxy.port}`;
      return changed.href;
    },
    cut() {
      const open = clients.size;
      for (const client of clients) client.destroy();
      return open;
    },
    async close() {
      proxy.cut();
      server.close();
      await once(server, 'close');
    },
  };
  return proxy;
}
