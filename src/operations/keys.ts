/** GET /v1/keys and /v1/keys/{family}: versions, states, census, last use, next rotation. For system principals. */
import { FieldkeepError } from '../errors.ts';
import type { KeyFamily } from '../keys/version.ts';
import { listMirrorWarnings } from '../keys/mirror.ts';
import { listLastUses } from '../keys/store.ts';
import { listWarnings } from '../targets/catalog.ts';
import { countMaxMs, lookUpVersions } from '../rotation/counts.ts';
import { describeSkew } from '../rotation/in-force.ts';
import { present } from '../present.ts';
import type { Service } from '../service.ts';
import { performCall } from './call.ts';
import { cutPage } from './page.ts';
import { questionsAbout } from './questions.ts';
import type { Operation } from './perform.ts';
import { describeDestructions, describeRetirements } from './retirement.ts';

/** Of the columns of a family. What takes longer than the call may is answered as it was counted last. */
async function takeCensus(service: Service, family: string, deadline: number): Promise<object[]> {
  const census: object[] = [];
  for (const column of service.policy.columns.filter((each) => each.class === family)) {
    const table = service.catalog.tables.get(column.address);
    if (table === undefined) continue;
    const counted = await lookUpVersions(service, table, column, deadline);
    const versions = counted && Object.fromEntries(counted.value);
    census.push({ table: column.address, column: column.column, ...present({ versions, countedAt: counted?.at }) });
  }
  return census;
}

async function describeFamily(service: Service, known: KeyFamily, deadline: number): Promise<object> {
  const uses = await listLastUses(service.pool, known.family);
  const census = await takeCensus(service, known.family, deadline);
  const columns = service.policy.columns.filter((each) => each.class === known.family);
  const warnings = [...listWarnings(service.catalog, columns), ...(await listMirrorWarnings(service.pool, columns))];
  const retirements = await describeRetirements(service, known.family);
  const destructions = await describeDestructions(service, known.family);
  const versions = [...known.versions.values()].map(({ version, state, createdAt, activatedAt }) => ({
    version,
    state,
    createdAt,
    activatedAt,
    lastUsedAt: uses.get(version),
    retirement: retirements.get(version),
    destruction: destructions.get(version),
  }));
  return {
    family: known.family,
    active: known.active,
    versions,
    census,
    nextRotationAt: known.nextRotationAt,
    ...(warnings.length > 0 && { warnings }),
  };
}

export const listKeys: Operation = (service, call) =>
  performCall(service, call, { action: 'keys', questions: questionsAbout(undefined, service) }, async () => {
    const families = [...service.keyring.state.families.values()];
    const { cursor = '' } = call.query;
    const rest = families.filter(({ family }) => family > cursor);
    const { page, next } = cutPage(call, rest, ({ family }) => family);
    const deadline = performance.now() + countMaxMs;
    const items = await Promise.all(page.map((each) => describeFamily(service, each, deadline)));
    const skew = await describeSkew(service.pool);
    return { body: { items, ...next, ...(skew.length > 0 && { warnings: skew }) } };
  });

export const getKey: Operation = (service, call) => {
  const family = call.params['family']!;
  return performCall(
    service,
    call,
    { action: 'keys', class: family, questions: questionsAbout(family, service) },
    async () => {
      const known = service.keyring.state.families.get(family);
      if (known === undefined) throw new FieldkeepError('class_unknown', 'There is no key family of this name.');
      return { body: await describeFamily(service, known, performance.now() + countMaxMs) };
    },
  );
};
