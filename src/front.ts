/**
 * The ports of a process: HTTPS for agents, and the one inside for scrapers and probes. What both need is made once: the
 * state of health, the counts of refusals, the metrics.
 */
import { readFileSync } from 'node:fs';
import type { Server } from 'node:http';
import type { Server as TlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Config } from './config.ts';
import type { DiskWatch } from './disk.ts';
import { openIssuer } from './embedded/issuer.ts';
import { ensureTls } from './embedded/tls.ts';
import { describeError, StartupError } from './errors.ts';
import { countLost } from './audit/loss-store.ts';
import { backlogFigures, joinHealth, readBacklog, shareHealth, type Health } from './health.ts';
import { createApp } from './http/app.ts';
import { createAuthenticator } from './http/authenticate.ts';
import type { Door } from './http/door.ts';
import type { Edge } from './http/exchange.ts';
import { createMetrics, exposeFigures, exposeSamples, listenInside, type Metrics } from './http/metrics.ts';
import { openRefusals, type Refusals } from './http/refusals.ts';
import { chooseMaxConnections, createHttpsServer, drain } from './http/server.ts';
import type { Log } from './log.ts';
import { bindOperations } from './operations/all.ts';
import { storeEntries } from './operations/refuse.ts';
import { readRetirementFigures, retirementFigures } from './retirement/figures.ts';
import { readFigures, rotationFigures } from './rotation/figures.ts';
import type { Service } from './service.ts';
import type { Services } from './services.ts';
import type { Step } from './stopping.ts';

export const requestDeadlineMs = 10_000;
/** For the answers in flight; what outlives it is cut. */
const drainMaxMs = 11_000;
const tlsLookEveryMs = 5_000;

function listen(server: Server, port: number, host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const why = error.code === 'EADDRINUSE' ? 'is taken by another program' : `cannot be used (${error.code})`;
      reject(new StartupError(`Port ${port} on ${host} ${why}. Set PORT to another one.`));
    });
    server.listen(port, host, () => resolve((server.address() as AddressInfo).port));
  });
}

async function readTls(config: Config): Promise<{ cert: string; key: string }> {
  if (config.tls === undefined) return await ensureTls(config.home);
  try {
    return { cert: readFileSync(config.tls.certFile, 'utf8'), key: readFileSync(config.tls.keyFile, 'utf8') };
  } catch {
    throw new StartupError('The files of TLS_CERT_FILE and TLS_KEY_FILE cannot be read.');
  }
}

/** Takes in a renewed certificate without a restart; files that do not fit leave the old one in use. */
function watchTls(config: Config, server: TlsServer, log: Pick<Log, 'warn' | 'error'>): NodeJS.Timeout | undefined {
  if (config.tls === undefined) return undefined;
  let current: string | undefined;
  const look = async () => {
    try {
      const files = await readTls(config);
      const text = files.cert + files.key;
      if (current !== undefined && text !== current) {
        server.setSecureContext({ ...files, minVersion: 'TLSv1.3' });
        log.warn({}, 'A new TLS certificate is in use.');
      }
      current = text;
    } catch (error) {
      log.error({ error: describeError(error) }, 'The TLS files are not right; the last certificate stays in use.');
    }
  };
  void look();
  return setInterval(() => void look(), tlsLookEveryMs);
}

export interface Front {
  /** Absent in a worker, which faces nobody. */
  readonly url?: string;
  readonly metricsUrl: string;
  readonly health: () => Promise<Health>;
}

/** What the ports have in common. */
interface Shared {
  readonly services: Services;
  readonly config: Config;
  readonly metrics: Metrics;
  readonly health: () => Promise<Health>;
  readonly undo: Step[];
}

/** Opens the ports that this process's duty asks for. `watch`: of the disk that our database is on, where we know it. */
export async function openFront(
  services: Services,
  config: Config,
  watch: DiskWatch | undefined,
  undo: Step[],
): Promise<Front> {
  const health = joinHealth(services.all.map((service) => shareHealth(service, watch)));
  const shared: Shared = { services, config, metrics: createMetrics(), health, undo };
  const https = services.api === undefined ? undefined : await openHttps(shared, services.api, watch);
  const metricsUrl = await openInside(shared, watch, https?.door);
  return { metricsUrl, health, ...(https !== undefined && { url: https.url }) };
}

const lossFigures = {
  audit_lost_groups: { text: 'Groups of audit entries that are recorded as lost, in any process.', labels: [] },
} as const;

async function openInside(
  { services, config, metrics, health, undo }: Shared,
  watch: DiskWatch | undefined,
  door: Door | undefined,
): Promise<string> {
  const { all, worker } = services;
  const { rootKeys, keeper, pool } = all[0];
  const sum = (count: (service: Service) => number) => all.reduce((total, each) => total + count(each), 0);
  const isVault = rootKeys.kind === 'vault';
  exposeFigures(metrics, () => ({
    ...rootKeys.figures(),
    ...(isVault && { vault_up: keeper.state().problem === undefined ? 1 : 0 }),
    key_unwraps_total: sum(({ keyring }) => keyring.unwraps),
    audit_queue_appends: sum(({ audit }) => audit.queued),
    audit_unavailable_total: sum(({ audit }) => audit.counters.unavailable),
    audit_groups_lost_total: sum(({ audit }) => audit.losses.lost),
    audit_groups_resent_total: sum(({ audit }) => audit.losses.resent),
    audit_streams_diverged_total: sum(({ audit }) => audit.losses.diverged),
    ...(watch?.disk() !== undefined && { disk_free_bytes: watch.disk()!.freeBytes }),
    ...door?.figures(),
  }));
  exposeSamples(metrics, 'audit_backlog', backlogFigures, () => readBacklog(pool));
  exposeSamples(metrics, 'audit', lossFigures, async () => [
    { name: 'audit_lost_groups', labels: {}, value: await countLost(pool) },
  ]);
  if (worker !== undefined) {
    exposeSamples(metrics, 'rotations', rotationFigures, () => readFigures(worker.pool, worker.keyring.state));
    exposeSamples(metrics, 'retirement', retirementFigures, () => readRetirementFigures(worker));
  }
  const { metricsPort: port, metricsHost: host } = config;
  const server = await listenInside({ registry: metrics.registry, health, port, host });
  undo.push({
    what: 'The port for metrics',
    run() {
      server.close();
      server.closeAllConnections();
    },
  });
  const near = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
  return `http://${near}:${(server.address() as AddressInfo).port}/metrics`;
}

function openDoorkeeper({ metrics, undo }: Shared, service: Service, watch: DiskWatch | undefined): Refusals {
  const refusals = openRefusals({
    store: (entries) => storeEntries(service, entries),
    mayStore: () => watch?.disk()?.state !== 'low' && watch?.disk()?.state !== 'full',
    onRefusal: (code) => metrics.observeRefusal(code),
    onError: (error) =>
      service.log.warn({ error: describeError(error) }, 'Counts of refusals could not be written; they are kept.'),
  });
  undo.push({ what: 'The count of refusals', run: () => refusals.close() });
  return refusals;
}

async function openHttps(
  shared: Shared,
  service: Service,
  watch: DiskWatch | undefined,
): Promise<{ url: string; door: Door }> {
  const { services, config, metrics, health, undo } = shared;
  const { maxConnections: wanted, lameDuckMs } = config;
  const edge: Edge = { log: service.log, metrics, requestDeadlineMs, draining: false };
  const issuer = await openIssuer(config.home);
  const refusals = openDoorkeeper(shared, service, watch);
  const app = createApp(edge, {
    operations: bindOperations(service),
    authenticate: createAuthenticator({ policy: () => service.policy, localKeys: issuer.jwks, log: service.log }),
    policy: () => service.policy,
    refuse: (refusal) => refusals.refuse(refusal),
    health,
  });
  const https = createHttpsServer(await readTls(config), app, { maxConnections: chooseMaxConnections(wanted) });
  const port = await listen(https.server, config.port, config.host);
  const tlsTimer = watchTls(config, https.server, service.log);
  undo.push({
    what: 'Answering',
    maxMs: drainMaxMs + 500,
    async run(signal) {
      for (const each of services.all) each.draining = true;
      clearInterval(tlsTimer);
      // Whoever pressed Ctrl-C waits at the terminal, and there is no balancer to tell.
      await drain(https, edge, { lameDuckMs: signal === 'SIGINT' ? 0 : lameDuckMs, deadlineMs: drainMaxMs });
    },
  });
  return { url: `https://${config.host}:${port}`, door: https.door };
}
