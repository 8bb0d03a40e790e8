/**
 * POST /v1/search-tokens: the tokens under which rows with a value may stand in an index column, one for every key
 * version whose rows a search must find, newest first. They hold until `expiresAt`: re-encrypting under a new version
 * begins only after the last answer that lacks the new version's token has expired, so no search misses a row.
 */
import { indexToken, normalise, stripToAscii, type Normalise } from '../crypto/blind-index.ts';
import { valueDigest, type DataKey } from '../crypto/data-key.ts';
import { encodeContext } from '../crypto/context.ts';
import { FieldkeepError } from '../errors.ts';
import { findIndexes, listSearchable, type KeyVersion } from '../keys/version.ts';
import { getNormal } from '../values/value.ts';
import { searchTokenTtlMs } from '../rotation/phase.ts';
import { checkColumn, getClass, performFields, type Place, type Reading, type Verb, type Work } from './field.ts';
import type { Operation } from './perform.ts';

interface SearchItem {
  readonly class: string;
  readonly value: string;
  readonly context: Place;
  readonly index?: string;
}

/** The one index that the request means. Errors: `request_invalid` naming what there is. */
function chooseIndex(names: readonly string[], { index, context }: SearchItem): string {
  const where = `column ${context.column} of table ${context.table}`;
  if (index === undefined) {
    if (names.length === 1) return names[0]!;
    const detail = names.length === 0 ? `There is no index on ${where}.` : `Name one index of ${where} in index.`;
    throw new FieldkeepError('request_invalid', detail);
  }
  if (names.includes(index)) return index;
  throw new FieldkeepError('request_invalid', `There is no index of that name on ${where}.`);
}

/** Retired versions are only read; a tenant's key under the active or the coming version is made when it lacks one. */
function keyFor(work: Work, version: KeyVersion): DataKey | Promise<DataKey | undefined> {
  const { keyring } = work.service;
  const making = version.state === 'active' || version.state === 'pending';
  return making
    ? keyring.getOrMake(work.tenant, version.family, version.version)
    : keyring.get(work.tenant, version.family, version.version);
}

/**
 * The normal forms under which a version may have indexed the value. One that normalises by another rule than the search
 * may hold the value as its rule has the search's form, or as releases before had it, which dropped what is not ASCII.
 */
function listForms(
  how: Normalise | undefined,
  searched: Normalise | undefined,
  normal: string,
  value: string,
): string[] {
  if (how === searched) return [normal];
  const forms = [normalise(how, normal), stripToAscii(how, value)];
  return [...new Set(forms.filter((form) => form !== undefined))];
}

const verb: Verb<SearchItem, Reading> = {
  read(item) {
    return { ofClass: true, question: { action: 'search', class: item.class }, place: item.context };
  },
  async compute(work, item, { place }, _decision, facts) {
    getClass(work.policy, item.class);
    checkColumn(work.policy, place);
    const expiresAt = new Date(Date.now() + searchTokenTtlMs).toISOString();
    const versions = listSearchable(work.state, item.class);
    const indexesOf = (version: KeyVersion) => findIndexes(version, place.table, place.column);
    const name = chooseIndex([...new Set(versions.flatMap(indexesOf).map((each) => each.name))], item);
    const tokens: string[] = [];
    const searched = (versions.find(({ state }) => state === 'active') ?? versions[0])?.normalise;
    const normal = getNormal(searched, item.class, item.value, 'value');
    for (const version of versions) {
      const index = indexesOf(version).find((each) => each.name === name);
      const key = index === undefined ? undefined : await keyFor(work, version);
      if (index === undefined || key === undefined) continue;
      const where = { tenant: work.tenant, table: index.table, column: index.column, index: name, bits: index.bits };
      for (const form of listForms(version.normalise, searched, normal, item.value)) {
        const token = indexToken(key, version.version, where, form);
        if (token !== undefined) tokens.push(token);
      }
      if (version.state !== 'active') continue;
      const ctx = encodeContext(version.family, version.version, { ...place, tenant: work.tenant, row: '' });
      facts.input = valueDigest(key, work.requestId, work.item, ctx, item.value);
      facts.keyVersion = version.version;
    }
    return { tokens, expiresAt };
  },
};

export const searchTokens: Operation = (service, call) => performFields(service, call, 'search', verb);
