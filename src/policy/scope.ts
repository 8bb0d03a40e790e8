/** The text of a right (design, section 4): `action:class[:view]`, or `audit`, `approve`, `policy`. Pure. */
import type { View } from './field-class.ts';
import { views } from './schema.ts';

export const fieldActions = [
  'encrypt',
  'decrypt',
  'reencrypt',
  'move',
  'match',
  'search',
  'relay',
  'rotate',
  'destroy',
] as const;
export const plainActions = ['audit', 'approve', 'policy'] as const;
export type Action = (typeof fieldActions)[number] | (typeof plainActions)[number];
/** Rights of system principals only. `audit` may also be a tenant's own. */
export const systemActions: ReadonlySet<string> = new Set(['rotate', 'destroy', 'approve', 'policy']);

/** Actions that open an envelope. `move` does not: it comes on top of `reencrypt`, which does. */
export const openingActions: ReadonlySet<string> = new Set(['decrypt', 'match', 'reencrypt']);

export interface Scope {
  /** '*' only in a deny. */
  readonly action: Action | '*';
  /** Absent for audit, approve and policy; '*' for every class. */
  readonly class?: string;
  readonly view?: View;
}

const scopePattern = /^([a-z]+|\*)(?::([a-z][a-z0-9]{1,15}|\*)(?::([a-z0-9]+))?)?$/;

/** Undefined when the text is not a scope. Only `decrypt` has views. */
export function parseScope(text: string): Scope | undefined {
  const match = scopePattern.exec(text);
  if (match === null) return undefined;
  const [, action = '', className, view] = match;
  if ((plainActions as readonly string[]).includes(action)) {
    return className === undefined ? { action: action as Action } : undefined;
  }
  if (action !== '*' && !(fieldActions as readonly string[]).includes(action)) return undefined;
  if (className === undefined) return undefined;
  if (view === undefined) return { action: action as Action | '*', class: className };
  if (action !== 'decrypt' || !(views as readonly string[]).includes(view)) return undefined;
  return { action, class: className, view: view as View };
}
