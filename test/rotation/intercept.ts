/** A shop in which something happens between the statements on the customer's tables. */
import type { Client, Pool } from '../../src/db.ts';
import type { TargetName, Targets } from '../../src/targets/targets.ts';
import type { Service } from '../../src/service.ts';

export interface Moments {
  /** Rows of a batch were read; the worker does not have them yet. */
  readonly afterRead?: () => Promise<void>;
  /** Its changes are about to be written. */
  readonly beforeWrite?: () => Promise<void>;
  readonly afterWrite?: () => Promise<void>;
}

/** `target` with other members in the place of its own; what stays is called on `target` itself, private fields and all. */
export function replace<T extends object>(target: T, members: Partial<Record<keyof T, unknown>>): T {
  return new Proxy(target, {
    get(_, name) {
      if (name in members) return members[name as keyof T];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}

type Run = (text: string, run: () => Promise<unknown>) => Promise<unknown>;

/** What answers `query` as a pool or a client does, with every statement run by `run`. */
function interceptQueries<T extends Pool | Client>(
  db: T,
  run: Run,
  members: Partial<Record<keyof T, unknown>> = {},
): T {
  const query = (...args: unknown[]) => {
    const [first] = args;
    const text = typeof first === 'string' ? first : (first as { text: string }).text;
    return run(text, () => (db as { query(...args: unknown[]): Promise<unknown> }).query(...args));
  };
  return replace(db, { ...members, query });
}

export function interceptClient(client: Client, run: Run): Client {
  return interceptQueries(client, run);
}

/** The pool, and every connection that it hands out. */
export function interceptPool(pool: Pool, run: Run): Pool {
  const connect = async () => interceptQueries(await pool.connect(), run);
  return interceptQueries(pool, run, { connect });
}

/** Every database of the customer's. */
export function interceptTargets(targets: Targets, run: Run): Targets {
  const intercept = (pool: Pool | undefined) => pool && interceptPool(pool, run);
  return replace(targets, {
    find: (name: TargetName) => intercept(targets.find(name)),
    findRows: (name: TargetName) => intercept(targets.findRows(name)),
  });
}

const isRead = (text: string) => /^\s*select\b[^]*\border by\b[^]*\blimit\b/i.test(text) && !/\boffset\b/i.test(text);
const isWrite = (text: string) => /^\s*(update|with\b[^]*\bupdate\b)/i.test(text);

export function withMoments(service: Service, { afterRead, beforeWrite, afterWrite }: Moments): Service {
  const targets = interceptTargets(service.targets, async (text, run) => {
    if (isWrite(text)) await beforeWrite?.();
    const answer = await run();
    if (isRead(text)) await afterRead?.();
    if (isWrite(text)) await afterWrite?.();
    return answer;
  });
  return replace(service, { targets });
}

/** `act` the first time that it is called; whoever calls meanwhile waits for it, too. */
export function once(act: () => Promise<void>): () => Promise<void> {
  let done: Promise<void> | undefined;
  return () => (done ??= act());
}
