/** Local TLS: what a client with ca.pem trusts, how long, and what stays when a certificate is renewed. */
import 'reflect-metadata'; // @peculiar/x509 wants it loaded first
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, get } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import { Crypto } from '@peculiar/webcrypto';
import * as x509 from '@peculiar/x509';
import { ensureTls, type TlsFiles } from '../../src/embedded/tls.ts';
import { makeFolder, makeHome } from './support.ts';

const dayMs = 86_400_000;

/** Asks a server with the files over `host`; the protocol that was agreed on, and the error if the client refused. */
async function visit(files: TlsFiles, host: string, ca: string, maxVersion?: 'TLSv1.2'): Promise<string> {
  const server = createServer({ cert: files.cert, key: files.key, minVersion: 'TLSv1.3' }, (_, response) =>
    response.end(),
  );
  server.listen(0);
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  try {
    const options = { ca, agent: false, ...(maxVersion !== undefined && { maxVersion }) } as const;
    return await new Promise((resolve, reject) => {
      get(`https://${host}:${port}/`, options, (response) => {
        resolve((response.socket as TLSSocket).getProtocol() ?? '');
        response.resume();
      }).on('error', reject);
    });
  } finally {
    server.close();
  }
}

/** A server certificate by the authority of the files that ends in `days`, put in place of the one that is there. */
async function ageCertificate(home: string, days: number): Promise<void> {
  const engine = new Crypto();
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const import_ = async (file: string, usage: 'sign') => {
    const der = Buffer.from(readFileSync(join(home, 'tls', file), 'utf8').replace(/-----[^-]+-----|\s/g, ''), 'base64');
    return engine.subtle.importKey('pkcs8', der, algorithm, true, [usage]);
  };
  const present = new x509.X509Certificate(readFileSync(join(home, 'tls', 'cert.pem')));
  const cert = await x509.X509CertificateGenerator.create(
    {
      serialNumber: '0102',
      subject: present.subject,
      issuer: present.issuer,
      notBefore: new Date(Date.now() - 300 * dayMs),
      notAfter: new Date(Date.now() + days * dayMs),
      publicKey: present.publicKey,
      signingKey: await import_('ca-key.pem', 'sign'),
      signingAlgorithm: algorithm,
      extensions: present.extensions,
    },
    engine,
  );
  writeFileSync(join(home, 'tls', 'cert.pem'), cert.toString('pem'));
}

describe('embedded/tls', () => {
  const folder = makeFolder();
  const home = makeHome(folder.path);
  let files: TlsFiles;
  before(async () => {
    files = await ensureTls(home);
  });
  after(() => folder.remove());

  it('is trusted with ca.pem, by name and by both addresses, over TLS 1.3', async () => {
    const ca = readFileSync(join(home, 'tls', 'ca.pem'), 'utf8');
    assert.equal(ca, files.ca);
    for (const host of ['localhost', '127.0.0.1']) assert.equal(await visit(files, host, ca), 'TLSv1.3', host);
    const leaf = new X509Certificate(files.cert);
    assert.equal(leaf.checkIP('::1'), '::1');
    assert.equal(leaf.checkHost('example.com'), undefined);
  });

  it('is not trusted without it, nor below TLS 1.3', async () => {
    const other = await ensureTls(makeHome(folder.path, 'other'));
    await assert.rejects(visit(files, 'localhost', other.ca), /certificate/);
    await assert.rejects(visit(files, 'localhost', files.ca, 'TLSv1.2'), /protocol version/);
  });

  it('cannot sign for others: only the authority is one, and for servers only', () => {
    const [ca, leaf] = [new X509Certificate(files.ca), new X509Certificate(files.cert)];
    assert.ok(ca.ca && !leaf.ca);
    assert.ok(leaf.checkIssued(ca) && leaf.verify(ca.publicKey));
    assert.deepEqual(leaf.keyUsage, ['1.3.6.1.5.5.7.3.1']);
    assert.notEqual(ca.serialNumber, leaf.serialNumber);
  });

  it('lies in files for the owner only', () => {
    assert.equal(statSync(join(home, 'tls')).mode & 0o777, 0o700);
    for (const file of ['ca.pem', 'ca-key.pem', 'cert.pem', 'key.pem']) {
      assert.equal(statSync(join(home, 'tls', file)).mode & 0o777, 0o600, file);
    }
  });

  it('stays the same from start to start', async () => {
    assert.deepEqual(await ensureTls(home), files);
  });

  for (const [what, days] of [
    ['has expired', -1],
    ['expires within a month', 20],
  ] as const) {
    it(`is renewed under the same authority when it ${what}`, async () => {
      await ageCertificate(home, days);
      const aged = readFileSync(join(home, 'tls', 'cert.pem'), 'utf8');
      const renewed = await ensureTls(home);
      assert.notEqual(renewed.cert, aged);
      assert.equal(renewed.ca, files.ca);
      assert.ok(Date.parse(new X509Certificate(renewed.cert).validTo) > Date.now() + 300 * dayMs);
      assert.equal(await visit(renewed, 'localhost', files.ca), 'TLSv1.3');
    });
  }

  for (const file of ['cert.pem', 'key.pem'] as const) {
    it(`is renewed under the same authority when ${file} is gone or cut short`, async () => {
      rmSync(join(home, 'tls', file));
      assert.equal((await ensureTls(home)).ca, files.ca);
      writeFileSync(join(home, 'tls', file), '');
      assert.equal(await visit(await ensureTls(home), 'localhost', files.ca), 'TLSv1.3');
    });
  }

  it('is made anew, all of it, when the authority is gone', async () => {
    rmSync(join(home, 'tls', 'ca-key.pem'));
    const made = await ensureTls(home);
    assert.notEqual(made.ca, files.ca);
    assert.equal(await visit(made, 'localhost', made.ca), 'TLSv1.3');
  });
});
