/**
 * What is wrong with a policy, in words that a person can act on: where it is and what to write instead. A problem never
 * repeats a value: somebody may have put a secret where a name belongs. Pure.
 */
import { pathOf } from './json.ts';
import type { policySchema } from './schema.ts';

type Issue = NonNullable<ReturnType<typeof policySchema.safeParse>['error']>['issues'][number];
type Wording = NonNullable<NonNullable<Parameters<typeof policySchema.safeParse>[1]>['error']>;

export interface Problem {
  /** Where in the file: agents.hr-agent.grants[2].scope */
  readonly path: string;
  readonly message: string;
  /** Of the file, from 1; of what is missing, the line of what lacks it. */
  readonly line?: number;
}

/** A problem of shape. What has an unknown key, or a key that is no name, is right without it. */
export interface ShapeProblem {
  readonly steps: readonly PropertyKey[];
  readonly message: string;
  readonly of: 'key' | 'value';
}

const kinds: Readonly<Record<string, string>> = {
  string: 'a text in quotes',
  number: 'a number',
  int: 'a whole number',
  boolean: 'true or false',
  array: 'a list in [ ]',
  object: 'an object in { }',
  record: 'an object in { }',
};

type RawIssue = Parameters<Wording>[0];

const isNumber = (issue: RawIssue) => issue.origin === 'number' || issue.origin === 'int';

/** Words for what the schema found and says nothing of itself. */
export const wording: Wording = (issue) => {
  const { code } = issue;
  if (code === 'custom') return undefined;
  if (issue.input === undefined) return 'is missing';
  if (code === 'invalid_type') return `must be ${kinds[issue.expected] ?? issue.expected}`;
  if (code === 'invalid_value') {
    const values = issue.values.map((value) => JSON.stringify(value)).join(', ');
    return `must be ${issue.values.length > 1 ? 'one of ' : ''}${values}`;
  }
  if (code === 'too_small') return isNumber(issue) ? `must be at least ${issue.minimum}` : 'must not be empty';
  if (code === 'too_big') return `must be ${isNumber(issue) ? 'at most' : 'no longer than'} ${issue.maximum}`;
  if (code === 'invalid_union') return 'has none of the forms that are possible here';
  return undefined;
};

export function joinPath(steps: readonly PropertyKey[]): string {
  return steps.reduce<string>(pathOf, '');
}

/** Of the forms that a value may have, the problems of the one that was meant: the one that knows most of its keys. */
function chooseForm(forms: readonly (readonly Issue[])[], steps: readonly PropertyKey[]): ShapeProblem[] | undefined {
  const ofItsType = forms.filter(
    (form) => !form.some(({ code, path }) => code === 'invalid_type' && path.length === 0),
  );
  const unknown = (form: readonly ShapeProblem[]) => form.filter((each) => each.of === 'key').length;
  return ofItsType
    .map((form) => form.flatMap((each) => toShapeProblems(each, steps)))
    .toSorted((one, other) => unknown(one) - unknown(other) || one.length - other.length)[0];
}

export function toShapeProblems(issue: Issue, above: readonly PropertyKey[] = []): ShapeProblem[] {
  const steps = [...above, ...issue.path];
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => ({ steps: [...steps, key], message: 'there is no such key here', of: 'key' }));
  }
  if (issue.code === 'invalid_key') {
    return [{ steps, message: issue.issues[0]?.message ?? 'is not a name', of: 'key' }];
  }
  const form = issue.code === 'invalid_union' ? chooseForm(issue.errors, steps) : undefined;
  return form ?? [{ steps, message: issue.message, of: 'value' }];
}
