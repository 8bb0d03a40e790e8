/**
 * The limit for the API's figures: Express and helmet behind the same TLS, parsing the body and answering the bytes that
 * it is given, and doing nothing. Run as a child of the benchmark: TLS home and answers come in argv.
 */
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import express from 'express';
import helmet from 'helmet';

const [home, answers] = process.argv.slice(2) as [string, string];
const bytes = JSON.parse(readFileSync(answers, 'utf8')) as Record<string, string>;
const app = express().disable('x-powered-by').disable('etag');
app.use(helmet());
app.use(express.json({ limit: '1mb' }));
for (const [path, answer] of Object.entries(bytes)) {
  app.post(path, (_req, res) => void res.setHeader('Cache-Control', 'no-store').type('application/json').send(answer));
}
const read = (name: string) => readFileSync(join(home, 'tls', name));
const server = createServer({ cert: read('cert.pem'), key: read('key.pem'), minVersion: 'TLSv1.3' }, app);
server.listen(0, 'localhost', () => process.stdout.write(`${(server.address() as AddressInfo).port}\n`));
