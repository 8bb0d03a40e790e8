/**
 * The limit beside a living system: raw passes over every column, there and back, as fast as they go on one connection.
 * Run as a child of the benchmark, so that it takes nothing from the load: argv is the rows of a pass and the seconds after
 * which no further round begins, DATABASE_OWNER_URL the database. Prints {"rows", "seconds"}.
 */
import { openPool } from '../../../src/db.ts';
import { workerSettings } from '../../../src/targets/targets.ts';
import { countVersion, describePeople, findHighestVersion, indexColumnsOf } from '../engine.ts';
import type { Pace } from '../pace.ts';
import { columns, type Column } from '../people.ts';
import { rawPass } from '../raw.ts';

const [rows, seconds] = process.argv.slice(2) as [string, string];
const rowsMax = 1_000;

const owner = openPool(process.env.DATABASE_OWNER_URL!, {
  ...{ max: 2, name: 'bench raw', statementTimeoutMs: 600_000, settings: workerSettings },
});
const table = await describePeople(owner);
const total = { rows: 0, seconds: 0 };

function count(pace: Pace): void {
  total.rows += pace.rows;
  total.seconds += pace.seconds;
}

async function thereAndBack(column: Column): Promise<void> {
  const version = await findHighestVersion(owner, table, column);
  const shared = { table, columns: [column, ...indexColumnsOf(table, column)], rowsMax, ids: Number(rows), lanes: 1 };
  count(await rawPass(owner, { ...shared, from: version, to: version + 1 }));
  // A row that the application holds locked is passed over; on the way back none may be left behind.
  do count(await rawPass(owner, { ...shared, from: version + 1, to: version }));
  while ((await countVersion(owner, table, column, version + 1)) > 0);
}

const until = performance.now() + Number(seconds) * 1000;
do for (const column of columns) await thereAndBack(column);
while (performance.now() < until);
await owner.end();
process.stdout.write(`${JSON.stringify(total)}\n`);
