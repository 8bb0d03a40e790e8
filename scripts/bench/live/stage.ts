/**
 * The living system: a Postgres of its own with a table that is encrypted already, and processes of the service on it. With
 * a Vault there is one that answers agents and others that rotate; embedded root keys serve one process, which does both.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { openDatabase, type BenchDatabase } from '../database.ts';
import { isAdopted, policyFile } from '../engine.ts';
import { fill } from '../people.ts';
import { startProcesses, type Processes, type Undo } from '../service.ts';
import { until } from '../waiting.ts';

export interface Stage extends Processes {
  readonly database: BenchDatabase;
  /** Puts a policy in force in which every class says so of its rotations. */
  limit(rotation: object): Promise<void>;
  close(): Promise<void>;
}

const policyOf = (home: string) => join(home, 'keys-policy.json');
/** Every process looks at its policy file every two seconds. */
const policyMs = 4_000;

async function limitRotations(home: string, rotation: object): Promise<void> {
  const file = JSON.parse(await readFile(policyFile, 'utf8')) as { classes: Record<string, object> };
  for (const [name, each] of Object.entries(file.classes)) file.classes[name] = { ...each, rotation };
  await writeFile(policyOf(home), JSON.stringify(file));
}

/** Everything stands, and every value of the table is an envelope. */
export async function openStage({ rows, workers }: { rows: number; workers: number }): Promise<Stage> {
  const undo: Undo[] = [];
  const close = async () => {
    for (const each of undo.splice(0).reverse()) await each();
  };
  try {
    const database = await openDatabase();
    undo.push(() => database.close());
    await fill(database.owner, rows);
    await limitRotations(database.home, {});
    const processes = await startProcesses(database, policyOf(database.home), workers, undo);
    await until(
      () => isAdopted(database.asWorker),
      (isDone) => isDone,
      60_000 + rows,
    );
    await database.owner.query('vacuum analyze demo.employees');
    const limit = async (rotation: object) => {
      await limitRotations(database.home, rotation);
      await sleep(policyMs);
    };
    return { database, ...processes, limit, close };
  } catch (error) {
    await close();
    throw error;
  }
}
