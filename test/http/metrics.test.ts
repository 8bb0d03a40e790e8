import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { createMetrics, exposeFigures, exposeSamples, listenInside } from '../../src/http/metrics.ts';

describe('http/metrics', () => {
  it('answers scrapers and probes on its own local port, and nothing else', async () => {
    const metrics = createMetrics();
    metrics.observe('/v1/keys/:family', 404, 'not_found', 0.002);
    metrics.observe('/v1/keys/:family', 404, 'not_found', 0.002);
    const figures = { vault_up: 1, vault_requests_total: 3 };
    exposeFigures(metrics, () => figures);
    const reasons: string[] = [];
    const health = () => Promise.resolve({ reasons, warnings: [] });
    const server = await listenInside({ registry: metrics.registry, health, port: 0, host: '127.0.0.1' });
    const { address, port } = server.address() as AddressInfo;
    assert.equal(address, '127.0.0.1');
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    assert.match(
      text,
      /fieldkeep_http_request_duration_seconds_count\{route="\/v1\/keys\/:family",status="404",code="not_found"\} 2/,
    );
    assert.match(text, /fieldkeep_vault_up 1\n/);
    assert.match(text, /fieldkeep_vault_requests_total 3\n/);
    Object.assign(figures, { vault_up: 0, vault_requests_total: 5 });
    const later = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    assert.match(later, /fieldkeep_vault_up 0\n/);
    assert.match(later, /fieldkeep_vault_requests_total 5\n/);
    assert.equal((await fetch(`http://127.0.0.1:${port}/livez`)).status, 200);
    assert.equal((await fetch(`http://127.0.0.1:${port}/readyz`)).status, 200);
    reasons.push('Vault is sealed.');
    const unready = await fetch(`http://127.0.0.1:${port}/readyz`);
    assert.equal(unready.status, 503);
    assert.match(await unready.text(), /Vault is sealed/);
    assert.match(text, /process_resident_memory_bytes/);
    assert.equal((await fetch(`http://127.0.0.1:${port}/`)).status, 404);
    assert.equal((await fetch(`http://127.0.0.1:${port}/metrics`, { method: 'POST' })).status, 404);
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
  });

  it('reads gauges with labels once a scrape, and goes on without them while they cannot be read', async () => {
    const metrics = createMetrics();
    let reads = 0;
    let broken = false;
    const help = { left: { text: 'Left.', labels: ['run'] }, speed: { text: 'Speed.', labels: ['run'] } };
    exposeSamples(metrics, 'things', help, async () => {
      reads += 1;
      await new Promise((resolve) => setTimeout(resolve, 20));
      if (broken) throw new Error('away');
      return [
        { name: 'left', labels: { run: 'ssn' }, value: 7 - reads },
        { name: 'speed', labels: { run: 'ssn' }, value: 2 },
      ];
    });
    const first = await metrics.registry.metrics();
    assert.match(first, /fieldkeep_left\{run="ssn"\} 6\n/);
    assert.match(first, /fieldkeep_speed\{run="ssn"\} 2\n/);
    assert.match(first, /fieldkeep_things_known 1\n/);
    assert.match(await metrics.registry.metrics(), /fieldkeep_left\{run="ssn"\} 5\n/);
    assert.equal(reads, 2);
    broken = true;
    const last = await metrics.registry.metrics();
    assert.match(last, /fieldkeep_things_known 0\n/);
    assert.doesNotMatch(last, /fieldkeep_left\{/);
  });
});
