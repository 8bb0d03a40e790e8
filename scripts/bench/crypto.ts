/** Sealing and opening one short value, beside a bare cipher loop, other engines and a peer from npm. One thread. */
import { createCipheriv, createDecipheriv, randomBytes, webcrypto } from 'node:crypto';
import { decryptString, encryptString, generateKey, parseKey } from '@47ng/cloak';
import { open, pad, seal } from '../../src/crypto/aead.ts';
import { encodeContext } from '../../src/crypto/context.ts';
import { DataKey } from '../../src/crypto/data-key.ts';
import { parseEnvelope, formatEnvelope } from '../../src/crypto/envelope.ts';
import * as second from '../../src/crypto/webcrypto.ts';
import { median, type BenchOptions, type Section } from './table.ts';

const value = '536-22-1234';
const context = { tenant: 'acme', table: 'demo.employees', column: 'ssn', row: '123456' };
const loops = 4_000;

type Work = () => unknown;

async function time(work: Work): Promise<number> {
  const started = performance.now();
  for (let i = 0; i < loops; i += 1) {
    const result = work();
    if (result instanceof Promise) await result;
  }
  return ((performance.now() - started) / loops) * 1000;
}

async function compare(title: string, works: Readonly<Record<string, Work>>, rounds: number): Promise<Section> {
  const times = new Map(Object.keys(works).map((name) => [name, [] as number[]]));
  for (let round = 0; round <= rounds; round += 1) {
    for (const [name, work] of Object.entries(works)) {
      const us = await time(work);
      if (round > 0) times.get(name)!.push(us); // the first round warms up
    }
  }
  const base = median([...times.values()][0]!);
  const rows = [...times].map(([name, all]) => ({
    name,
    figures: { µs: median(all), 'of the loop': median(all) / base },
  }));
  return { title, rows };
}

function bareSeal(): Buffer {
  const cipher = createCipheriv('aes-256-gcm', randomBytes(32), randomBytes(12));
  return Buffer.concat([cipher.update(value, 'utf8'), cipher.final(), cipher.getAuthTag()]);
}

export async function benchCrypto({ rounds }: BenchOptions): Promise<Section[]> {
  const raw = randomBytes(64);
  const key = DataKey.from(Buffer.from(raw));
  const ctx = encodeContext('ssn', 4, context);
  const text = formatEnvelope(seal(key, 'ssn', 4, ctx, value, 16));
  const envelope = parseEnvelope(text);
  const padded = pad(value, 16);

  const gcmKey = randomBytes(32);
  const iv = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', gcmKey, iv);
  const sealed = Buffer.concat([cipher.update(value, 'utf8'), cipher.final()]);
  const tag = cipher.getAuthTag();
  const bareOpen = () => {
    const decipher = createDecipheriv('aes-256-gcm', gcmKey, iv).setAuthTag(tag);
    return decipher.update(sealed, undefined, 'utf8') + decipher.final('utf8');
  };
  const native = async () => {
    const imported = await webcrypto.subtle.importKey('raw', gcmKey, 'AES-GCM', false, ['encrypt']);
    return await webcrypto.subtle.encrypt(
      { name: 'AES-GCM', iv, additionalData: Buffer.from(ctx) },
      imported,
      Buffer.from(padded),
    );
  };
  const cloakKey = await parseKey(generateKey());
  const cloaked = await encryptString(value, cloakKey);

  return [
    await compare(
      'seal, 11 bytes',
      {
        'bare createCipheriv, random key and iv': bareSeal,
        'FE1 on node:crypto': () => formatEnvelope(seal(key, 'ssn', 4, encodeContext('ssn', 4, context), value, 16)),
        'FE1 on @peculiar/webcrypto': () => second.seal(raw, ctx, padded, randomBytes(16)),
        'native WebCrypto, AES-GCM alone': native,
        '@47ng/cloak encryptString': () => encryptString(value, cloakKey),
      },
      rounds,
    ),
    await compare(
      'open, 11 bytes',
      {
        'bare createDecipheriv': bareOpen,
        'FE1 on node:crypto': () => open(key, parseEnvelope(text), encodeContext('ssn', 4, context)),
        'FE1 on @peculiar/webcrypto': () => second.open(raw, ctx, envelope),
        '@47ng/cloak decryptString': () => decryptString(cloaked, cloakKey),
      },
      rounds,
    ),
  ];
}
