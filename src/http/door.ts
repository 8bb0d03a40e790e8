/**
 * Who may stay connected. Whoever opens a connection is a stranger until a request on it came with a good credential.
 *
 *   - a connection whose TLS handshake is not finished in time is destroyed, whatever was sent on it and however slowly
 *   - when `max` connections are open, the oldest stranger's is closed for the next one; without strangers the next one is
 *   - so strangers keep out strangers, and never those who were let in
 *
 * Node's own `handshakeTimeout` reports to `clientError` and leaves the socket to whoever listens there; and it begins again
 * with every byte. The timers here are on the TCP sockets and run once.
 */
import type { Server, Socket } from 'node:net';

export interface DoorOptions {
  /** Connections at most, with and without a finished handshake. */
  readonly max: number;
  /** Absent where there is no TLS. */
  readonly handshakeMaxMs?: number;
}

/** How to mark a connection as one that was let in; by the socket that its requests have. */
const welcomes = new WeakMap<Socket, () => void>();

/** The request that came on this socket had a good credential. */
export function welcome(socket: Socket): void {
  const mark = welcomes.get(socket);
  if (mark === undefined) return;
  welcomes.delete(socket);
  mark();
}

/** What two sockets of one connection, the TCP one and the TLS one, have in common. */
function endsOf(socket: Socket): string {
  return [socket.remoteAddress, socket.remotePort, socket.localAddress, socket.localPort].join(' ');
}

/** A few more than `max`, which are accepted to see who goes; the kernel's queue holds the rest. */
const slack = 32;

export class Door {
  /** They only grow. */
  readonly counters = { handshakeTimeouts: 0, refused: 0, evicted: 0 };
  readonly #max: number;
  readonly #open = new Set<Socket>();
  /** Oldest first. */
  readonly #strangers = new Set<Socket>();
  /** Connections whose handshake is under way, by their ends. */
  readonly #handshakes = new Map<string, { readonly socket: Socket; readonly timer: NodeJS.Timeout }>();

  constructor(server: Server, { max, handshakeMaxMs }: DoorOptions) {
    this.#max = max;
    server.maxConnections = max + slack;
    server.on('drop', () => (this.counters.refused += 1));
    server.on('connection', (socket: Socket) => {
      this.#enter(socket);
      if (handshakeMaxMs === undefined) this.#introduce(socket, socket);
      else this.#awaitHandshake(socket, handshakeMaxMs);
    });
    if (handshakeMaxMs === undefined) return;
    server.on('secureConnection', (secured: Socket) => {
      const ends = endsOf(secured);
      const handshake = this.#handshakes.get(ends);
      if (handshake === undefined) return; // the client has left: its socket has no ends any more
      clearTimeout(handshake.timer);
      this.#handshakes.delete(ends);
      this.#introduce(handshake.socket, secured);
    });
    server.on('tlsClientError', (_: unknown, socket: Socket) => socket.destroy());
  }

  get open(): number {
    return this.#open.size;
  }

  get strangers(): number {
    return this.#strangers.size;
  }

  /** For metrics. */
  figures(): Readonly<Record<string, number>> {
    return {
      connections_open: this.open,
      connections_of_strangers: this.strangers,
      connections_refused_total: this.counters.refused,
      connections_evicted_total: this.counters.evicted,
      handshake_timeouts_total: this.counters.handshakeTimeouts,
    };
  }

  /** Cuts the connections whose handshake is not finished. */
  cutHandshakes(): void {
    for (const { socket } of this.#handshakes.values()) socket.destroy();
  }

  /** Cuts the connections that nobody with a good credential uses. */
  cutStrangers(): void {
    for (const socket of this.#strangers) socket.destroy();
  }

  cutAll(): void {
    for (const socket of this.#open) socket.destroy();
  }

  #enter(socket: Socket): void {
    this.#open.add(socket);
    this.#strangers.add(socket);
    socket.once('close', () => {
      this.#open.delete(socket);
      this.#strangers.delete(socket);
    });
    if (this.#open.size <= this.#max) return;
    for (const oldest of this.#strangers) {
      this.counters[oldest === socket ? 'refused' : 'evicted'] += 1;
      this.#open.delete(oldest); // its `close` comes later, and the next one is counted before
      this.#strangers.delete(oldest);
      oldest.destroy();
      return;
    }
  }

  #introduce(socket: Socket, itsRequests: Socket): void {
    welcomes.set(itsRequests, () => this.#strangers.delete(socket));
  }

  #awaitHandshake(socket: Socket, ms: number): void {
    const ends = endsOf(socket);
    const timer = setTimeout(() => {
      this.counters.handshakeTimeouts += 1;
      socket.destroy();
    }, ms);
    this.#handshakes.set(ends, { socket, timer });
    socket.once('close', () => {
      clearTimeout(timer);
      if (this.#handshakes.get(ends)?.socket === socket) this.#handshakes.delete(ends);
    });
  }
}
