import assert from 'node:assert/strict';
import fc from 'fast-check';
import { formatEntry, formatItem, itemsRoot, type Entry, type Item } from '../../src/audit/entry.ts';
import { leafHash, nodeHash } from '../../src/audit/merkle.ts';
import { canonicalJson } from '../../src/crypto/canonical.ts';

const text = fc.oneof(
  fc.string(),
  fc.string({ unit: 'binary' }),
  fc.constantFrom('"', '\\ud800', '\u0000\n\u2028', 'é€😀'),
);
const version = fc.integer({ min: 1, max: 999_999_999 });
const texts = (...names: string[]) => Object.fromEntries(names.map((name) => [name, text]));

const entries = fc.record(
  {
    ...texts('time', 'requestId', 'tenant', 'action', 'agent', 'person', 'class', 'view', 'purpose', 'table', 'column'),
    ...texts('toTable', 'toColumn', 'toRowDigest'),
    ...texts('rowDigest', 'input', 'output', 'ruleId', 'policyVersion', 'code', 'itemsRoot'),
    v: fc.constant(1),
    decision: fc.constantFrom('allow', 'deny'),
    outcome: fc.constantFrom('ok', 'denied', 'failed', 'partial'),
    keyVersion: version,
    count: version,
  },
  { requiredKeys: ['v', 'decision', 'outcome'] },
);
const items = fc.record(
  {
    ...texts('ref', 'class', 'view', 'table', 'column', 'rowDigest', 'input', 'output', 'code'),
    ...texts('toTable', 'toColumn', 'toRowDigest'),
    outcome: fc.constantFrom('ok', 'denied', 'failed'),
    keyVersion: version,
  },
  { requiredKeys: ['outcome'] },
);

function wellFormed<T extends object>(value: T): T {
  return Object.fromEntries(
    Object.entries(value).map(([name, member]) => [name, typeof member === 'string' ? member.toWellFormed() : member]),
  ) as T;
}

describe('audit entry', () => {
  it('formats entries as RFC 8785 does', () => {
    fc.assert(
      fc.property(entries, (entry) => {
        const line = formatEntry(entry as unknown as Entry);
        assert.equal(line, canonicalJson(wellFormed(entry)));
        assert.ok(!/[\n\t]/.test(line));
      }),
      { numRuns: 2_000 },
    );
  });

  it('formats items as RFC 8785 does', () => {
    fc.assert(
      fc.property(items, (item) => {
        assert.equal(formatItem(item as unknown as Item), canonicalJson(wellFormed(item)));
      }),
      { numRuns: 1_000 },
    );
  });

  it('has a line for texts that are not well formed', () => {
    const item: Item = { outcome: 'failed', ref: 'a\ud800b' };
    assert.equal(formatItem(item), '{"outcome":"failed","ref":"a\ufffdb"}');
  });

  it('is frozen', () => {
    const entry: Entry = {
      ...{
        v: 1,
        time: '2026-03-01T12:00:00.000Z',
        requestId: 'r',
        action: 'decrypt',
        decision: 'allow',
        outcome: 'ok',
      },
      ...{ tenant: 'acme', agent: 'a', person: 'p', class: 'ssn', view: 'full', purpose: 'é', table: 't', column: 'c' },
      ...{ rowDigest: '1.d', input: 'envelope:i', output: 'value:o', ruleId: 'x', policyVersion: 'y', keyVersion: 2 },
      ...{ code: 'internal', count: 3, itemsRoot: 'z' },
    };
    const line =
      '{"action":"decrypt","agent":"a","class":"ssn","code":"internal","column":"c","count":3,"decision":"allow",' +
      '"input":"envelope:i","itemsRoot":"z","keyVersion":2,"outcome":"ok","output":"value:o","person":"p",' +
      '"policyVersion":"y","purpose":"é","requestId":"r","rowDigest":"1.d","ruleId":"x","table":"t",' +
      '"tenant":"acme","time":"2026-03-01T12:00:00.000Z","v":1,"view":"full"}';
    assert.equal(formatEntry(entry), line);
  });

  it('commits to items in request order', () => {
    const [a, b, c] = ['{"outcome":"ok"}', '{"outcome":"ok","ref":"1"}', '{"code":"internal","outcome":"failed"}'];
    const root = nodeHash(nodeHash(leafHash(a), leafHash(b)), leafHash(c)).toString('base64');
    assert.equal(itemsRoot([a, b, c]), root);
    assert.notEqual(itemsRoot([b, a, c]), root);
  });
});
