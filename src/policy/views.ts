/** How much of a value a view reveals. `exists` is answered without decrypting and never comes here. Pure. */
import { normalise, stripToAscii } from '../crypto/blind-index.ts';
import type { FieldClass, View } from './field-class.ts';

interface Revealed {
  /** May be less than what was asked: a value too short for `last4` comes back `masked`. */
  readonly view: View;
  readonly value: string;
}

/** Four of fewer than eight characters would be more than half of the value. */
const last4CharactersMin = 8;
const decimalPattern = /^(-?)(\d{1,40})(?:\.(\d{1,20}))?$/;

/** A plain decimal as an integer of 10^-20 units: amounts are compared exactly, never as floats. */
export function parseDecimal(text: string): bigint | undefined {
  const match = decimalPattern.exec(text.trim());
  if (match === null) return undefined;
  const units = BigInt(match[2]! + (match[3] ?? '').padEnd(20, '0'));
  return match[1] === '-' ? -units : units;
}

/** "<50000", "50000-100000", ">=100000": the edges are the policy's, never the caller's. */
function bucketOf(value: string, edges: readonly string[]): string | undefined {
  const amount = parseDecimal(value);
  if (amount === undefined || edges.length === 0) return undefined;
  const above = edges.filter((edge) => parseDecimal(edge)! <= amount).length;
  if (above === 0) return `<${edges[0]}`;
  if (above === edges.length) return `>=${edges[above - 1]}`;
  return `${edges[above - 1]}-${edges[above]}`;
}

function last4Of(value: string, fieldClass: FieldClass): string | undefined {
  const how = fieldClass.normalise;
  const characters = [...(normalise(how, value) ?? stripToAscii(how, value))];
  return characters.length < last4CharactersMin ? undefined : characters.slice(-4).join('');
}

export function reveal(fieldClass: FieldClass, view: View, value: string): Revealed {
  const masked: Revealed = { view: 'masked', value: fieldClass.mask };
  if (view === 'full') return { view, value };
  if (view === 'masked' || view === 'exists') return masked;
  const shown = view === 'last4' ? last4Of(value, fieldClass) : bucketOf(value, fieldClass.edges ?? []);
  return shown === undefined ? masked : { view, value: shown };
}
