/** Fieldkeep's database is thrown away, and every row of the targets opens again: from their mirrors and the root keys. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { openPool, type Pool } from '../../src/db.ts';
import { exportKeys, importKeys, parseBackup } from '../../src/keys/backup.ts';
import { openEmbeddedRootKeys } from '../../src/keys/embedded.ts';
import { MirrorKeeper } from '../../src/keys/mirror-keeper.ts';
import { restoreFromMirrors, type Restored } from '../../src/keys/restore.ts';
import type { RootKeys } from '../../src/keys/root-keys.ts';
import { examine } from '../../src/health.ts';
import { policyText, rotate } from '../rotation/support.ts';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { openTestService, type TestService } from '../support/service.ts';
import { describeVault, mountTransit, openAt, openVaultServer, type VaultServer } from '../support/vault.ts';
import { columns, comeBack, decryptIn, encryptFor, goAway, openCustomer, policy, type Customer } from './mirrored.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
type Customers = Readonly<Record<'hr' | 'crm', Customer>>;
const names = ['hr', 'crm'] as const;

/** What an application knows: the values of its rows. */
interface Written {
  readonly target: 'hr' | 'crm';
  readonly id: number;
  readonly tenant: string;
  readonly value: string;
}

const targetsOf = ({ hr, crm }: Customers) => new Map(Object.entries({ hr: hr.url, crm: crm.url }));

async function openCustomers(): Promise<Customers> {
  return { hr: await openCustomer(), crm: await openCustomer() };
}

async function closeCustomers(customers: Customers): Promise<void> {
  for (const name of names) await customers[name].close();
}

async function seal(it_: TestService, { target, id, tenant, value }: Written): Promise<string> {
  const reply = await encryptFor(it_, target, id, { tenant, value });
  assert.equal(reply.status, 200, reply.text);
  return reply.body['envelope'] as string;
}

async function insert(customers: Customers, { target, id, tenant }: Written, envelope: string): Promise<void> {
  const row = [id, tenant, envelope];
  await customers[target].owner.query('insert into app.people (id, tenant, bank) values ($1, $2, $3)', row);
}

/** Rows of three tenants in two targets, under two versions: some of v1 are held back and come after the rotation. */
async function write(it_: TestService, customers: Customers): Promise<Written[]> {
  const tenants = ['acme', 'globex'];
  const all = names.flatMap((target) =>
    Array.from({ length: 12 }, (_, i): Written => {
      return { target, id: i + 1, tenant: tenants[i % 2]!, value: `${target} ${i}` };
    }),
  );
  const held: [Written, string][] = [];
  for (const each of all) {
    const envelope = await seal(it_, each);
    if (each.id > 8) held.push([each, envelope]);
    else await insert(customers, each, envelope);
  }
  assert.equal((await rotate({ ...it_, database: it_.database }, 'bank')).phase, 'done');
  for (const [each, envelope] of held) await insert(customers, each, envelope);
  const late: Written = { target: 'crm', id: 100, tenant: 'initech', value: 'the newest tenant' };
  await insert(customers, late, await seal(it_, late));
  return [...all, late];
}

async function mustOpen(it_: TestService, customers: Customers, written: readonly Written[]): Promise<Set<string>> {
  const versions = new Set<string>();
  for (const { target, id, tenant, value } of written) {
    const { rows } = await customers[target].owner.query<{ bank: string }>(
      'select bank from app.people where id = $1',
      [id],
    );
    const opened = await decryptIn(it_, target, id, rows[0]!.bank, tenant);
    assert.equal(opened.body['value'], value, opened.text);
    versions.add(String(opened.body['version']));
  }
  return versions;
}

const withPools = async <T>(customers: Customers, use: (mirrors: Map<string, Pool>) => Promise<T>): Promise<T> => {
  const open = (url: string) => openPool(url, { max: 1, name: 'test' });
  const mirrors = new Map([...targetsOf(customers)].map(([name, url]) => [name, open(url)]));
  try {
    return await use(mirrors);
  } finally {
    for (const pool of mirrors.values()) await pool.end();
  }
};

async function restore(customers: Customers, database: TestDatabase): Promise<Restored> {
  const pool = openPool(database.workerUrl, { max: 2, name: 'test' });
  try {
    return await withPools(customers, (mirrors) => restoreFromMirrors(pool, mirrors, policy));
  } finally {
    await pool.end();
  }
}

/** The whole story, with root keys that outlive the database. */
async function loseAndRestore(
  customers: Customers,
  openRootKeys: () => Promise<RootKeys>,
  bringBack: (database: TestDatabase) => Promise<void>,
): Promise<void> {
  const shared = { policy, targets: targetsOf(customers) };
  const lost = await createDatabase();
  const before = await openTestService({ ...shared, workers: false, database: lost, rootKeys: await openRootKeys() });
  const written = await write(before, customers);
  await before.close();
  await lost.drop();

  const database = await createDatabase();
  const early = await openTestService({ ...shared, database, rootKeys: await openRootKeys() });
  const { reasons } = await examine(early.service);
  assert.match(reasons.join('\n'), /The mirror of (hr|crm) knows keys .* Run npm run keys -- import --mirrors first/);
  assert.match(early.logged(), /Run npm run keys -- import --mirrors first/);
  assert.equal((await encryptFor(early, 'hr', 1)).status, 503);
  assert.equal((await early.owner.query('select 1 from fieldkeep.key_families')).rowCount, 0, 'nothing was made');
  await early.close();

  await bringBack(database);
  const after = await openTestService({ ...shared, workers: false, database, rootKeys: await openRootKeys() });
  try {
    assert.deepEqual((await examine(after.service)).reasons, []);
    assert.deepEqual([...(await mustOpen(after, customers, written))].sort(), ['1', '2']);
    assert.equal((await encryptFor(after, 'hr', 1, { tenant: 'fresh' })).body['version'], 2);
    assert.equal((await rotate({ ...after, database }, 'bank')).phase, 'done');
    assert.deepEqual([...(await mustOpen(after, customers, written))], ['3'], 'numbers go on above what was restored');
    const { rows } = await after.owner.query<{ version: number; transit: number }>(
      `select version, transit_version as transit from fieldkeep.key_versions where family = 'bank' order by 1`,
    );
    assert.deepEqual(
      rows.map(({ version }) => version),
      [1, 2, 3],
    );
    assert.ok(rows[0]!.transit < rows[1]!.transit && rows[1]!.transit < rows[2]!.transit, JSON.stringify(rows));
  } finally {
    await after.close();
    await database.drop();
  }
}

describe('a database that is lost', function () {
  this.timeout(60_000);
  let customers: Customers;
  let folder: string;
  beforeEach(async () => {
    customers = await openCustomers();
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-restore-'));
  });
  afterEach(async () => {
    await closeCustomers(customers);
    rmSync(folder, { recursive: true, force: true });
  });

  async function keys(database: TestDatabase, args: readonly string[], env: Record<string, string> = {}) {
    const policyFile = join(folder, 'policy.json');
    writeFileSync(policyFile, JSON.stringify({ ...(JSON.parse(policyText) as object), columns }));
    const child = spawn(process.execPath, ['scripts/keys.ts', ...args], {
      cwd: root,
      env: {
        ...process.env,
        ...{ DATABASE_URL: database.workerUrl, DATABASE_OWNER_URL: database.ownerUrl, VAULT_ADDR: '', NODE_ENV: '' },
        ...{ FIELDKEEP_POLICY: policyFile, TARGET_HR_URL: customers.hr.url, TARGET_CRM_URL: customers.crm.url, ...env },
      },
    });
    let [out, err] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (out += String(chunk)));
    child.stderr.on('data', (chunk: Buffer) => (err += String(chunk)));
    await once(child, 'close');
    return { out, err };
  }

  it('comes back by npm run keys, with root keys in a file', async () => {
    await loseAndRestore(
      customers,
      () => openEmbeddedRootKeys(join(folder, 'root-keys.json')),
      async (database) => {
        assert.equal(
          (await keys(database, ['import', '--mirrors'], { TARGET_CRM_URL: '' })).err,
          'The policy names targets that are not connected: set TARGET_CRM_URL.\n',
        );
        const first = await keys(database, ['import', '--mirrors']);
        assert.equal(
          first.out,
          'Added 1 families, 2 versions and 6 wrapped data keys from the mirrors of hr, crm.\n',
          first.err,
        );
        const again = await keys(database, ['import', '--mirrors']);
        assert.match(again.out, /^Added 0 families, 0 versions and 0 wrapped data keys/);
        assert.match((await keys(database, ['import', 'FILE', '--mirrors'])).err, /^Usage: .*import --mirrors/);
      },
    );
  });

  describeVault('with root keys in a Vault', () => {
    let server: VaultServer;
    before(async () => {
      server = await openVaultServer();
    });
    after(() => server.close());

    it('comes back', async () => {
      const mount = await mountTransit(server);
      await loseAndRestore(
        customers,
        () => Promise.resolve(openAt(server, { mount }).rootKeys),
        async (database) => {
          const restored = await restore(customers, database);
          assert.deepEqual(restored, { families: 1, versions: 2, dataKeys: 6, closed: [] });
        },
      );
    });
  });
});

describe('mirrors that are imported', function () {
  this.timeout(60_000);
  let customers: Customers;
  let folder: string;
  let original: TestDatabase;
  /** Exported before the rotation, and after. */
  const backups = { old: '', new: '' };
  let database: TestDatabase;
  let owner: Pool;

  before(async () => {
    customers = await openCustomers();
    folder = mkdtempSync(join(tmpdir(), 'fieldkeep-restore-'));
    original = await createDatabase();
    const rootKeys = await openEmbeddedRootKeys(join(folder, 'root-keys.json'));
    const shared = { policy, targets: targetsOf(customers), rootKeys };
    const it_ = await openTestService({ ...shared, workers: false, database: original });
    for (const target of names) await encryptFor(it_, target, 1);
    backups.old = await exportKeys(it_.service.pool);
    await rotate({ ...it_, database: original }, 'bank');
    backups.new = await exportKeys(it_.service.pool);
    await new MirrorKeeper((error) => assert.fail(String(error))).look(it_.service);
    await it_.close();
    for (const name of names) {
      await customers[name].owner.query('create table app.kept as table fieldkeep.wrapped_keys');
    }
  });
  after(async () => {
    await closeCustomers(customers);
    await original.drop();
    rmSync(folder, { recursive: true, force: true });
  });
  beforeEach(async () => {
    database = await createDatabase();
    owner = openPool(database.ownerUrl, { max: 2, name: 'owner' });
    for (const name of names) {
      await customers[name].owner.query('truncate fieldkeep.wrapped_keys');
      await customers[name].owner.query('insert into fieldkeep.wrapped_keys table app.kept');
    }
  });
  afterEach(async () => {
    await owner.end();
    await database.drop();
  });

  const listVersions = async () => {
    const { rows } = await owner.query<{ text: string }>(
      `select version || ' ' || state as text from fieldkeep.key_versions where family = 'bank' order by 1`,
    );
    return rows.map((row) => row.text);
  };
  const isEmpty = async () => (await owner.query('select 1 from fieldkeep.key_families')).rowCount === 0;
  const change = (name: 'hr' | 'crm', set: string) =>
    customers[name].owner.query(`update fieldkeep.wrapped_keys set ${set}`);

  it('hold what an export holds of their families, schedule included', async () => {
    assert.deepEqual(await restore(customers, database), { families: 1, versions: 2, dataKeys: 3, closed: [] });
    const bank = (text: string) =>
      text
        // Ours has microseconds, the mirror milliseconds; a time's last zeros are not written.
        .replaceAll(/\.(\d{1,6})\+00:00/g, (_all, digits: string) => `.${digits.slice(0, 3).padEnd(3, '0')}`)
        .split('\n')
        .filter((line) => line.includes('"family":"bank"'));
    const [schedule, ...rest] = bank(await exportKeys(owner));
    const [expected, ...others] = bank(backups.new);
    assert.deepEqual(rest, others);
    const dueOf = (line: string) => Date.parse((JSON.parse(line) as { nextRotationAt: string }).nextRotationAt);
    assert.ok(Math.abs(dueOf(schedule!) - dueOf(expected!)) < 60_000, `${schedule} ${expected}`);
  });

  it('bring an older backup forward, and never back', async () => {
    await importKeys(owner, parseBackup(backups.old));
    assert.deepEqual(await restore(customers, database), { families: 0, versions: 1, dataKeys: 2, closed: [] });
    assert.deepEqual(await listVersions(), ['1 decrypt-only', '2 active']);
    await change('hr', `state = 'active'`);
    assert.equal((await restore(customers, database)).versions, 0);
    assert.deepEqual(await listVersions(), ['1 decrypt-only', '2 active']);
  });

  it('that were not told of the activation make the newest version active: rows may be sealed under it', async () => {
    for (const name of names) await change(name, `state = case version when 1 then 'active' else 'pending' end`);
    await restore(customers, database);
    assert.deepEqual(await listVersions(), ['1 decrypt-only', '2 active']);
  });

  it('leave a version pending that is pending here, for its rotation goes on', async () => {
    await importKeys(
      owner,
      parseBackup(
        backups.new
          .replace('"state":"decrypt-only"', '"state":"active"')
          .replace(/("version":2,"state":)"active"/, '$1"pending"'),
      ),
    );
    for (const name of names) await change(name, `state = case version when 1 then 'active' else 'pending' end`);
    await restore(customers, database);
    assert.deepEqual(await listVersions(), ['1 active', '2 pending']);
  });

  it('of which one is behind are put together, the later state counting', async () => {
    await customers.hr.owner.query('delete from fieldkeep.wrapped_keys where version = 2');
    await change('hr', `state = 'active'`);
    await restore(customers, database);
    assert.deepEqual(await listVersions(), ['1 decrypt-only', '2 active']);
  });

  it('close what one of them knows as compromised, and say that nothing seals', async () => {
    await change('crm', `state = 'compromised'`);
    assert.deepEqual((await restore(customers, database)).closed, ['bank']);
    assert.deepEqual(await listVersions(), ['1 compromised', '2 compromised']);
  });

  for (const [what, set, pattern] of [
    [
      'a key',
      `fingerprint = decode(repeat('ab', 16), 'hex')`,
      /^A tenant's key for version \d of family bank is another one in the mirror of crm than in the mirror of hr/,
    ],
    [
      'a version',
      'transit_version = transit_version + 5',
      /^Version \d of family bank is another one in the mirror of crm than in the mirror of hr/,
    ],
    ['anything', `family = 'NOT A FAMILY'`, /^A row of the mirror of crm is no wrapped key/],
  ] as const) {
    it(`that disagree about ${what} are not imported`, async () => {
      await change('crm', set);
      await assert.rejects(restore(customers, database), { code: 'conflict', message: pattern });
      assert.ok(await isEmpty());
    });
  }

  it('are all of them or none: one that is away is named', async () => {
    goAway(customers.crm);
    try {
      await assert.rejects(restore(customers, database), {
        ...{ code: 'database_unavailable', message: 'Target crm cannot be reached. Nothing was imported.' },
      });
    } finally {
      comeBack(customers.crm);
    }
    assert.ok(await isEmpty());
  });

  it('are refused by a database in which a service has begun anew', async () => {
    const rootKeys = await openEmbeddedRootKeys(join(folder, 'root-keys.json'));
    const it_ = await openTestService({ database, rootKeys }); // a policy without targets asks no mirror
    await it_.close();
    const advice = /nothing was imported\. If the service was started .* begin with an empty one again\.$/;
    await assert.rejects(restore(customers, database), { code: 'conflict', message: advice });
    await owner.query(`update fieldkeep.key_versions set state = 'decrypt-only' where family = 'bank'`);
    for (const name of names) await customers[name].owner.query('delete from fieldkeep.wrapped_keys where version = 1');
    await assert.rejects(restore(customers, database), { code: 'conflict', message: advice });
    assert.deepEqual(await listVersions(), ['1 decrypt-only']);
  });

  it('are asked before a first family is made: a target that is away, or not connected, has to be waited for', async () => {
    const rootKeys = await openEmbeddedRootKeys(join(folder, 'root-keys.json'));
    for (const name of names) await customers[name].owner.query('truncate fieldkeep.wrapped_keys');
    goAway(customers.crm);
    const it_ = await openTestService({ policy, targets: targetsOf(customers), database, rootKeys });
    try {
      assert.match(it_.logged(), /Target crm cannot be reached\. Our own database is empty/);
      assert.match((await examine(it_.service)).reasons.join('\n'), /Target crm cannot be reached/);
      assert.ok(await isEmpty());
      comeBack(customers.crm);
      const deadline = performance.now() + 10_000;
      let reasons: readonly string[];
      do {
        await sleep(100);
        ({ reasons } = await examine(it_.service));
      } while (reasons.length > 0 && performance.now() < deadline);
      assert.deepEqual(reasons, []);
      assert.ok(!(await isEmpty()));
    } finally {
      comeBack(customers.crm);
      await it_.close();
    }
  });
});
