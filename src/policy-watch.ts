/**
 * Reads the policy at start, on SIGHUP and when the file's content changes. A file that is not right changes nothing: the last
 * good policy stays in force, and the log says what is wrong and where.
 */
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { Logger } from 'pino';
import { describeError, StartupError } from './errors.ts';
import { parsePolicy, PolicyError, type Policy } from './policy/policy.ts';

const lookEveryMs = 2_000;

/** The policy in `file`. Errors: StartupError with all that is wrong with it. */
export function readPolicy(file: string): Policy {
  try {
    return parsePolicy(readFileSync(file, 'utf8'));
  } catch (error) {
    if (error instanceof PolicyError) throw new StartupError(`${file}: ${error.message}`);
    throw new StartupError(`The policy ${file} cannot be read.`);
  }
}

export function watchPolicy(
  file: string,
  version: string,
  adopt: (policy: Policy) => Promise<void>,
  log: Logger,
): { stop: () => void } {
  let current = version;
  let seen: string | undefined;
  let looking: Promise<void> | undefined;

  async function look(): Promise<void> {
    const text = await readFile(file, 'utf8');
    if (text === seen) return;
    const policy = parsePolicy(text);
    if (policy.version !== current) {
      await adopt(policy);
      current = policy.version;
      log.warn({ policyVersion: current }, 'A new policy is in force.');
    }
    seen = text;
  }

  function check(asked: boolean): void {
    looking ??= look()
      .catch(async (error: unknown) => {
        const detail = error instanceof PolicyError ? error.message : describeError(error);
        const text = await readFile(file, 'utf8').catch(() => undefined);
        if (error instanceof PolicyError && text === seen && !asked) return; // told once for every content
        if (error instanceof PolicyError) seen = text;
        log.error(
          { problem: detail, policyVersion: current },
          'The policy file is not right; the last good policy stays in force.',
        );
      })
      .finally(() => {
        looking = undefined;
      });
  }

  const timer = setInterval(() => check(false), lookEveryMs);
  const onSignal = () => {
    seen = undefined;
    check(true);
  };
  process.on('SIGHUP', onSignal);
  return {
    stop() {
      clearInterval(timer);
      process.off('SIGHUP', onSignal);
    },
  };
}
