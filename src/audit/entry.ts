/**
 * An entry says who tried what, and how it ended; its line is its canonical JSON (RFC 8785) and the data of its leaf.
 * A batch is one entry; its items have lines of their own, which the entry's itemsRoot commits to.
 *
 * No field ever holds a value, an envelope or a search term. The formats are frozen: a line that was written is hashed
 * into every later root.
 */
import { leafHash, rootHash } from './merkle.ts';

/** `partial`: a batch in which some items succeeded. */
export type Outcome = 'ok' | 'denied' | 'failed' | 'partial';

/** Fields are absent when they do not apply. */
export interface Entry {
  v: 1;
  /** ISO 8601, milliseconds, UTC. */
  time: string;
  /** Made by the server; the same in the answer and the log line. */
  requestId: string;
  tenant?: string;
  action: string;
  agent?: string;
  person?: string;
  class?: string;
  view?: string;
  purpose?: string;
  table?: string;
  column?: string;
  /** "<version of the digest key>.<digest>", of table, column and row. */
  rowDigest?: string;
  /** Where the value moves, of a reencrypt that names another place. */
  toTable?: string;
  toColumn?: string;
  toRowDigest?: string;
  /** "envelope:…" or "value:…", of what came in. */
  input?: string;
  /** The same, of what went out. */
  output?: string;
  decision: 'allow' | 'deny';
  ruleId?: string;
  policyVersion?: string;
  outcome: Outcome;
  /** The problem's code, when the outcome is not ok. */
  code?: string;
  keyVersion?: number;
  /** Items in the batch; of an `authenticate` entry, the refusals that it stands for. */
  count?: number;
  itemsRoot?: string;
}

/** One item of a batch. */
export interface Item {
  ref?: string;
  class?: string;
  view?: string;
  table?: string;
  column?: string;
  rowDigest?: string;
  toTable?: string;
  toColumn?: string;
  toRowDigest?: string;
  input?: string;
  output?: string;
  outcome: Outcome;
  code?: string;
  keyVersion?: number;
}

/**
 * JSON.stringify of an object whose members stand in the order of RFC 8785 *is* its canonical JSON: the RFC takes numbers
 * and escapes from ECMAScript, and undefined members are left out. Only lone surrogates differ, which have no canonical
 * form; an attempt must be written down whatever its texts hold, so they become U+FFFD.
 */
function canonical(ordered: object): string {
  const line = JSON.stringify(ordered);
  if (!line.includes('\\ud')) return line;
  return JSON.stringify(ordered, (_, value: unknown) => (typeof value === 'string' ? value.toWellFormed() : value));
}

/** The entry's line, without a line feed. */
export function formatEntry(entry: Entry): string {
  return canonical({
    action: entry.action,
    agent: entry.agent,
    class: entry.class,
    code: entry.code,
    column: entry.column,
    count: entry.count,
    decision: entry.decision,
    input: entry.input,
    itemsRoot: entry.itemsRoot,
    keyVersion: entry.keyVersion,
    outcome: entry.outcome,
    output: entry.output,
    person: entry.person,
    policyVersion: entry.policyVersion,
    purpose: entry.purpose,
    requestId: entry.requestId,
    rowDigest: entry.rowDigest,
    ruleId: entry.ruleId,
    table: entry.table,
    tenant: entry.tenant,
    time: entry.time,
    toColumn: entry.toColumn,
    toRowDigest: entry.toRowDigest,
    toTable: entry.toTable,
    v: entry.v,
    view: entry.view,
  });
}

/** The item's line, without a line feed. */
export function formatItem(item: Item): string {
  return canonical({
    class: item.class,
    code: item.code,
    column: item.column,
    input: item.input,
    keyVersion: item.keyVersion,
    outcome: item.outcome,
    output: item.output,
    ref: item.ref,
    rowDigest: item.rowDigest,
    table: item.table,
    toColumn: item.toColumn,
    toRowDigest: item.toRowDigest,
    toTable: item.toTable,
    view: item.view,
  });
}

/** Base64 of the RFC 6962 root over the lines of a batch's items, in request order. */
export function itemsRoot(lines: readonly string[]): string {
  return rootHash(lines.map((line) => leafHash(line))).toString('base64');
}
