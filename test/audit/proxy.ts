/** A TCP proxy in front of Postgres that breaks the connection at the worst moments of a commit. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';

/**
 * before   the statement never reaches the server: failed, and did not happen
 * after    the server has answered, and the answer never reaches the client: failed, but it happened
 * silence  as `after`, but the client's connection stays open and nothing comes any more
 * late     the client's connection breaks; the statement reaches the server only `lateMs` later
 */
export type Fault = 'before' | 'after' | 'silence' | 'late';

const lateMs = 300;

export interface Proxy {
  readonly url: string;
  /** The next message to the server that holds `marker` meets the fault. */
  arm(fault: Fault, marker: string): void;
  /** From now on new connections are broken off at once. */
  refuse(): void;
  /** Faults that were met. */
  readonly met: () => number;
  close(): Promise<void>;
}

export async function openProxy(url: string): Promise<Proxy> {
  const target = new URL(url);
  const sockets = new Set<Socket>();
  let armed: { fault: Fault; marker: string } | undefined;
  let met = 0;
  let refusing = false;

  const server = createServer((client) => {
    if (refusing) return void client.destroy();
    const upstream = connect(Number(target.port), target.hostname);
    let answers: 'pass' | 'drop' | 'cut' = 'pass';
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => socket.destroy());
      socket.on('close', () => sockets.delete(socket));
    }
    client.on('data', (chunk) => {
      if (armed === undefined || !chunk.includes(armed.marker)) return void upstream.write(chunk);
      const { fault } = armed;
      armed = undefined;
      met += 1;
      if (fault === 'after') answers = 'cut';
      if (fault === 'silence') answers = 'drop';
      if (fault === 'after' || fault === 'silence') return void upstream.write(chunk);
      client.destroy();
      if (fault === 'late') setTimeout(() => upstream.write(chunk), lateMs);
      else upstream.destroy();
    });
    upstream.on('data', (chunk) => {
      if (answers === 'pass') client.write(chunk);
      if (answers === 'cut') client.destroy();
    });
    upstream.on('close', () => client.destroy());
    // The server keeps its side open after `after`, `silence` and `late`: it does not know that nobody listens.
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const through = new URL(url);
  through.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url: through.toString(),
    arm(fault, marker) {
      armed = { fault, marker };
    },
    refuse() {
      refusing = true;
    },
    met: () => met,
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}
