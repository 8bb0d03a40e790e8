/**
 * npm run -s token -- --agent NAME [--tenant acme] [--ttl 15m] [--scope "…"] [--on-behalf-of PERSON]
 *
 * Prints an access token of the local issuer, and nothing else, for any principal of the policy.
 */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { openIssuer } from '../src/embedded/issuer.ts';
import { StartupError } from '../src/errors.ts';
import type { CompiledPrincipal } from '../src/policy/compile.ts';
import type { Policy } from '../src/policy/policy.ts';
import { readPolicy } from '../src/policy-watch.ts';
import { home, readWords, run, text } from './support.ts';

const usage =
  'Usage: npm run -s token -- --agent NAME [--tenant acme] [--ttl 15m] [--scope "decrypt:bank:last4"] [--on-behalf-of PERSON]';
const unitSeconds: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };
const options = { agent: text, tenant: text, ttl: { ...text, default: '15m' }, scope: text, 'on-behalf-of': text };
const ttlMaxSeconds = 86_400;

function readTtl(text: string): number {
  const match = /^([1-9][0-9]{0,5})([smhd])$/.exec(text);
  const seconds = match === null ? 0 : Number(match[1]) * unitSeconds[match[2]!]!;
  if (seconds >= 1 && seconds <= ttlMaxSeconds) return seconds;
  throw new StartupError('--ttl takes a number and s, m, h or d, at most 1d: --ttl 15m');
}

/** The `sub` that the local issuer must write for a principal. */
function subjectOf(
  policy: Policy,
  name: string,
  option: string,
): { principal: CompiledPrincipal; subject: string; audience: string } {
  const principal = policy.access.principals.get(name);
  if (principal === undefined) {
    const known = [...policy.access.principals.keys()].join(', ');
    throw new StartupError(`${option}: the policy has no such principal. It has: ${known}.`);
  }
  for (const [issuerName, issuer] of policy.issuers) {
    if (!('local' in issuer)) continue;
    for (const [identity, owner] of policy.access.identities) {
      const [from, subject] = JSON.parse(identity) as [string, string];
      if (owner === name && from === issuerName) return { principal, subject, audience: issuer.aud };
    }
  }
  throw new StartupError(`${option}: the policy gives this principal no identity at the local issuer.`);
}

await run(async () => {
  const { values } = readWords(usage, { options });
  if (values.agent === undefined) throw new StartupError(usage);
  if (!existsSync(join(home, 'issuer'))) {
    throw new StartupError(`There is no local issuer in ${home} yet. Start the service once: npm start`);
  }
  const policy = readPolicy(resolve(process.env.FIELDKEEP_POLICY || 'keys-policy.json'));
  const { principal, subject, audience } = subjectOf(policy, values.agent, '--agent');
  const behalf = values['on-behalf-of'];
  const person = behalf === undefined ? undefined : subjectOf(policy, behalf, '--on-behalf-of');
  if (person !== undefined && (person.principal.kind !== 'person' || principal.kind !== 'agent')) {
    throw new StartupError('--on-behalf-of takes a person, and --agent an agent to act for them.');
  }
  if (principal.system && values.tenant !== undefined) {
    throw new StartupError('--tenant: a system principal has no tenant.');
  }
  const issuer = await openIssuer(home);
  const token = await issuer.issueToken({
    audience,
    ttlSeconds: readTtl(values.ttl),
    ...(person === undefined ? { subject } : { subject: person.subject, actor: subject }),
    ...(!principal.system && { tenant: values.tenant ?? 'acme' }),
    ...(values.scope !== undefined && { scope: values.scope }),
  });
  process.stdout.write(`${token}\n`);
});
