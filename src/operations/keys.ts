/** GET /v1/keys and /v1/keys/{family}: versions, states, census, last use, next rotation. For system principals. */
import { FieldkeepError } from '../errors.ts';
import type { KeyFamily } from '../keys/version.ts';
import { listMirrorWarnings } from '../keys/mirror.ts';
import { listLastUses } from '../keys/store.ts';
import { listWarnings } from '../targets/catalog.ts';
import { countVersions, type ColumnCensus } from '../rotation/census.ts';
import { databaseOf } from '../targets/targets.ts';
import type { Service } from '../service.ts';
import { performCall } from './call.ts';
import { cutPage } from './page.ts';
import { questionsAbout } from './questions.ts';
import type { Operation } from './perform.ts';
import { describeDestructions, describeRetirements } from './retirement.ts';

async function takeCensus(service: Service, family: string): Promise<ColumnCensus[]> {
  const census: ColumnCensus[] = [];
  for (const column of service.policy.columns.filter((each) => each.class === family)) {
    const table = service.catalog.tables.get(column.address);
    if (table !== undefined) census.push(await countVersions(databaseOf(service, table), table, column.column));
  }
  return census;
}

async function describeFamily(service: Service, known: KeyFamily): Promise<object> {
  const uses = await listLastUses(service.pool, known.family);
  const census = await takeCensus(service, known.family);
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
    census: census.map(({ table, column, counts }) => ({ table, column, versions: Object.fromEntries(counts) })),
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
    return { body: { items: await Promise.all(page.map((each) => describeFamily(service, each))), ...next } };
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
      return { body: await describeFamily(service, known) };
    },
  );
};
