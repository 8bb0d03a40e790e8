/**
 * What of a file whose shape is wrong can still be cross-checked, so that its writer learns of everything at once: keys
 * that do not belong are left out, and what is broken is stood in for by something that no check has to do with. Its
 * name stays known. What a check then says of a stand-in itself is not said of the file. Pure.
 */
import { toShapeProblems, type ShapeProblem } from './problems.ts';
import { policySchema, views, type PolicyFile } from './schema.ts';

interface Salvage {
  readonly file: PolicyFile;
  readonly stoodIn: readonly (readonly PropertyKey[])[];
}

type Holder = Record<PropertyKey, unknown>;

const roundsMax = 3;
const remove = Symbol('remove');
const principal = (id: string) => ({ tenants: ['*'], identities: [{ issuer: '', sub: id }], grants: [] });

type StandIn = readonly [pattern: readonly string[], make: (id: string) => unknown];

const ofPrincipals = (kind: 'agents' | 'people'): StandIn[] => [
  [[kind, '*', 'grants', '*', 'when'], () => remove],
  [[kind, '*', 'grants', '*', 'compromised'], () => remove],
  [[kind, '*', 'grants', '*'], () => 'audit'],
  [[kind, '*', 'deny', '*'], () => 'audit'],
  [[kind, '*'], principal],
];

/** A path, `*` for any step, and what stands in for it; the first that fits. `id` is a text that occurs nowhere else. */
const standIns: readonly StandIn[] = [
  [['schemaVersion'], () => 1],
  [['unregistered'], () => 'deny'],
  [['$schema'], () => remove],
  [['classes', '*', 'bind'], () => 'row'],
  [['classes', '*', 'padTo'], () => 16],
  [['classes', '*', 'rotateEvery'], () => 'P1D'],
  [['classes', '*', 'normalise'], () => remove],
  [['classes', '*', 'nonAscii'], () => remove],
  [['classes', '*', 'mask'], () => '*'],
  [['classes', '*', 'compromised'], () => remove],
  [
    ['classes', '*'],
    () => ({ bind: 'row', padTo: 16, rotateEvery: 'P1D', views: [...views], defaultView: 'exists', mask: '*' }),
  ],
  [['agents', '*', 'tenants'], () => ['*']],
  ...ofPrincipals('agents'),
  ...ofPrincipals('people'),
  [['issuers', '*'], (id) => ({ issuer: id, jwksFile: id, aud: id, agentClaim: id, tenantClaim: id })],
  [['approvals', '*'], () => remove],
  [
    ['columns', '*'],
    (id) => ({ table: `x.${id.trim()}`, key: ['k'], tenant: { value: 'x' }, column: id, class: 'audit' }),
  ],
];

const fits = (pattern: readonly string[], steps: readonly PropertyKey[]) =>
  steps.length >= pattern.length && pattern.every((step, i) => step === '*' || step === steps[i]);

function put(file: unknown, steps: readonly PropertyKey[], value: unknown): void {
  let holder = file as Holder | undefined;
  for (const step of steps.slice(0, -1)) holder = holder?.[step] as Holder | undefined;
  if (holder === undefined) return; // what held it has been left out
  const last = steps.at(-1)!;
  if (value === remove) delete holder[last];
  else holder[last] = value;
}

/** Takes out of `raw` what is wrong with it, and says what has been stood in for; undefined where nothing can. */
function mend(raw: unknown, problems: readonly ShapeProblem[], id: string): (readonly PropertyKey[])[] | undefined {
  const stoodIn: (readonly PropertyKey[])[] = [];
  for (const { steps } of problems.filter(({ of }) => of === 'key')) put(raw, steps, remove);
  for (const { steps } of problems.filter(({ of }) => of === 'value')) {
    const found = standIns.find(([pattern]) => fits(pattern, steps));
    if (found === undefined) return undefined;
    const [pattern, make] = found;
    const place = steps.slice(0, pattern.length);
    put(raw, place, make(`${id} ${stoodIn.length}`));
    stoodIn.push(place);
  }
  return stoodIn;
}

/** `raw` is changed. Undefined where too little is left: a whole section is missing or is something else. */
export function salvage(raw: unknown, problems: readonly ShapeProblem[]): Salvage | undefined {
  const stoodIn: (readonly PropertyKey[])[] = [];
  let left = problems;
  // What is left out can leave something empty behind, which is the next round's.
  for (let round = 1; round <= roundsMax; round += 1) {
    const places = mend(raw, left, ` stand-in ${round}`);
    if (places === undefined) return undefined;
    stoodIn.push(...places);
    const parsed = policySchema.safeParse(raw);
    if (parsed.success) return { file: parsed.data, stoodIn };
    left = parsed.error.issues.flatMap((issue) => toShapeProblems(issue));
  }
  return undefined;
}
