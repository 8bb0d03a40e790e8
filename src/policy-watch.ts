/**
 * Reads the policy at start, on SIGHUP and when the file's content changes. A file that is not right changes nothing: the last
 * good policy stays in force, and the log says what is wrong and where.
 *
 * A right that the file takes away is gone within two seconds, also in a process that slept or was busy: an answer leaves
 * only within 1.5 s of the start of a look that has still found the policy it was decided by (operations/perform.ts).
 */
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { describeError, StartupError } from './errors.ts';
import { parsePolicy, PolicyError, type Policy } from './policy/policy.ts';

const lookEveryMs = 250;
/** A file that takes longer to read keeps a change from us, and that is told. */
const readMaxMs = 1_000;
const adoptAgainMs = 500;
/** A policy that was looked at this long ago decides nothing before the next look. */
const freshMaxMs = 1_500;

/** The policy in `file`. Errors: StartupError with all that is wrong with it. */
export function readPolicy(file: string): Policy {
  try {
    return parsePolicy(readFileSync(file, 'utf8'));
  } catch (error) {
    if (error instanceof PolicyError) throw new StartupError(`${file}: ${error.message}`);
    throw new StartupError(`The policy ${file} cannot be read.`);
  }
}

export interface PolicyWatch {
  /** Whether the file was looked at so lately that what it took away has not been gone for long. */
  isFresh(): boolean;
  /** Looks now, and waits for that; not for a file that takes too long to read. */
  look(): Promise<void>;
  stop(): void;
}

/** What of a policy that was read is still to be done. */
class Adopter {
  readonly #adopt: (policy: Policy) => Promise<void>;
  readonly #log: Logger;
  #newest: Policy | undefined;
  #stopped = false;

  constructor(adopt: (policy: Policy) => Promise<void>, log: Logger) {
    this.#adopt = adopt;
    this.#log = log;
  }

  /** Goes on until it has worked, or a newer policy came. */
  async take(policy: Policy): Promise<void> {
    this.#newest = policy;
    const where = { policyVersion: policy.version };
    while (this.#newest === policy && !this.#stopped) {
      try {
        await this.#adopt(policy);
        this.#log.warn(where, 'A new policy is in force.');
        return;
      } catch (error) {
        const told = { ...where, error: describeError(error) };
        this.#log.error(
          told,
          'This process decides by a new policy, which the database does not know yet; trying again.',
        );
        await sleep(adoptAgainMs, undefined, { ref: false });
      }
    }
  }

  stop(): void {
    this.#stopped = true;
  }
}

/**
 * Looks at `file` until stopped. What is right and new goes to `adopt`, which must decide by it at once; no later change waits
 * for the rest of what it does, and it is called again when it fails.
 */
export function watchPolicy(
  file: string,
  version: string,
  adopt: (policy: Policy) => Promise<void>,
  log: Logger,
): PolicyWatch {
  const adopter = new Adopter(adopt, log);
  let current = version;
  /** The content that was looked at last. */
  let seen: string | undefined;
  let looking: Promise<void> | undefined;
  let signalled = false;
  let unreadable = false;
  /** A read is taking too long; until it ends nobody waits for it. */
  let slow = false;
  let lookedAt = performance.now();

  async function read(): Promise<string> {
    const timer = setTimeout(() => {
      slow = true;
      log.error(
        { policyVersion: current },
        `The policy file takes longer than ${readMaxMs} ms to read: a change waits.`,
      );
    }, readMaxMs);
    try {
      return await readFile(file, 'utf8');
    } finally {
      clearTimeout(timer);
      slow = false;
    }
  }

  function refuse(problem: unknown): void {
    log.error(
      { problem, policyVersion: current },
      'The policy file is not right; the last good policy stays in force.',
    );
  }

  async function look(asked: boolean): Promise<void> {
    let text: string;
    try {
      text = await read();
    } catch (error) {
      if (!unreadable || asked) refuse(describeError(error)); // once, not with every look
      unreadable = true;
      return;
    }
    unreadable = false;
    if (text === seen && !asked) return;
    seen = text;
    try {
      const policy = parsePolicy(text);
      if (policy.version === current && !asked) return;
      current = policy.version;
      void adopter.take(policy);
    } catch (error) {
      refuse(error instanceof PolicyError ? error.message : describeError(error));
    }
  }

  function check(): Promise<void> {
    if (looking !== undefined) return looking;
    const [asked, startedAt] = [signalled, performance.now()];
    signalled = false;
    looking = look(asked).finally(() => {
      lookedAt = startedAt;
      looking = undefined;
      if (signalled) void check();
    });
    return looking;
  }

  const timer = setInterval(() => void check(), lookEveryMs);
  const onSignal = () => {
    signalled = true;
    void check();
  };
  process.on('SIGHUP', onSignal);
  return {
    isFresh: () => slow || performance.now() - lookedAt <= freshMaxMs,
    async look() {
      await Promise.race([check(), sleep(readMaxMs, undefined, { ref: false })]);
    },
    stop() {
      clearInterval(timer);
      adopter.stop();
      process.off('SIGHUP', onSignal);
    },
  };
}
