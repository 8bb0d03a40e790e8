/**
 * TLS for a laptop: a certificate authority of its own, and a server certificate for localhost made by it. Clients trust
 * `tls/ca.pem`. The authority stays when the server certificate is renewed.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import 'reflect-metadata'; // @peculiar/x509 wants it loaded first
import { Crypto } from '@peculiar/webcrypto';
import * as x509 from '@peculiar/x509';
import { writePrivate } from './home.ts';

const engine = new Crypto();
const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const dayMs = 86_400_000;
const caDays = 3650;
const leafDays = 365;
const renewBeforeDays = 30;

export interface TlsFiles {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
}

function serialNumber(): string {
  return Buffer.from(engine.getRandomValues(new Uint8Array(15)))
    .toString('hex')
    .replace(/^0+/, '1');
}

async function exportKey(key: CryptoKeyOf): Promise<string> {
  const der = Buffer.from(await engine.subtle.exportKey('pkcs8', key));
  const base64 = der.toString('base64').replace(/.{64}/g, '$&\n');
  return `-----BEGIN PRIVATE KEY-----\n${base64}\n-----END PRIVATE KEY-----\n`;
}

async function importKey(pem: string): Promise<CryptoKeyOf> {
  const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ''), 'base64');
  return engine.subtle.importKey('pkcs8', der, algorithm, true, ['sign']);
}

type CryptoKeyOf = Parameters<typeof engine.subtle.exportKey>[1];

async function makeAuthority(): Promise<{ cert: string; key: string }> {
  const keys = await engine.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const cert = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: serialNumber(),
      name: 'CN=Fieldkeep local authority',
      notBefore: new Date(Date.now() - dayMs),
      notAfter: new Date(Date.now() + caDays * dayMs),
      keys,
      signingAlgorithm: algorithm,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey, false, engine),
      ],
    },
    engine,
  );
  return { cert: cert.toString('pem'), key: await exportKey(keys.privateKey) };
}

async function makeLeaf(caPem: string, caKeyPem: string): Promise<{ cert: string; key: string }> {
  const ca = new x509.X509Certificate(caPem);
  const keys = await engine.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const names: x509.JsonGeneralNames = [
    { type: 'dns', value: 'localhost' },
    { type: 'ip', value: '127.0.0.1' },
    { type: 'ip', value: '::1' },
  ];
  const cert = await x509.X509CertificateGenerator.create(
    {
      serialNumber: serialNumber(),
      subject: 'CN=localhost',
      issuer: ca.subject,
      notBefore: new Date(Date.now() - dayMs),
      notAfter: new Date(Date.now() + leafDays * dayMs),
      publicKey: keys.publicKey,
      signingKey: await importKey(caKeyPem),
      signingAlgorithm: algorithm,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
        new x509.SubjectAlternativeNameExtension(names),
        await x509.AuthorityKeyIdentifierExtension.create(ca, false, engine),
      ],
    },
    engine,
  );
  return { cert: cert.toString('pem'), key: await exportKey(keys.privateKey) };
}

/** Whether a certificate can stay: readable, not about to expire, with its key beside it, and made by `ca` where given. */
function isStillGood(certFile: string, keyFile: string, ca?: string): boolean {
  try {
    const cert = new X509Certificate(readFileSync(certFile));
    return (
      Date.parse(cert.validTo) - Date.now() > renewBeforeDays * dayMs &&
      cert.checkPrivateKey(createPrivateKey(readFileSync(keyFile))) &&
      (ca === undefined || cert.verify(new X509Certificate(ca).publicKey))
    );
  } catch {
    return false; // missing, or cut short by a crash
  }
}

/** The files under `home`/tls, made on first start and renewed a month before they expire. */
export async function ensureTls(home: string): Promise<TlsFiles> {
  const folder = join(home, 'tls');
  const file = (name: string) => join(folder, name);
  const read = (name: string) => readFileSync(file(name), 'utf8');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (!isStillGood(file('ca.pem'), file('ca-key.pem'))) {
    const authority = await makeAuthority();
    writePrivate(file('ca-key.pem'), authority.key);
    writePrivate(file('ca.pem'), authority.cert);
  }
  const ca = read('ca.pem');
  if (!isStillGood(file('cert.pem'), file('key.pem'), ca)) {
    const leaf = await makeLeaf(ca, read('ca-key.pem'));
    writePrivate(file('key.pem'), leaf.key);
    writePrivate(file('cert.pem'), leaf.cert);
  }
  return { cert: read('cert.pem'), key: read('key.pem'), ca };
}
