import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { createMetrics, listenForMetrics } from '../../src/http/metrics.ts';

describe('http/metrics', () => {
  it('answers /metrics on its own local port, and nothing else', async () => {
    const metrics = createMetrics();
    metrics.observe('/v1/keys/:family', 404, 'not_found', 0.002);
    metrics.observe('/v1/keys/:family', 404, 'not_found', 0.002);
    const server = await listenForMetrics(metrics.registry, 0);
    const { address, port } = server.address() as AddressInfo;
    assert.equal(address, '127.0.0.1');
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    assert.match(
      text,
      /fieldkeep_http_request_duration_seconds_count\{route="\/v1\/keys\/:family",status="404",code="not_found"\} 2/,
    );
    assert.match(text, /process_resident_memory_bytes/);
    assert.equal((await fetch(`http://127.0.0.1:${port}/`)).status, 404);
    assert.equal((await fetch(`http://127.0.0.1:${port}/metrics`, { method: 'POST' })).status, 404);
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
  });
});
