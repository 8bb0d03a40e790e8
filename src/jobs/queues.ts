/**
 * The queues, on pg-boss. The owner's role makes them; the service's role only uses them. Jobs carry ids and nothing
 * else: what there is to do stands in our own tables, and a job that is lost is sent again from there.
 */
import { PgBoss, type Clock } from 'pg-boss';
import { connect, quoteIdentifier, roleOf, sessionConfig } from '../db.ts';

const bossSchema = 'fieldkeep_jobs';
/** Works one key range: {rangeId}. */
export const rangeQueue = 'ranges';
const deadQueue = 'ranges-dead';

export interface RangeJob {
  readonly rangeId: string;
}

/** pg-boss hands to its pool what it does not know. */
function bossOptions(databaseUrl: string) {
  const { options, onConnect } = sessionConfig({ statementTimeoutMs: 0 });
  return {
    ...{ options, onConnect },
    connectionString: databaseUrl,
    schema: bossSchema,
    application_name: 'fieldkeep jobs',
    max: 3,
    schedule: false,
    reindex: false,
    monitorVacuum: false,
  } as const;
}

/** Makes or upgrades pg-boss's schema and our queues, and lets the service's role use them. Running it again changes nothing. */
export async function migrateQueues(ownerUrl: string, serviceRole: string): Promise<void> {
  const boss = new PgBoss({ ...bossOptions(ownerUrl), supervise: false });
  boss.on('error', () => undefined); // what fails is thrown by the calls below
  await boss.start();
  try {
    await boss.createQueue(deadQueue);
    // `short`: of equal jobs (one range) one waits at most. Retries are ours: a tick sends what is not done again.
    await boss.createQueue(rangeQueue, {
      policy: 'short',
      deadLetter: deadQueue,
      retryLimit: 2,
      retryDelay: 1,
      heartbeatSeconds: 10,
      expireInSeconds: 24 * 3600,
      deleteAfterSeconds: 3600,
    });
  } finally {
    await boss.stop({ graceful: false });
  }
  if (roleOf(ownerUrl) === serviceRole) return;
  const owner = await connect(ownerUrl, { name: 'migrate' });
  const role = quoteIdentifier(serviceRole);
  try {
    // A role that is not there yet gets its rights from the first process that has it.
    if ((await owner.query('select from pg_roles where rolname = $1', [serviceRole])).rowCount === 0) return;
    await owner.query(`grant usage on schema ${bossSchema} to ${role}`);
    await owner.query(`grant select, insert, update, delete on all tables in schema ${bossSchema} to ${role}`);
    await owner.query(`grant execute on all functions in schema ${bossSchema} to ${role}`);
  } finally {
    await owner.end();
  }
}

/**
 * The boss of a running service. Errors that no call throws go to `onError`; without a listener they end the process. Tests
 * put a clock of their own in the place of the system's; then the URL must be the owner's.
 */
export async function openBoss(databaseUrl: string, onError: (error: unknown) => void, clock?: Clock): Promise<PgBoss> {
  const options = { ...bossOptions(databaseUrl), migrate: false, createSchema: false };
  const boss = new PgBoss(clock === undefined ? options : { ...options, clock });
  boss.on('error', onError);
  await boss.start();
  return boss;
}
