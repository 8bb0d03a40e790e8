/** The certificate of a destroyed version, as a file that scripts/verify-certificate.ts reads. */
import { writeFileSync } from 'node:fs';
import { operator } from '../rotate/control.ts';
import { getService, mustBeOk, openApi } from '../support.ts';

export async function fetchCertificate(family: string, version: number, file: string | undefined): Promise<void> {
  const api = await openApi(getService());
  try {
    const path = `/v1/keys/${encodeURIComponent(family)}/versions/${version}/certificate`;
    const text = `${JSON.stringify(mustBeOk(await api.call(operator, 'GET', path)), null, 2)}\n`;
    if (file === undefined) {
      process.stdout.write(text);
      return;
    }
    writeFileSync(file, text);
    process.stdout.write(`${file}: verify it with: node scripts/verify-certificate.ts ${file} PUBLICKEY\n`);
  } finally {
    api.close();
  }
}
