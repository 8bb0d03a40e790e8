/**
 * What a process's token may do at Vault beyond its duty, asked of Vault itself. A process that faces agents should be able
 * to unwrap and nothing else: then whoever takes it over cannot make keys, keep old ones alive or copy root keys out.
 */
import { transitKeyName, signingKeyName } from './transit.ts';
import type { Vault } from './vault.ts';

type Duty = 'api' | 'worker';

interface RightsQuestion {
  readonly mount: string;
  readonly duty: Duty;
  /** Families that the process serves, the internal one included. */
  readonly families: readonly string[];
  /** Families that the policy has and this process does not serve. */
  readonly otherFamilies: readonly string[];
}

/** Paths below the mount that a duty has no business with, for one family. */
function listForeign(duty: Duty, family: string): string[] {
  const name = transitKeyName(family);
  const forAll = [`encrypt/${name}`, `rewrap/${name}`, `datakey/plaintext/${name}`, `keys/${name}/config`];
  forAll.push(`keys/${name}/trim`, `export/encryption-key/${name}`, `backup/${name}`, `restore/${name}`);
  return duty === 'worker' ? forAll : [`datakey/wrapped/${name}`, `keys/${name}/rotate`, ...forAll];
}

/** Paths, as `path (capabilities)`, that the token may use and should not. Errors: VaultError. */
export async function listExcessRights(vault: Vault, token: string, question: RightsQuestion): Promise<string[]> {
  const { mount, duty, families, otherFamilies } = question;
  const below = [
    ...families.flatMap((family) => listForeign(duty, family)),
    ...otherFamilies.map((family) => `decrypt/${transitKeyName(family)}`),
    `sign/${signingKeyName}`,
    'keys/fk-none',
  ];
  const paths = [...below.map((path) => `${mount}/${path}`), 'sys/policies/acl/fieldkeep', `sys/mounts/${mount}`];
  const { data = {} } = await vault.call('POST', 'sys/capabilities-self', token, { paths });
  return paths.flatMap((path) => {
    const capabilities = data[path];
    if (!Array.isArray(capabilities)) return [];
    const granted = capabilities.filter((each) => each !== 'deny');
    return granted.length === 0 ? [] : [`${path} (${granted.join(', ')})`];
  });
}
