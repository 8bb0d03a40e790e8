/**
 * The HTTP API as an Express app: from a request to an operation's call, and from its result to an answer.
 *
 *     route → authenticate (401) → body (413, 415, 400) → operation (403, 404, …) → still fresh? → answer
 *
 * A request that is refused on the way is audited before it is answered (refusals.ts says how); the operation does that
 * for the rest. Nothing is read of a body before it is known who sent it. Express routes and no more: answers are written by
 * exchange.ts, with the same headers for every one, and Express's own error page is never reached.
 */
import express, { type ErrorRequestHandler, type Express, type Request, type RequestHandler } from 'express';
import { FieldkeepError } from '../errors.ts';
import type { Call, Result } from '../operations/perform.ts';
import type { Health } from '../health.ts';
import type { Authenticate } from './authenticate.ts';
import { checkBodyHeaders, hasBody, parseJson, readBody, refuseBody, RequestAborted } from './body.ts';
import { welcome } from './door.ts';
import { Exchange, type Edge } from './exchange.ts';
import { describeApi } from './openapi.ts';
import type { Refusal } from './refusals.ts';
import { routes, type OperationName, type Route } from './routes.ts';
import { checkBody, checkParams, checkQuery } from './schemas.ts';

/** What is behind the HTTP edge. */
export interface Backend {
  readonly operations: Readonly<Record<OperationName, (call: Call) => Promise<Result> | Result>>;
  readonly authenticate: Authenticate;
  /** The policy that callers are authenticated by; another object means another policy. */
  readonly policy?: () => object;
  /** Has an attempt that never became an operation audited. Errors: `audit_unavailable`, `rate_limited`. */
  refuse(refusal: Refusal): Promise<void>;
  /** Whether the service can take work now. */
  health(): Promise<Health> | Health;
}

const jsonMediaType = 'application/json';

export function createApp(edge: Edge, backend: Backend): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag').set('query parser', false);
  app.enable('strict routing').enable('case sensitive routing');
  for (const path of new Set(routes.map((route) => route.path))) {
    const chain = app.route(path);
    const here = routes.filter((route) => route.path === path);
    for (const route of here) chain[route.method](handle(edge, backend, route));
    chain.all(
      refuseMethod(
        edge,
        path,
        here.map(({ method }) => method),
      ),
    );
  }
  addOpenRoutes(app, edge, backend);
  app.use((req, res) => {
    new Exchange(edge, req, res, 'none').fail(new FieldkeepError('not_found', 'There is nothing at this path.'));
  });
  app.use(answerRoutingError(edge));
  return app;
}

/** Only what Express itself throws comes here: a path that cannot be decoded. It knows error handlers by arity. */
function answerRoutingError(edge: Edge): ErrorRequestHandler {
  return (error: unknown, req, res, next) => {
    void next;
    const undecodable = error instanceof URIError || (error as { status?: unknown } | null)?.status === 400;
    const problem = undecodable ? new FieldkeepError('request_invalid', 'The path cannot be decoded.') : error;
    new Exchange(edge, req, res, 'none').fail(problem);
  };
}

/** The calls without credentials: they say nothing about keys, data or principals. */
function addOpenRoutes(app: Express, edge: Edge, backend: Backend): void {
  const api = JSON.stringify(describeApi());
  const open = (path: string, answer: (exchange: Exchange) => void | Promise<void>) => {
    const run = async (exchange: Exchange) => {
      try {
        await answer(exchange);
      } catch (error) {
        exchange.fail(error);
      }
    };
    app
      .route(path)
      .get((req, res) => run(new Exchange(edge, req, res, path)))
      .all(refuseMethod(edge, path, ['get']));
  };
  open('/livez', (exchange) => exchange.send(200, jsonMediaType, '{"status":"ok"}'));
  open('/readyz', async (exchange) => {
    const { reasons, warnings } = await backend.health();
    const ready = reasons.length === 0;
    const retry = ready ? [] : ['Retry-After', '1'];
    exchange.send(ready ? 200 : 503, jsonMediaType, JSON.stringify({ ready, reasons, warnings }), retry);
  });
  open('/openapi.json', (exchange) => exchange.send(200, jsonMediaType, api));
}

function refuseMethod(edge: Edge, path: string, methods: readonly string[]): RequestHandler {
  const allow = methods.flatMap((method) => (method === 'get' ? ['GET', 'HEAD'] : [method.toUpperCase()])).join(', ');
  return (req, res) => {
    const problem = new FieldkeepError('method_not_allowed', `This path takes ${allow}.`);
    new Exchange(edge, req, res, path).fail(problem, ['Allow', allow]);
  };
}

function handle(edge: Edge, backend: Backend, route: Route): RequestHandler {
  const operate = backend.operations[route.operation];
  return async (req, res) => {
    const exchange = new Exchange(edge, req, res, route.path);
    let call: Call;
    let policy: object | undefined;
    try {
      policy = backend.policy?.();
      call = await admit(backend, route, exchange, req);
      if (backend.policy?.() !== policy) call = await admitAgain(backend, req, call); // a body may take its time
    } catch (error) {
      return refuse(backend, route, exchange, req, error);
    }
    try {
      policy = backend.policy?.();
      const result = await operate(call);
      if (backend.policy?.() !== policy) await admitAgain(backend, req, call);
      release(exchange, result);
    } catch (error) {
      exchange.fail(error);
    }
  };
}

/** Everything before the operation. Errors: 401, 403 for a principal that the policy does not know, 413, 415, 400. */
async function admit(backend: Backend, route: Route, exchange: Exchange, req: Request): Promise<Call> {
  const pending = backend.authenticate(req);
  const { principal, known } = pending instanceof Promise ? await pending : pending;
  exchange.principal = principal;
  exchange.known = known;
  if (known) welcome(req.socket);
  const body = await admitBody(route, exchange, req);
  const query = checkQuery(route.query, req.url);
  const params = checkParams(req.params as Record<string, string>);
  const idempotencyKey = readKey(req, 'Idempotency-Key');
  const approvalId = readKey(req, 'Approval-Id');
  if (!known) throw new FieldkeepError('forbidden', 'The policy does not know this principal.');
  return {
    requestId: exchange.requestId,
    principal,
    body,
    params,
    query,
    deadline: exchange.deadline,
    ...(idempotencyKey !== undefined && { idempotencyKey }),
    ...(approvalId !== undefined && { approvalId }),
  };
}

/** Who is asking, once more, under a policy that came meanwhile. Errors: 401, 403 as for a new request. */
async function admitAgain(backend: Backend, req: Request, call: Call): Promise<Call> {
  const { principal, known } = await backend.authenticate(req);
  if (!known) throw new FieldkeepError('forbidden', 'The policy does not know this principal.');
  return { ...call, principal };
}

async function admitBody(route: Route, exchange: Exchange, req: Request): Promise<object | undefined> {
  if (route.body === undefined) {
    refuseBody(req);
    return undefined;
  }
  if (route.body.optional === true && !hasBody(req)) return {};
  checkBodyHeaders(req);
  return checkBody(route.body, parseJson(await awaitBody(exchange, req)));
}

async function awaitBody(exchange: Exchange, req: Request): Promise<Buffer> {
  exchange.reading = true;
  const bytes = await readBody(req);
  exchange.reading = false;
  return bytes;
}

function readKey(req: Request, name: 'Idempotency-Key' | 'Approval-Id'): string | undefined {
  const key = req.headers[name.toLowerCase()];
  if (key === undefined) return undefined;
  if (typeof key === 'string' && /^[\x21-\x7e]{1,128}$/.test(key)) return key;
  throw new FieldkeepError('request_invalid', `${name}: 1 to 128 visible ASCII characters.`);
}

/** Answers a request that became no call, once it is audited; without that it is a 503, and a 429 where there are too many. */
async function refuse(backend: Backend, route: Route, exchange: Exchange, req: Request, error: unknown): Promise<void> {
  if (error instanceof RequestAborted) return exchange.abandon();
  const internal = new FieldkeepError('internal', 'The request could not be read.');
  const { requestId, principal, known } = exchange;
  try {
    await backend.refuse({
      requestId,
      action: route.action,
      known,
      address: req.socket.remoteAddress,
      error: error instanceof FieldkeepError ? error : internal,
      ...(principal !== undefined && { principal }),
    });
    exchange.fail(error);
  } catch (failure) {
    exchange.fail(failure);
  }
}

function release(exchange: Exchange, result: Result): void {
  const text = JSON.stringify(result.body);
  const headers = result.location === undefined ? [] : ['Location', result.location];
  // Nothing may come between this question and the writing: a stale answer may name a version that has retired.
  if (!result.isFresh()) {
    throw new FieldkeepError('audit_unavailable', 'The answer was held up for too long and was dropped. Ask again.');
  }
  exchange.send(result.status ?? 200, jsonMediaType, text, headers);
}
