/**
 * What the calls on single fields (encrypt, decrypt, reencrypt, match, search-tokens) have in common: each verb says
 * how it reads an item and what it computes; here an item is decided and computed, alone or as one of a batch, and its
 * facts become the audit entry.
 *
 *     read      the request only: class, view, place. Bad input ends here, before any decision.
 *     decide    policy/access.ts
 *     check     what is registered for the place; who may not ask does not learn of it
 *     compute   looks things up, opens and seals
 */
import { formatEntry, formatItem, itemsRoot, type Entry, type Item } from '../audit/entry.ts';
import { isContextPart } from '../crypto/context.ts';
import { DataKey, rowDigest } from '../crypto/data-key.ts';
import type { Envelope } from '../crypto/envelope.ts';
import { FieldkeepError } from '../errors.ts';
import { auditFamily, getActive, getReadable, isCompromised, type KeyState, type KeyVersion } from '../keys/version.ts';
import { decide, type Decision, type Question } from '../policy/access.ts';
import { findColumn, type FieldClass, type Policy, type RegisteredColumn } from '../policy/policy.ts';
import { isCanonicalRow } from '../targets/catalog.ts';
import { getContext } from '../values/place.ts';
import type { Service } from '../service.ts';
import { beginEntry, mustServe, perform, toFieldkeepError, type Attempt, type Call, type Result } from './perform.ts';

type MaybePromise<T> = T | Promise<T>;

/** Where a value is, as the request says it; search has no row. */
export interface Place {
  readonly table: string;
  readonly column: string;
  readonly row?: string;
}

/** One run over one item: a consistent picture of policy and keys, and who asks. */
export interface Work {
  readonly service: Service;
  readonly policy: Policy;
  readonly state: KeyState;
  readonly tenant: string;
  readonly requestId: string;
  /** Key versions that the call used, of all its items: the entry tells of them. */
  readonly uses: Set<KeyVersion>;
  /** The item's number in the batch, 0 if single; part of value digests. */
  readonly item: number;
}

/** What the entry tells of an item; computing fills it in as far as it gets. */
interface Facts {
  view?: string;
  input?: string;
  output?: string;
  keyVersion?: number;
}

export interface Reading {
  readonly question: Question & { class: string };
  readonly place: Place;
  /** Where the value moves, if that is another place. */
  readonly to?: Place;
  /** What is opened, if anything is. */
  readonly envelope?: Pick<Envelope, 'family' | 'version'>;
  /** The place must not be registered for another class: what is written there, or searched. */
  readonly ofClass?: true;
}

export interface Verb<I, R extends Reading> {
  readonly read: (item: I) => R;
  /** Answers the members of the response. Errors are FieldkeepErrors. */
  readonly compute: (work: Work, item: I, reading: R, decision: Decision, facts: Facts) => MaybePromise<object>;
}

interface Ran {
  readonly facts: Facts;
  readonly reading?: Reading;
  readonly decision?: Decision;
  readonly answer?: object;
  readonly error?: FieldkeepError;
}

function forbidden({ ruleId, missingScope: scope }: Decision, opened: Reading['envelope']): FieldkeepError {
  if (scope === undefined) return new FieldkeepError('forbidden', 'The policy does not allow this.');
  const detail =
    ruleId === 'compromised' && opened !== undefined
      ? `Version ${opened.version} of family ${opened.family} is compromised, and no grant of ${scope} covers that.`
      : `The principal lacks the scope ${scope}.`;
  return new FieldkeepError('forbidden', detail, { missingScope: scope });
}

/** Throws `forbidden`, naming the missing scope, unless the decision is allow. */
export function mustAllow(decision: Decision, opened?: Reading['envelope']): void {
  if (decision.decision === 'deny') throw forbidden(decision, opened);
}

/**
 * Only the picture of key state is asked, whether the version is compromised: nothing is looked up before the decision.
 * Who moves a value to another place needs the scope for that as well; the first refusal decides.
 */
function decideReading({ policy, state }: Work, { principal }: Call, reading: Reading): Decision {
  const { question, envelope, to } = reading;
  const compromised = envelope !== undefined && isCompromised(state, envelope.family, envelope.version);
  const decision = decide(policy, principal, compromised ? { ...question, compromised } : question);
  if (to === undefined || decision.decision === 'deny') return decision;
  const moving = decide(policy, principal, { action: 'move', class: question.class });
  return moving.decision === 'deny' ? moving : decision;
}

function runItem<I, R extends Reading>(verb: Verb<I, R>, work: Work, call: Call, item: I): MaybePromise<Ran> {
  const facts: Facts = {};
  let reading: R | undefined;
  let decision: Decision | undefined;
  const failed = (error: unknown): Ran => ({
    facts,
    error: toFieldkeepError(work.service, error),
    ...(reading !== undefined && { reading }),
    ...(decision !== undefined && { decision }),
  });
  try {
    mustServe(work.service);
    reading = verb.read(item);
    decision = decideReading(work, call, reading);
    if (decision.view !== undefined) facts.view = decision.view;
    mustAllow(decision, reading.envelope);
    checkPlace(work, reading);
    const answer = verb.compute(work, item, reading, decision, facts);
    if (answer instanceof Promise) {
      const [read, decided] = [reading, decision];
      return answer.then((done) => ({ facts, reading: read, decision: decided, answer: done }), failed);
    }
    return { facts, reading, decision, answer };
  } catch (error) {
    return failed(error);
  }
}

/** Errors: `request_invalid` where the place is registered for something else. */
function checkPlace(work: Work, { question, place, to, ofClass }: Reading): void {
  if (ofClass === true) checkClassOf(work.policy, to ?? place, question.class);
  checkRow(work, place);
  if (to !== undefined) checkRow(work, to);
}

/** A registered column's row must be spelled as Postgres spells it, or its envelope would not re-encrypt. */
function checkRow({ policy, service }: Work, place: Place): void {
  if (place.row === undefined) return;
  const column = findColumn(policy, place.table, place.column);
  const types = column === undefined ? undefined : service.catalog.keyTypes.get(place.table);
  const isUnseen = column?.database !== undefined || !service.catalog.seen.has(place.table);
  if (types === undefined && column !== undefined && isUnseen) {
    // An envelope for a row that is spelled otherwise would not re-encrypt: rather none than that one.
    throw new FieldkeepError(
      'database_unavailable',
      `No worker has seen the key of table ${place.table} yet: GET /v1/keys says what is in its way.`,
    );
  }
  if (types === undefined || isCanonicalRow(types, place.row)) return;
  throw new FieldkeepError(
    'request_invalid',
    `context.row is not spelled as the key of ${place.table} is in Postgres.`,
  );
}

/** The class, which a decision has been made about. Errors: `class_unknown`. */
export function getClass(policy: Policy, name: string): FieldClass {
  const found = policy.classes.get(name);
  if (found === undefined) throw new FieldkeepError('class_unknown', 'There is no class of this name.');
  return found;
}

/** The registered column, or undefined where the policy lets unregistered ones be. Errors: `column_unknown`. */
export function checkColumn(policy: Policy, place: Place): RegisteredColumn | undefined {
  const column = findColumn(policy, place.table, place.column);
  if (column === undefined && policy.unregistered === 'deny') {
    throw new FieldkeepError(
      'column_unknown',
      'The column of context.table that context.column names is not registered.',
    );
  }
  return column;
}

/** A registered column holds one class; asking for another is a mistake in the request. */
function checkClassOf(policy: Policy, place: Place, name: string): void {
  const column = findColumn(policy, place.table, place.column);
  if (column === undefined || column.class === name) return;
  const where = `Column ${place.column} of table ${place.table}`;
  throw new FieldkeepError('request_invalid', `${where} is registered for class ${column.class}, not for this one.`);
}

/** CTX of the caller's place under a version. Errors: `request_invalid` where there is no such place. */
export function contextBytes({ tenant }: Work, version: KeyVersion, { table, column, row = '' }: Place): Buffer {
  return getContext(version, { tenant, table, column, row });
}

/** The version and key that an envelope names. Errors: `version_unknown`, `version_destroyed`, `decryption_failed`. */
export function withOpeningKey<T>(
  work: Work,
  envelope: { family: string; version: number },
  use: (key: DataKey | undefined, version: KeyVersion) => T,
): MaybePromise<T> {
  const version = getReadable(work.state, envelope.family, envelope.version);
  work.uses.add(version);
  const key = work.service.keyring.get(work.tenant, envelope.family, envelope.version);
  return key instanceof DataKey ? use(key, version) : key.then((found) => use(found, version));
}

/**
 * The active version and its key, made on first use, for a column (undefined: one that is not registered). In a target of
 * its own the column's mirror holds the key before anything is sealed. Errors: `keys_not_ready`, `vault_unavailable`.
 */
export function withSealingKey<T>(
  work: Work,
  family: string,
  column: RegisteredColumn | undefined,
  use: (key: DataKey, version: KeyVersion) => T,
): MaybePromise<T> {
  const version = getActive(work.state, family);
  work.uses.add(version);
  const key = work.service.keyring.getOrMake(work.tenant, family, version.version, column?.database);
  return key instanceof DataKey ? use(key, version) : key.then((made) => use(made, version));
}

interface DigestKey {
  readonly key: DataKey;
  readonly version: number;
}

/**
 * The tenant's key for row digests. A refusal must be written down even when the keeper of root keys is away, so its
 * absence is not an error here: such an entry has no row digest.
 */
function findDigestKey(work: Work): MaybePromise<DigestKey | undefined> {
  const version = work.state.families.get(auditFamily)?.active;
  if (version === undefined) return undefined;
  const key = work.service.keyring.getOrMake(work.tenant, auditFamily, version);
  if (key instanceof DataKey) return { key, version };
  return key.then(
    (made) => ({ key: made, version }),
    () => undefined,
  );
}

/** Undefined where there is no row, or none that could be one: it is too long, or no text. */
function digestRow(digestKey: DigestKey | undefined, place: Place | undefined): string | undefined {
  if (digestKey === undefined || place?.row === undefined || place.row === '') return undefined;
  const { table, column, row } = place;
  if (![table, column, row].every(isContextPart)) return undefined;
  return rowDigest(digestKey.key, digestKey.version, table, column, row);
}

/** The members that an entry and a batch's item share; formatting leaves out what is undefined. */
function describe({ policy }: Work, ran: Ran, digestKey: DigestKey | undefined): Item {
  const { reading, decision, error, facts } = ran;
  const { table, column } = reading?.place ?? noPlace;
  const outcome = decision?.decision === 'deny' ? 'denied' : error === undefined ? 'ok' : 'failed';
  const item: { [K in keyof Item]: Item[K] | undefined } & { outcome: Item['outcome'] } = {
    outcome,
    code: error?.code,
    // Only a name that the policy knows: what else stands there may be a value in the wrong place.
    class: reading !== undefined && policy.classes.has(reading.question.class) ? reading.question.class : undefined,
    view: facts.view,
    table,
    column,
    rowDigest: digestRow(digestKey, reading?.place),
    toTable: reading?.to?.table,
    toColumn: reading?.to?.column,
    toRowDigest: digestRow(digestKey, reading?.to),
    input: facts.input,
    output: facts.output,
    keyVersion: facts.keyVersion,
    ref: undefined,
  };
  return item as Item;
}

const noPlace: Partial<Place> = {};

function singleAttempt(work: Work, call: Call, action: string, ran: Ran, digestKey: DigestKey | undefined): Attempt {
  const { ref: _batchesOnly, ...item } = describe(work, ran, digestKey);
  const entry: Entry = { ...beginEntry(call, action), ...item };
  entry.policyVersion = work.policy.version;
  if (ran.decision !== undefined) {
    entry.decision = ran.decision.decision;
    entry.ruleId = ran.decision.ruleId;
  }
  const purpose = ran.reading?.question.purpose;
  if (purpose !== undefined) entry.purpose = purpose;
  const record = { line: formatEntry(entry), uses: work.uses };
  return ran.error === undefined ? { record, answer: { body: ran.answer } } : { record, error: ran.error };
}

function answerItem(ran: Ran, ref: string | undefined): object {
  const { error } = ran;
  const answer = error === undefined ? ran.answer : { error: { code: error.code, detail: error.message } };
  return ref === undefined ? answer! : { ref, ...answer };
}

/** The value that all have, if they agree. */
function common<T>(values: readonly (T | undefined)[]): T | undefined {
  return values.every((each) => each === values[0]) ? values[0] : undefined;
}

function batchOutcome(rans: readonly Ran[]): Pick<Entry, 'decision' | 'outcome'> {
  const denied = rans.filter((ran) => ran.decision?.decision === 'deny').length;
  const failed = rans.filter((ran) => ran.error !== undefined).length;
  if (denied === rans.length) return { decision: 'deny', outcome: 'denied' };
  return { decision: 'allow', outcome: failed === 0 ? 'ok' : failed === rans.length ? 'failed' : 'partial' };
}

function batchAttempt(
  work: Work,
  call: Call,
  action: string,
  rans: readonly Ran[],
  refs: readonly (string | undefined)[],
  digestKey: DigestKey | undefined,
): Attempt {
  const items = rans.map((ran, i): Item => {
    const item = describe(work, ran, digestKey);
    const ref = refs[i];
    if (ref !== undefined) item.ref = ref;
    return item;
  });
  const lines = items.map(formatItem);
  const shared = ['class', 'view', 'table', 'column', 'toTable', 'toColumn', 'code', 'keyVersion'] as const;
  const entry: Entry = Object.assign(beginEntry(call, action), batchOutcome(rans), {
    ...Object.fromEntries(shared.map((name) => [name, common(items.map((item) => item[name]))])),
    purpose: common(rans.map((ran) => ran.reading?.question.purpose)),
    ruleId: common(rans.map((ran) => ran.decision?.ruleId)),
    policyVersion: work.policy.version,
    count: rans.length,
    itemsRoot: itemsRoot(lines),
  });
  const body = { items: rans.map((ran, i) => answerItem(ran, refs[i])) };
  return { record: { line: formatEntry(entry), items: lines.join('\n'), uses: work.uses }, answer: { body } };
}

/** Requests of other agents are answered between the chunks of a large batch. */
const itemsPerTurn = 128;

interface BatchBody<I> {
  readonly items: readonly (I & { ref?: string })[];
  readonly view?: string;
  readonly purpose?: string;
}

async function runBatch<I extends object, R extends Reading>(
  verb: Verb<I, R>,
  work: Work,
  call: Call,
  body: BatchBody<I>,
): Promise<Ran[]> {
  const { items, view, purpose } = body;
  const { service, policy, state, tenant, requestId, uses } = work;
  const shared = { ...(view !== undefined && { view }), ...(purpose !== undefined && { purpose }) };
  const isShared = view !== undefined || purpose !== undefined;
  const rans: Ran[] = [];
  for (let i = 0; i < items.length; i += 1) {
    if (i > 0 && i % itemsPerTurn === 0) await new Promise((resolve) => setImmediate(resolve));
    const item = isShared ? { ...shared, ...items[i]! } : items[i]!;
    const ran = runItem(verb, { service, policy, state, tenant, requestId, uses, item: i }, call, item);
    rans.push(ran instanceof Promise ? await ran : ran);
  }
  return rans;
}

/** A system principal has no tenant: its attempt is written down and refused. */
function refuseSystem(call: Call, action: string): Attempt {
  const error = new FieldkeepError('forbidden', 'A system principal has no tenant and reads no data.');
  const line = formatEntry({ ...beginEntry(call, action), decision: 'deny', outcome: 'denied', code: error.code });
  return { record: { line }, error };
}

/** Runs a verb for `call`, whose body is one item or a batch of them. */
export function performFields<I extends object, R extends Reading>(
  service: Service,
  call: Call,
  action: string,
  verb: Verb<I, R>,
): Promise<Result> {
  return perform(service, call, () => {
    const { policy } = service;
    const { state } = service.keyring;
    const { tenant } = call.principal;
    if (tenant === undefined) return refuseSystem(call, action);
    const work: Work = { service, policy, state, tenant, requestId: call.requestId, uses: new Set(), item: 0 };
    const body = call.body as I | BatchBody<I>;
    const digestKey = findDigestKey(work);
    if ('items' in body) {
      const refs = body.items.map((item) => item.ref);
      return runBatch(verb, work, call, body).then(async (rans) =>
        batchAttempt(work, call, action, rans, refs, await digestKey),
      );
    }
    const ran = runItem(verb, work, call, body);
    if (ran instanceof Promise || digestKey instanceof Promise) {
      return Promise.all([ran, digestKey]).then(([done, key]) => singleAttempt(work, call, action, done, key));
    }
    return singleAttempt(work, call, action, ran, digestKey);
  });
}
