/**
 * Whether a table and its columns have the shape that an adoption needs: room for envelopes, a source that can become null,
 * a key, a tenant, and what the text of a source's type looks like. Pure.
 */
import { plaintextBytesMax } from '../crypto/aead.ts';
import { versionMax } from '../crypto/envelope.ts';
import { quoteIdentifier } from '../db.ts';
import type { FieldClass, RegisteredColumn } from '../policy/policy.ts';
import { change, countOf, note, stop, when, type Finding } from './finding.ts';
import { sourceOf, type Inspection } from './inspect.ts';
import type { SeenColumn } from './inspect-store.ts';
import type { Why } from '../values/place.ts';

const q = quoteIdentifier;
const tableOf = ({ schema, name }: RegisteredColumn) => `${q(schema)}.${q(name)}`;
const isText = ({ type, domain }: SeenColumn) => !domain && (type === 'text' || type === 'character varying');

/** Characters of the longest envelope for values of up to `bytes`, whatever its version. */
export function envelopeCharsMax({ name, padTo }: Pick<FieldClass, 'name' | 'padTo'>, bytes: number): number {
  const padded = Math.ceil((bytes + 1) / padTo) * padTo;
  const body = Math.ceil(((16 + 32 + padded + 16) * 4) / 3);
  return `fe1.${name}.${versionMax}.`.length + body;
}

/** Characters of a blind index token. */
const tokenCharsMax = (bits: number) => `b${versionMax}.`.length + Math.ceil(Math.ceil(bits / 8) * (4 / 3));

/** Bytes of the longest text of a type, where the type says it. */
function sourceBytesMax({ type, lengthMax }: SeenColumn): number | undefined {
  const fixed: Readonly<Record<string, number>> = {
    ...{ boolean: 5, smallint: 6, integer: 11, bigint: 20, real: 16, 'double precision': 24, date: 16, uuid: 36 },
  };
  if (lengthMax !== null) return Math.min(plaintextBytesMax, lengthMax * 4);
  return fixed[type];
}

function checkTextColumn(column: RegisteredColumn, seen: SeenColumn, charsMax: number, holds: string): Finding[] {
  const at = `Column ${seen.name}`;
  const alter = `alter table ${tableOf(column)} alter column ${q(seen.name)}`;
  return [
    ...when(!isText(seen), () =>
      stop(`${at} is of type ${seen.declared}`, `${holds} are text.`, `${alter} type text;`),
    ),
    ...when(isText(seen) && seen.lengthMax !== null && seen.lengthMax < charsMax, () =>
      stop(
        `${at} holds at most ${seen.lengthMax} characters`,
        `${holds} can have ${charsMax}. What does not fit fails the row.`,
        `${alter} type text;  -- a moment: nothing is rewritten`,
      ),
    ),
    ...when(seen.generated !== '' || seen.identity, () => stop(`${at} is generated`, 'Nobody can write to it.')),
  ];
}

/** A column beside the source, for envelopes or tokens. */
function checkTarget(column: RegisteredColumn, name: string, { columns }: Inspection, charsMax: number, holds: string) {
  const seen = columns.get(name);
  const alter = `alter table ${tableOf(column)} `;
  if (seen === undefined) {
    const how = `${alter}add column ${q(name)} text;`;
    return [change(`Column ${name} does not exist`, `${holds} go there.`, how)];
  }
  return [
    ...checkTextColumn(column, seen, charsMax, holds),
    ...when(seen.notNull, () =>
      stop(
        `Column ${name} is NOT NULL`,
        'It is null wherever the source was written and is not sealed yet.',
        `${alter}alter column ${q(name)} drop not null;`,
      ),
    ),
    ...when(seen.hasDefault, () =>
      stop(
        `Column ${name} has a default`,
        `A row that does not name it would get what is none of: ${holds.toLowerCase()}.`,
        `${alter}alter column ${q(name)} drop default;`,
      ),
    ),
  ];
}

/** How the text of a type is made, where that is not the value as everybody writes it. */
const texts: Readonly<Record<string, string>> = {
  character: 'The blanks at its end are padding and are left away.',
  numeric: 'With as many digits behind the point as the type (or, where it says nothing, each value) has: 10.50.',
  real: 'The shortest digits that give the same number, 1e+20 for great ones.',
  'double precision': 'The shortest digits that give the same number, 1e+20 for great ones.',
  money:
    'As the C locale spells it, $1,234.50, with two digits behind the point whatever the currency has: make it numeric first.',
  boolean: 'As true or false.',
  bytea: 'As \\x and two hexadecimal digits a byte: applications that expect bytes must decode that.',
  json: 'As it was written, blanks and doubled keys included.',
  jsonb: 'With keys in the order of their length and one blank after each colon and comma, as Postgres prints it.',
  inet: 'With the netmask always, 10.0.0.1/32.',
  date: 'In ISO form, 2026-01-31.',
  'timestamp without time zone': 'In ISO form, 2026-01-31 22:15:00.',
  'timestamp with time zone':
    'In ISO form, 2026-01-31 22:15:00+00, in the time zone of the worker’s sessions (UTC), whatever that of the application is.',
  'time with time zone': 'In ISO form, with the offset that was stored.',
  interval: 'In the intervalstyle of the worker’s sessions (postgres): 1 year 2 mons 3 days 04:05:06.',
};

function checkType(column: RegisteredColumn, seen: SeenColumn, fieldClass: FieldClass): Finding[] {
  const at = `Source ${seen.name} is of type ${seen.declared}`;
  const numbers = ['numeric', 'smallint', 'integer', 'bigint'];
  const told = texts[seen.type] ?? 'As Postgres prints it.';
  const known = ['text', 'character varying', 'smallint', 'integer', 'bigint', 'uuid'];
  const isOpenable = seen.type === 'text' || seen.type === 'character varying' || seen.type === 'bytea';
  const { sealed } = column;
  return [
    ...when(seen.typeKind === 'c', () =>
      stop(at, 'A composite value is null and not null at once: it cannot be told whether it is sealed yet.'),
    ),
    ...when(sealed !== undefined && (!isOpenable || (sealed.by === 'transit' && seen.type === 'bytea')), () =>
      stop(at, `The policy says that it is sealed by ${sealed!.by}, and that is no type for it.`),
    ),
    ...when(sealed === undefined && !known.includes(seen.type), () =>
      (seen.type === 'money' ? change : note)(at, `What is sealed is its text. ${told}`),
    ),
    ...when(
      sealed === undefined && fieldClass.edges !== undefined && !numbers.includes(seen.type) && !isText(seen),
      () =>
        change(`${at}, and class ${fieldClass.name} shows buckets`, 'Only plain decimal numbers fall into a bucket.'),
    ),
  ];
}

function checkLength(seen: SeenColumn, { exact }: Inspection, sealed: boolean): Finding[] {
  const limit = `values are ${plaintextBytesMax.toLocaleString('en-US')} bytes at most`;
  if (sealed) return [];
  if (exact !== undefined) {
    return when(exact.tooLong > 0, () =>
      stop(
        `${countOf(exact.tooLong, 'value')} of ${seen.name} ${exact.tooLong === 1 ? 'is' : 'are'} too long (the longest: ${exact.bytesMax} bytes)`,
        `Encrypted ${limit}; such a row fails and blocks the run.`,
      ),
    );
  }
  return when(
    sourceBytesMax(seen) === undefined && !['numeric', 'money'].includes(seen.type) && seen.typeKind !== 'e',
    () =>
      note(
        `Nothing says how long values of ${seen.name} are`,
        `Encrypted ${limit}; longer ones fail, row by row.`,
        '--exact reads the table and counts them',
      ),
  );
}

const unsealable: Readonly<Partial<Record<Why, readonly [what: string, how: string]>>> = {
  tenant_invalid: [
    'a tenant that no token can carry',
    'name tenants with 1 to 128 characters, none of them a control character',
  ],
  row_empty: ['an empty key', 'give them a key, or the class "bind": "column"'],
  row_invalid: ['a key of more than 512 bytes', 'give them a shorter key'],
  value_not_ascii: [
    'letters or digits outside ASCII, which the class would lose when it compares',
    'write them in ASCII, or set "nonAscii": "fold", which counts from the next version of the key',
  ],
  value_not_indexable: ['more than 512 bytes of what counts, and the column has a blind index', 'leave the index out'],
};

/** Rows that the job would record as failed; what is too long, or nobody's, is told by itself. */
function checkUnsealable({ unsealable: counts }: Inspection): Finding[] {
  return [...counts].flatMap(([why, n]) => {
    const [what, how] = unsealable[why] ?? [];
    if (what === undefined) return [];
    const told = `${countOf(n, 'row')} with a value ${n === 1 ? 'has' : 'have'} ${what}`;
    return stop(
      told,
      `The API refuses them, so the job does: such a row fails (request_invalid:${why}) and blocks the run.`,
      how,
    );
  });
}

function checkSource(column: RegisteredColumn, seen: SeenColumn, isPartitioned: boolean): Finding[] {
  const { name } = seen;
  const alter = `alter table ${tableOf(column)} alter column ${q(name)}`;
  return [
    ...when(seen.generated !== '', () =>
      stop(
        `Source ${name} is a generated column`,
        'Nobody can write to it, so it cannot become null.',
        'adopt what it is made of',
      ),
    ),
    ...when(seen.identity, () => stop(`Source ${name} is an identity column`, 'It cannot become null.')),
    ...when(seen.notNull && !seen.identity, () =>
      change(
        `Source ${name} is NOT NULL${seen.domain ? ', perhaps by its domain' : ''}${isPartitioned ? ', itself or in a partition' : ''}`,
        'The application cannot move its writes, and finish cannot set it to null.',
        `${alter} drop not null;  -- before the writes move`,
      ),
    ),
    ...when(seen.hasDefault, () =>
      change(
        `Source ${name} has a default`,
        'An INSERT that has moved over and does not name it would get plaintext, and the triggers would let that count.',
        `${alter} drop default;  -- before the writes move`,
      ),
    ),
    ...when(seen.sampled, () =>
      note(
        `Statistics (pg_stats) hold frequent values of ${name} and borders of its histogram in plain`,
        'Whoever may read the column reads them there, and dumps of the catalog have them.',
        `analyze after finish forgets them; ${alter} set statistics 0; analyze … at once`,
      ),
    ),
  ];
}

function checkKey(column: RegisteredColumn, { columns, uniqueKey }: Inspection): Finding[] {
  const allowed = ['smallint', 'integer', 'bigint', 'uuid', 'text', 'character varying'];
  const missing = column.key.filter((name) => !columns.has(name));
  if (missing.length > 0) return [stop(`The key ${missing.join(', ')} does not exist`, 'Rows are found by it.')];
  const bad = column.key
    .map((name) => columns.get(name)!)
    .find(({ type, domain }) => domain || !allowed.includes(type));
  return [
    ...when(bad !== undefined, () =>
      stop(`Key ${bad!.name} is of type ${bad!.declared}`, 'Keys are integers, uuids or texts.'),
    ),
    ...when(!uniqueKey, () =>
      stop(
        `The key (${column.key.join(', ')}) is not unique, or may be null`,
        'Its values name the rows that envelopes are bound to.',
        `alter table ${tableOf(column)} add primary key (${column.key.map(q).join(', ')});`,
      ),
    ),
  ];
}

function checkTenant({ tenant, tenants }: RegisteredColumn, { columns, exact }: Inspection): Finding[] {
  const only = note(
    `Only rows of ${countOf((tenants ?? []).length, 'tenant')} are adopted`,
    'The others keep their plaintext.',
  );
  const some = tenants === undefined ? [] : [only];
  if (!('column' in tenant)) return some;
  const seen = columns.get(tenant.column);
  if (seen === undefined) {
    return [
      stop(`The column ${tenant.column} of the tenant does not exist`, 'It says whose keys a value is sealed under.'),
    ];
  }
  const why = 'A row that belongs to nobody cannot be sealed: it fails and blocks the run.';
  if (exact !== undefined) {
    const n = exact.withoutTenant;
    return [
      ...some,
      ...when(n > 0, () => stop(`${countOf(n, 'row')} with a value name no tenant in ${tenant.column}`, why)),
    ];
  }
  const share = seen.nullShare ?? 0;
  return [
    ...some,
    ...when(share > 0, () =>
      stop(`About ${(share * 100).toFixed(1)}% of the rows name no tenant in ${tenant.column}`, why),
    ),
    ...when(share === 0 && !seen.notNull, () =>
      note(`The column ${tenant.column} of the tenant may be null`, why, '--exact counts such rows'),
    ),
  ];
}

/** What is wrong with the shape of table and columns. */
export function checkShape(column: RegisteredColumn, fieldClass: FieldClass, seen: Inspection): Finding[] {
  const { columns, exact, tokenConstraints } = seen;
  const source = columns.get(sourceOf(column));
  if (source === undefined) {
    return [stop(`The column ${sourceOf(column)} does not exist, or is not visible`, 'The plaintext comes from it.')];
  }
  const bytes = exact?.bytesMax ?? sourceBytesMax(source) ?? plaintextBytesMax;
  const charsMax = envelopeCharsMax(fieldClass, column.sealed === undefined ? bytes : plaintextBytesMax);
  const inPlace = column.from === undefined;
  return [
    ...checkKey(column, seen),
    ...checkTenant(column, seen),
    ...(inPlace
      ? checkTextColumn(column, source, charsMax, 'Envelopes')
      : [
          ...checkTarget(column, column.column, seen, charsMax, 'Envelopes'),
          ...checkSource(column, source, seen.table.kind === 'p'),
        ]),
    ...checkType(column, source, fieldClass),
    ...checkLength(source, seen, column.sealed !== undefined),
    ...checkUnsealable(seen),
    ...column.index.flatMap((index) => [
      ...checkTarget(column, index.column, seen, tokenCharsMax(index.bits), 'Tokens of the blind index'),
      ...(tokenConstraints.get(index.column) ?? []).map((name) =>
        stop(
          `${name} makes the tokens in ${index.column} unique, or a reference`,
          'A value has another token under each version of the key: it admits doubles, and then stops rotations.',
          'drop it; "unique": true in the policy is for values that must be unique',
        ),
      ),
    ]),
  ];
}
