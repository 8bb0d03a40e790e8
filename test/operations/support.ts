/** Holding a rotation still before its activation, and waiting for what the workers do by themselves. */
import { randomUUID } from 'node:crypto';
import type { Pool } from '../../src/db.ts';
import type { TestService } from '../support/service.ts';

/** An instance that lives and is never ready: nothing is activated until what this answers is called. */
export async function holdActivation(owner: Pool): Promise<() => Promise<void>> {
  const id = randomUUID();
  await owner.query('insert into fieldkeep.instances (id) values ($1)', [id]);
  const beat = () => owner.query('update fieldkeep.instances set heartbeat_at = now() where id = $1', [id]);
  // A test that fails may leave it behind.
  const timer = setInterval(() => void beat().catch(() => undefined), 500).unref();
  return async () => {
    clearInterval(timer);
    await owner.query('delete from fieldkeep.instances where id = $1', [id]);
  };
}

export async function waitUntil(holds: () => boolean | Promise<boolean>, what: string, maxMs = 20_000): Promise<void> {
  const deadline = performance.now() + maxMs;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`it never came about that ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

export async function waitForActive(
  { service: { keyring } }: TestService,
  family: string,
  version: number,
): Promise<void> {
  const isActive = () => keyring.state.families.get(family)?.active === version;
  await waitUntil(isActive, `version ${version} of ${family} is active`);
}
