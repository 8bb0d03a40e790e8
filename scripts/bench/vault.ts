/**
 * The same fields through us and straight to transit, in turn, over TLS with as many connections: ours with durable audit,
 * transit with whatever audit devices the server has.
 *
 * Transit gets its fastest form: a key that is not derived and no context, so nothing binds a value to its row there.
 */
import { readFileSync } from 'node:fs';
import { StartupError } from '../../src/errors.ts';
import { makeCases, type Case } from './api.ts';
import { applyLoad, type Load } from './load.ts';
import { startService, type Service } from './service.ts';
import { median, type BenchOptions, type Section } from './table.ts';
import { openBenchVault, type BenchVault } from './vault-server.ts';

const connections = 32;
const batches = [1, 10, 100, 400];
const value = Buffer.from('GB29 NWBK 6016 1331 9268 19').toString('base64');

/** Path and body of what a case does, for transit. */
async function makeTransitCall(vault: BenchVault, { name, fields }: Case): Promise<{ path: string; body: string }> {
  const { mount } = vault.settings;
  const isBatch = name.includes('×');
  const items = Array.from({ length: fields }, () => ({ plaintext: value }));
  const encrypt = { path: `${mount}/encrypt/plain`, body: isBatch ? { batch_input: items } : { plaintext: value } };
  if (name.startsWith('encrypt')) return { path: `/v1/${encrypt.path}`, body: JSON.stringify(encrypt.body) };
  const { data = {} } = await vault.call('POST', encrypt.path, encrypt.body);
  const sealed = isBatch
    ? { batch_input: (data['batch_results'] as { ciphertext: string }[]).map(({ ciphertext }) => ({ ciphertext })) }
    : { ciphertext: data['ciphertext'] };
  return { path: `/v1/${mount}/decrypt/plain`, body: JSON.stringify(sealed) };
}

async function readUnwraps({ metricsUrl }: Service): Promise<number> {
  const text = await (await fetch(metricsUrl)).text();
  return Number(/^fieldkeep_vault_unwrap_requests_total (\d+)/m.exec(text)?.[1]);
}

async function measure(
  vault: BenchVault,
  service: Service,
  each: Case,
  { rounds, seconds }: BenchOptions,
): Promise<Section['rows'][number]> {
  const { settings, token } = vault;
  const transit = await makeTransitCall(vault, each);
  const vaultCa = settings.caFile === undefined ? undefined : readFileSync(settings.caFile, 'utf8');
  const theirs: Load[] = [];
  const ours: Load[] = [];
  let unwraps = 0;
  for (let round = 0; round <= rounds; round += 1) {
    const a = await applyLoad({
      ...{ ...transit, origin: settings.address, credential: { 'x-vault-token': token }, connections, seconds },
      ca: vaultCa ?? '',
    });
    const before = await readUnwraps(service);
    const b = await applyLoad({
      ...{ origin: service.url, ca: service.ca, path: each.path, body: each.body, connections, seconds },
      credential: { authorization: `Bearer ${service.token}` },
    });
    if (round === 0) continue; // warms up
    unwraps += (await readUnwraps(service)) - before;
    theirs.push(a);
    ours.push(b);
  }
  const ratio = (of: (load: Load) => number) => median(ours.map((load, i) => of(load) / of(theirs[i]!)));
  const rate = median(ours.map((load) => load.perSecond));
  return {
    name: each.name,
    figures: {
      'req/s': rate,
      'fields/s': rate * each.fields,
      'p50 ms': median(ours.map((load) => load.p50Ms)),
      'p99 ms': median(ours.map((load) => load.p99Ms)),
      'transit req/s': median(theirs.map((load) => load.perSecond)),
      'its p50': median(theirs.map((load) => load.p50Ms)),
      'its p99': median(theirs.map((load) => load.p99Ms)),
      'of its rate': ratio((load) => load.perSecond),
      'of its p99': ratio((load) => load.p99Ms),
      unwraps,
    },
  };
}

export async function benchVault(options: BenchOptions): Promise<Section[]> {
  const vault = await openBenchVault();
  if (vault === undefined) {
    throw new StartupError(
      'bench vault needs VAULT_ADDR and VAULT_TOKEN of a server that may be written to, or bao on PATH.',
    );
  }
  try {
    await vault.call('POST', `${vault.settings.mount}/keys/plain`, { type: 'aes256-gcm96' });
    const service = await startService(vault.environment);
    try {
      const rows: Section['rows'][number][] = [];
      for (const each of await makeCases(service, batches)) rows.push(await measure(vault, service, each, options));
      const note = `${connections} connections, TLS, load on the same machine. unwraps: how often we asked Vault for a key while measured.`;
      return [{ title: 'Beside transit', rows, note }];
    } finally {
      await service.stop();
    }
  } finally {
    await vault.close();
  }
}
