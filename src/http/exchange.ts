/**
 * One request and its one answer. Whoever answers first wins: what comes after (an operation that outlived the
 * deadline) is dropped. Answering also writes the log line and counts, so no answer goes without either.
 *
 * The log line is an allow-list. It has no URL (a query is the client's text), no header and no part of a body.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { describeError, FieldkeepError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Principal } from '../policy/access.ts';
import { securityHeaders } from './headers.ts';
import type { Metrics } from './metrics.ts';
import { problemMediaType, toProblem } from './problem.ts';
import { newRequestId, readClientRequestId } from './request-id.ts';

/** What all exchanges of a server share. */
export interface Edge {
  readonly log: Pick<Log, 'info' | 'error'>;
  readonly metrics?: Metrics | undefined;
  readonly requestDeadlineMs: number;
  /** Set when the server drains: every answer then ends its connection. */
  draining: boolean;
}

/** After the deadline ended the reading of a body, its refusal has this long to reach the audit log. */
const refusalGraceMs = 5_000;

export class Exchange {
  readonly requestId = newRequestId();
  readonly startedAt = performance.now();
  readonly deadline: number;
  principal: Principal | undefined;
  /** Whether the policy knows the principal. */
  known = false;
  /** While the body is awaited, the deadline ends the waiting. (A flag: a closure kept here per request cost 10 µs.) */
  reading = false;
  readonly #edge: Edge;
  readonly #req: IncomingMessage;
  readonly #res: ServerResponse;
  readonly #route: string;
  #timer: NodeJS.Timeout;
  #answered = false;

  /** `route` is the pattern, the only form of a path that is logged or counted. */
  constructor(edge: Edge, req: IncomingMessage, res: ServerResponse, route: string) {
    this.#edge = edge;
    this.#req = req;
    this.#res = res;
    this.#route = route;
    this.deadline = this.startedAt + edge.requestDeadlineMs;
    this.#timer = setTimeout(onDeadline, edge.requestDeadlineMs, this);
  }

  get answered(): boolean {
    return this.#answered;
  }

  /** `headers`: name, value, name, value, … */
  send(status: number, type: string, body: string, headers: readonly string[] = [], code = ''): void {
    if (this.#answered) return;
    this.#answered = true;
    clearTimeout(this.#timer);
    if (!this.#res.destroyed) {
      const bytes = Buffer.byteLength(body);
      const own = ['X-Request-Id', this.requestId, 'Content-Type', type, 'Content-Length', `${bytes}`];
      if (this.#edge.draining) own.push('Connection', 'close');
      this.#res
        .writeHead(status, [...securityHeaders, ...own, ...headers])
        .end(body, bytes === body.length ? 'latin1' : 'utf8');
    }
    this.#record(status, code);
  }

  /** Answers with the problem that `error` is; what is not ours is logged without its words. */
  fail(error: unknown, headers: readonly string[] = []): void {
    if (this.#answered) return;
    if (!(error instanceof FieldkeepError)) {
      this.#edge.log.error({ requestId: this.requestId, error: describeError(error) }, 'An error nobody foresaw.');
    }
    const problem = toProblem(error, this.requestId);
    this.send(
      problem.status,
      problemMediaType,
      JSON.stringify(problem.body),
      [...problem.headers, ...headers],
      problem.code,
    );
  }

  /** The client went away; there is nobody to answer. */
  abandon(): void {
    if (this.#answered) return;
    this.#answered = true;
    clearTimeout(this.#timer);
    this.#record(0, 'aborted');
  }

  /** Ends the wait for the body (its refusal is then recorded and answered), or answers 504 at once. */
  reachDeadline(): void {
    if (this.reading) {
      this.reading = false;
      this.#timer = setTimeout(onDeadline, refusalGraceMs, this);
      this.#req.emit('error', new FieldkeepError('deadline_exceeded', 'The body did not arrive in time.'));
      return;
    }
    this.fail(new FieldkeepError('deadline_exceeded', 'The request could not be answered in time.'));
  }

  #record(status: number, code: string): void {
    const ms = performance.now() - this.startedAt;
    const clientRequestId = readClientRequestId(this.#req.headers['x-request-id']);
    this.#edge.log.info({
      method: this.#req.method,
      route: this.#route,
      status,
      code: code === '' ? undefined : code,
      ms: Math.round(ms * 100) / 100,
      requestId: this.requestId,
      clientRequestId,
      agent: this.principal?.agent,
      person: this.principal?.person,
      tenant: this.principal?.tenant,
    });
    this.#edge.metrics?.observe(this.#route, status, code, ms / 1000);
  }
}

function onDeadline(exchange: Exchange): void {
  exchange.reachDeadline();
}
