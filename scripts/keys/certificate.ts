/** The certificate of a destroyed version, as a file that scripts/verify-certificate.ts reads. */
import { writeFileSync } from 'node:fs';
import { mustBeOk, operator, withApi } from '../support.ts';

export async function fetchCertificate(family: string, version: number, file: string | undefined): Promise<void> {
  const path = `/v1/keys/${encodeURIComponent(family)}/versions/${version}/certificate`;
  const certificate = await withApi(async (api) => mustBeOk(await api.call(operator, 'GET', path)));
  const text = `${JSON.stringify(certificate, null, 2)}\n`;
  if (file === undefined) return void process.stdout.write(text);
  writeFileSync(file, text);
  process.stdout.write(`${file}: verify it with: node scripts/verify-certificate.ts ${file} PUBLICKEY\n`);
}
